"""Resizing as published metrics do it: the conventions differ, and so do the figures.

Pixel i of the result has the source position

    (i + 1/2) n_in / n_out - 1/2    as in torch and PIL (``half_pixel``)                   (1)
    i n_in / n_out                  as in TensorFlow 1                                     (2)

No function here filters before it shrinks.
"""

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
    return _apply(x, size, _cubic)


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


def _cubic(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Keys' kernel over the four pixels around the position."""
    at = (np.arange(new) + 0.5) * (old / new) - 0.5
    low = np.floor(at).astype(int)
    taps = []
    for pixel in (low - 1, low, low + 1, low + 2):
        d = np.abs(at - pixel)
        near = ((_A + 2) * d - (_A + 3)) * d**2 + 1
        far = _A * (((d - 5) * d + 8) * d - 4)
        taps.append((pixel, np.where(d <= 1, near, far)))
    return _matrix(old, taps)


def _matrix(
    old: int, taps: list[tuple[np.ndarray, Float[np.ndarray, " new"]]]
) -> Float[np.ndarray, "new old"]:
    """Row i holds the weights of the source's pixels in pixel i of the result."""
    rows = np.arange(len(taps[0][0]))
    weights = np.zeros((len(rows), old))
    for pixel, weight in taps:
        np.add.at(weights, (rows, np.clip(pixel, 0, old - 1)), weight)
    return weights
