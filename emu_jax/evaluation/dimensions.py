"""How far an image is from the real image of its prompt in one dimension alone.

No network is involved, so nothing that was trained can be fooled. Both images have the same size.
What is drawn are the pixels that are not white.

    palette_distance    total variation between the histograms of 4 x 4 x 4 colors of what is drawn
    placement_distance  mean distance of the center of what is drawn (x, y) and of the four edges of
                        its box, in sides of the image
    luma_distance       earth mover's distance between the lumas of what is drawn, 0 to 1
    detail_distance     |log2| of the ratio of high-pass energies: 1 where one has twice that of the
                        other. High-pass: luma minus its Gaussian mean of one pixel
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy.ndimage import gaussian_filter

from emu_jax.evaluation.appearance import LUMA
from emu_jax.evaluation.measuring import Batch

_WHITE = 235  # the least value of a white pixel's channels: a decoder's white is not even
_FLOOR = 1e-5  # of high-pass energy: an empty image has none
Image = UInt8[np.ndarray, "h w 3"]


def palette_distance(batch: Batch) -> Float[np.ndarray, " n"]:
    def distance(one: Image, other: Image) -> float:
        return 0.5 * float(np.abs(_palette(one) - _palette(other)).sum())

    return _each(batch, distance)


def placement_distance(batch: Batch) -> Float[np.ndarray, " n"]:
    def distance(one: Image, other: Image) -> float:
        return float(np.abs(_placement(one) - _placement(other)).mean())

    return _each(batch, distance)


def luma_distance(batch: Batch) -> Float[np.ndarray, " n"]:
    def distance(one: Image, other: Image) -> float:
        return float(np.abs(_quantiles(one) - _quantiles(other)).mean())

    return _each(batch, distance)


def detail_distance(batch: Batch) -> Float[np.ndarray, " n"]:
    def distance(one: Image, other: Image) -> float:
        return float(abs(np.log2(_energy(one) / _energy(other))))

    return _each(batch, distance)


def _each(batch: Batch, distance: Callable[[Image, Image], float]) -> Float[np.ndarray, " n"]:
    pairs = zip(batch.images, batch.originals, strict=True)
    return np.array([distance(image, original) for image, original in pairs])


def _drawn(image: Image) -> Bool[np.ndarray, "h w"]:
    """Everything, where nothing is drawn."""
    found = image.min(-1) < _WHITE
    return found if found.any() else np.ones_like(found)


def _palette(image: Image) -> Float[np.ndarray, "64"]:
    red, green, blue = (image[_drawn(image)] // 64).astype(int).T
    counts = np.bincount(16 * red + 4 * green + blue, minlength=64)
    return counts / counts.sum()


def _placement(image: Image) -> Float[np.ndarray, "6"]:
    """Center, left, top, right and bottom."""
    height, width = image.shape[:2]
    y, x = np.nonzero(_drawn(image))
    x, y = (x + 0.5) / width, (y + 0.5) / height
    return np.array([x.mean(), y.mean(), x.min(), y.min(), x.max(), y.max()])


def _quantiles(image: Image) -> Float[np.ndarray, "101"]:
    """Of luma; the mean distance of two images' quantiles is the earth mover's."""
    return np.quantile(image[_drawn(image)] @ LUMA / 255, np.linspace(0, 1, 101))


def _energy(image: Image) -> float:
    luma = image @ LUMA / 255
    return float(np.mean((luma - gaussian_filter(luma, 1)) ** 2)) + _FLOOR
