"""Near-copies of tuning images among the samples.

Quality-tuning repeats a few images many times, and a generator may memorize them. Different images
of one style resemble each other too, so the bound for a copy is measured: for real images of the
same kind that were *never* tuned on, the bound is the distance to the nearest tuning image that
only 1 % of them fall below. A sample below the bound is nearer to a tuning image than different
images usually are: a near-copy. So 1 % of the samples may fall below it by chance; a share well
above that is memorization.

The references must be the same in both steps, because the nearest of more references is nearer.
Real images that have twins among the references (such as the same concept in another skin tone)
would lower the bound: choose them by concept, not by image.

Images are compared as small thumbnails, by the root mean square difference of their values: this
tolerates noise and the codec's blur, but not another shape or color. A mirrored copy is a copy.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from emu_jax.errors import UserError

_CHUNK = 256  # queries at a time: with 50,000 references their distances take 100 MB


class Nearest(NamedTuple):
    """Per query, the distance (0: equal, 1: black to white) and index of the nearest reference."""

    distance: Float[np.ndarray, " n"]
    index: Int[np.ndarray, " n"]


def descriptors(
    images: UInt8[np.ndarray, "n h w 3"], side: int = 16
) -> Float[np.ndarray, "n {side}*{side}*3"]:
    """Flat thumbnails in [0, 1]; each value is the mean over its area, with parts of pixels."""
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise UserError(
            f"Descriptors need uint8 images [n, h, w, 3], not {images.dtype} {list(images.shape)}"
        )
    rows, columns = _area_means(images.shape[1], side), _area_means(images.shape[2], side)
    small = np.empty((len(images), side, side, 3), np.float32)
    for i, image in enumerate(images):  # one by one: all of them as floats might not fit
        x = image.astype(np.float32) / 255
        small[i] = np.einsum("ih,hwc,jw->ijc", rows, x, columns, optimize=True)
    return small.reshape(len(images), side * side * 3)


def mirrored(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """The descriptors of the mirrored images."""
    side = math.isqrt(x.shape[1] // 3)
    return x.reshape(-1, side, side, 3)[:, :, ::-1].reshape(x.shape)


def nearest(queries: Float[np.ndarray, "n d"], references: Float[np.ndarray, "r d"]) -> Nearest:
    """The nearest reference of each query, as it is or mirrored."""
    if not len(references):
        raise UserError("There is no reference image; give those of quality-tuning.")
    both = np.concatenate([references, mirrored(references)])
    squares = np.sum(both**2, axis=1)
    distance, index = np.empty(len(queries)), np.empty(len(queries), int)
    for start in range(0, len(queries), _CHUNK):
        chunk = queries[start : start + _CHUNK]
        # |q - r|^2 without |q|^2, which does not change the order. The product is fast but loses
        # small distances to rounding: it finds the nearest, whose distance is then recomputed.
        found = np.argmin(squares - 2 * chunk @ both.T, axis=1)
        rows = slice(start, start + len(chunk))
        distance[rows] = np.sqrt(np.mean((chunk - both[found]) ** 2, axis=1))
        index[rows] = found % len(references)
    return Nearest(distance, index)


def copy_bound(
    real: Float[np.ndarray, "m d"], references: Float[np.ndarray, "r d"], quantile: float = 0.01
) -> float:
    """The distance to the references that only a share of ``quantile`` of real images falls below.

    ``real`` are images that were never tuned on; 1 % needs hundreds of them.
    """
    if not len(real):
        raise UserError("The bound for copies needs real images that were never tuned on.")
    return float(np.quantile(nearest(real, references).distance, quantile))


def memorised(distance: Float[np.ndarray, " n"], bound: float) -> Bool[np.ndarray, " n"]:
    """Whether each is a near-copy; an exact copy always is."""
    return distance <= bound


def _area_means(size: int, side: int) -> Float[np.ndarray, "{side} {size}"]:
    """Weights that average ``size`` pixels over ``side`` equal intervals."""
    edges = np.linspace(0, size, side + 1)[:, None]
    pixels = np.arange(size)
    covered = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    return (np.maximum(covered, 0) * side / size).astype(np.float32)


def variety(images: Sequence[UInt8[np.ndarray, "h w 3"]], repeats: int) -> float:
    """The mean distance of two images of one prompt, of which ``repeats`` in a row are images; the
    mean is over prompts. It falls where a generator draws only one image for each prompt.
    """
    x = descriptors(np.stack(images)).reshape(-1, repeats, 16 * 16 * 3)
    apart = np.sqrt(np.mean((x[:, :, None] - x[:, None]) ** 2, axis=-1))
    return float(np.mean(np.sum(apart, axis=(1, 2)) / (repeats * (repeats - 1))))
