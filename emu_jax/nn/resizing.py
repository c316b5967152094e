"""Resizing as published metrics do it: the conventions differ, and so do the figures.

Pixel i of the result has the source position

    (i + 1/2) n_in / n_out - 1/2    as in torch and PIL (``half_pixel``)                   (1)
    i n_in / n_out                  as in TensorFlow 1                                     (2)

:func:`bilinear` and :func:`bicubic` do not filter before they shrink. :func:`resized`,
:func:`cropped` and :func:`padded` do, as PIL does; they bring images to the input of a network
inside a training step, differentiably.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_A = -0.75  # the coefficient of torch's cubic kernel


def bilinear(
    x: Float[Array, "b h w c"], size: tuple[int, int], *, half_pixel: bool
) -> Float[Array, "b i j c"]:
    """``x`` in ``size`` (height, width), by (1) or (2); positions outside become the edge."""
    return _apply(x, size, lambda old, new: _linear(old, new, half_pixel))


def bicubic(x: Float[Array, "b h w c"], size: tuple[int, int]) -> Float[Array, "b i j c"]:
    """``x`` in ``size`` (height, width), by (1), as torch's ``bicubic`` without antialiasing."""
    return _apply(x, size, cubic_weights)


def resized(
    x: Float[Array, "b h w c"], size: tuple[int, int], method: str
) -> Float[Array, "b i j c"]:
    """``x`` in ``size`` (height, width); ``method`` of ``jax.image.resize``."""
    b, h, w, c = x.shape
    return x if (h, w) == size else jax.image.resize(x, (b, *size, c), method, antialias=True)


def cropped(
    x: Float[Array, "b h w c"], side: int, method: str = "cubic"
) -> Float[Array, "b {side} {side} c"]:
    """The shorter side resized, the central square cut out; ``method`` of ``jax.image.resize``."""
    h, w = x.shape[1:3]
    other = int(side * max(h, w) / min(h, w))
    h, w = (side, other) if h <= w else (other, side)
    x = resized(x, (h, w), method)
    top, left = (round((n - side) / 2) for n in (h, w))
    return x[:, top : top + side, left : left + side]


def padded(
    x: Float[Array, "b h w c"], side: int, value: float, method: str = "cubic"
) -> Float[Array, "b {side} {side} c"]:
    """The longer side resized, the rest filled with ``value``."""
    scale = side / max(x.shape[1:3])
    h, w = (round(n * scale) for n in x.shape[1:3])
    x = resized(x, (h, w), method)
    top, left = (side - h) // 2, (side - w) // 2
    around = ((0, 0), (top, side - h - top), (left, side - w - left), (0, 0))
    return jnp.pad(x, around, constant_values=value)


def _apply(x: Float[Array, "b h w c"], size: tuple[int, int], weights) -> Float[Array, "b i j c"]:
    rows, columns = (
        jnp.asarray(weights(old, new), x.dtype) for old, new in zip(x.shape[1:3], size, strict=True)
    )
    return jnp.einsum("ih,bhwc,jw->bijc", rows, x, columns, precision="highest")


def _linear(old: int, new: int, half_pixel: bool) -> Float[np.ndarray, "new old"]:
    i = np.arange(new)
    at = (i + 0.5) * (old / new) - 0.5 if half_pixel else i * (old / new)
    at = np.clip(at, 0, old - 1)
    low = np.floor(at).astype(int)
    return _matrix(old, [(low, 1 - (at - low)), (low + 1, at - low)])


def cubic_weights(
    old: int, new: int, a: float = _A, *, ratio: float | None = None, matlab: bool = False
) -> Float[np.ndarray, "new old"]:
    """Keys' cubic kernel with the coefficient ``a`` over the pixels around the position (1).

    ``ratio`` is by default old / new. MATLAB's imresize has a = -0.5, stretches the kernel by the
    ratio where it shrinks, and mirrors the image at its edges.
    """
    ratio = ratio or old / new
    stretch = max(1.0, ratio) if matlab else 1.0
    at = (np.arange(new) + 0.5) * ratio - 0.5
    first = np.floor(at - 2 * stretch).astype(int) + 1
    taps = []
    for pixel in (first + i for i in range(int(np.ceil(4 * stretch)))):
        d = np.abs(at - pixel) / stretch
        near = ((a + 2) * d - (a + 3)) * d**2 + 1
        far = a * (((d - 5) * d + 8) * d - 4)
        if matlab:
            pixel = np.where(
                pixel < 0, -1 - pixel, np.where(pixel < old, pixel, 2 * old - 1 - pixel)
            )
        taps.append((pixel, np.where(d <= 1, near, np.where(d < 2, far, 0.0))))
    weights = _matrix(old, taps)
    return weights / weights.sum(1, keepdims=True) if matlab else weights


def _matrix(
    old: int, taps: list[tuple[np.ndarray, Float[np.ndarray, " new"]]]
) -> Float[np.ndarray, "new old"]:
    """Row i holds the weights of the source's pixels in pixel i of the result."""
    rows = np.arange(len(taps[0][0]))
    weights = np.zeros((len(rows), old))
    for pixel, weight in taps:
        np.add.at(weights, (rows, np.clip(pixel, 0, old - 1)), weight)
    return weights
