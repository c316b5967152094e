"""Metrics of an image's appearance, from its pixels alone.

Colorfulness (Hasler & Suesstrunk 2003) of R, G and B in 0 to 255, with means m and standard
deviations s over the pixels of rg = R - G and yb = (R + G) / 2 - B:

    (s_rg^2 + s_yb^2)^1/2 + 0.3 (m_rg^2 + m_yb^2)^1/2                                      (1)
"""

import numpy as np
from jaxtyping import Float, UInt8
from scipy.ndimage import laplace

from emu_jax.evaluation.measuring import Batch

LUMA = np.array([0.2126, 0.7152, 0.0722])  # of R, G and B as stored (Rec. 709)


def contrast(batch: Batch) -> Float[np.ndarray, " n"]:
    """The standard deviation of luma, 0 to 1; noise offset widens it."""
    return np.array([np.std(image @ LUMA) / 255 for image in batch.images])


def sharpness(batch: Batch) -> Float[np.ndarray, " n"]:
    """The variance of the Laplacian of luma (0 to 1), by differences to the four neighbors."""
    luma = (image @ LUMA / 255 for image in batch.images)
    return np.array([np.var(laplace(one, mode="nearest")) for one in luma])


def colorfulness(batch: Batch) -> Float[np.ndarray, " n"]:
    """(1): 0 for gray images, around 33 for averagely colorful photographs, above 80 for vivid
    ones.
    """
    return np.array([_colorfulness(image) for image in batch.images])


def _colorfulness(image: UInt8[np.ndarray, "h w 3"]) -> float:
    red, green, blue = np.moveaxis(image.astype(float), -1, 0)
    opponents = np.stack([red - green, (red + green) / 2 - blue])
    deviations, means = opponents.std(axis=(1, 2)), opponents.mean(axis=(1, 2))
    return float(np.linalg.norm(deviations) + 0.3 * np.linalg.norm(means))


def color_statistics(batch: Batch) -> Float[np.ndarray, "n 6"]:
    """The means and standard deviations of R, G and B, 0 to 1."""
    pixels = [image.reshape(-1, 3) / 255 for image in batch.images]
    return np.array([np.concatenate([one.mean(0), one.std(0)]) for one in pixels])
