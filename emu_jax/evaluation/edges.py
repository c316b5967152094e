"""How well images follow the edges of others: what a ControlNet for edges is for."""

import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import binary_dilation

from emu_jax.data.canny import edges
from emu_jax.evaluation.measuring import Batch

_NEAR = np.ones((3, 3), bool)  # one pixel in all directions


def edge_f1(batch: Batch) -> Float[np.ndarray, " n"]:
    """F1 of each image's edges (:mod:`emu_jax.data.canny`) against those of its original, within
    one pixel.
    """
    pairs = zip(batch.images, batch.originals, strict=True)
    return np.array([f1(edges(image), edges(original)) for image, original in pairs], np.float32)


def f1(found: Bool[np.ndarray, "h w"], wanted: Bool[np.ndarray, "h w"]) -> float:
    """The harmonic mean of the shares of found pixels near a wanted one, and of wanted ones near a
    found one; 1 where there are neither.
    """
    if not found.any() or not wanted.any():
        return float(found.any() == wanted.any())
    precision = binary_dilation(wanted, _NEAR)[found].mean()
    recall = binary_dilation(found, _NEAR)[wanted].mean()
    return float(2 * precision * recall / max(precision + recall, 1e-9))
