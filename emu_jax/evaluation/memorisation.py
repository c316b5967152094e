"""Near-copies of tuning pictures among the samples.

Quality-tuning shows a few pictures many times, and a generator may come to repeat them. How near
is too near? Two different pictures of one style resemble each other too, so the bound is measured:
real pictures of the same kind that were *never* tuned on are brought to the tuning pictures, and
the distance below which only 1 % of them come is the bound. A sample nearer than that is nearer to
a tuning picture than different pictures get by themselves: a near-copy. So 1 % of the samples may
lie below it by chance; a share well above that is memorisation.

The references must be the same in both steps: among more of them the nearest is nearer. And real
pictures that have twins among the references (the same concept in another skin tone, say) would
lower the bound: choose them by concept, not by picture.

Pictures are compared as small thumbnails, by the root mean square of the differences of their
values: it forgives noise and the codec's blur, not another shape or colour. A mirrored copy is a
copy.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from emu_jax.errors import UserError

_CHUNK = 256  # queries at a time: with 50,000 references their distances take 100 MB


class Nearest(NamedTuple):
    """Of each query, how far its nearest reference is (0: equal, 1: black to white), and which."""

    distance: Float[np.ndarray, " n"]
    index: Int[np.ndarray, " n"]


def descriptors(
    images: UInt8[np.ndarray, "n h w 3"], side: int = 16
) -> Float[np.ndarray, "n side*side*3"]:
    """Thumbnails in [0, 1], flat; each value is the mean over its area, pixels shared in part."""
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise UserError(
            f"pictures to compare are uint8 [n, h, w, 3], not {images.dtype} {list(images.shape)}"
        )
    rows, columns = _area_means(images.shape[1], side), _area_means(images.shape[2], side)
    small = np.empty((len(images), side, side, 3), np.float32)
    for i, image in enumerate(images):  # one by one: all of them as floats might not fit
        x = image.astype(np.float32) / 255
        small[i] = np.einsum("ih,hwc,jw->ijc", rows, x, columns, optimize=True)
    return small.reshape(len(images), side * side * 3)


def mirrored(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """The descriptors of the pictures seen in a mirror."""
    side = math.isqrt(x.shape[1] // 3)
    return x.reshape(-1, side, side, 3)[:, :, ::-1].reshape(x.shape)


def nearest(queries: Float[np.ndarray, "n d"], references: Float[np.ndarray, "r d"]) -> Nearest:
    """Each query's nearest reference, as it is or mirrored."""
    if not len(references):
        raise UserError("there is no picture to compare with: name those that were tuned on")
    both = np.concatenate([references, mirrored(references)])
    squares = np.sum(both**2, axis=1)
    distance, index = np.empty(len(queries)), np.empty(len(queries), int)
    for start in range(0, len(queries), _CHUNK):
        chunk = queries[start : start + _CHUNK]
        # |q - r|^2 without |q|^2, which changes no order. The product is fast but loses small
        # distances to rounding: it finds the nearest, whose distance is then taken anew.
        found = np.argmin(squares - 2 * chunk @ both.T, axis=1)
        rows = slice(start, start + len(chunk))
        distance[rows] = np.sqrt(np.mean((chunk - both[found]) ** 2, axis=1))
        index[rows] = found % len(references)
    return Nearest(distance, index)


def copy_bound(
    real: Float[np.ndarray, "m d"], references: Float[np.ndarray, "r d"], quantile: float = 0.01
) -> float:
    """The distance to the references below which only ``quantile`` of the real pictures come.

    ``real`` are pictures that were never tuned on, hundreds of them for 1 %.
    """
    if not len(real):
        raise UserError("a bound for copies needs real pictures that were never tuned on")
    return float(np.quantile(nearest(real, references).distance, quantile))


def memorised(distance: Float[np.ndarray, " n"], bound: float) -> Bool[np.ndarray, " n"]:
    """Which are near-copies; an exact one always is."""
    return distance <= bound


def _area_means(size: int, side: int) -> Float[np.ndarray, "side size"]:
    """Weights that average ``size`` pixels over ``side`` equal stretches."""
    edges = np.linspace(0, size, side + 1)[:, None]
    pixels = np.arange(size)
    covered = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    return (np.maximum(covered, 0) * side / size).astype(np.float32)
