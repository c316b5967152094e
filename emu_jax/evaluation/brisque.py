"""BRISQUE: how far an image's local statistics are from those of natural photographs (Mittal,
Moorthy and Bovik 2012). Lower is better. Only photographs have such statistics: on flat drawings
the number means nothing.

With I the luma in [0, 255] and mu, sigma the local mean and deviation in a 7 x 7 Gaussian window,

    m = (I - mu) / (sigma + 1)                                                             (1)

is close to a generalized Gaussian. Its shape and variance, and the shape, mean and two variances of
the asymmetric Gaussians of m times its right, lower and two diagonal neighbors, are 18 numbers.
With those of the image at half the size they are 36, which are scaled to z in [-1, 1]. The score is
a support vector regression on people's ratings,

    score = sum_i c_i exp(-0.05 |z - z_i|^2) + offset.                                     (2)

The authors published two implementations, each with a table (c_i, z_i, ranges) fitted to its own
features. They differ by ten points on the same photograph, so a table needs its implementation:

    cpp     the C++ release. Its table is shipped: the same score as of the package ``brisque``.
    matlab  the MATLAB release, which piq and IQA-PyTorch follow, and whose values papers print. Its
            table is a file of piq's, ``brisque_svm_weights.pt``, given by path.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from scipy.ndimage import correlate1d
from scipy.special import gammaln

from emu_jax.checkpoint.safetensors_io import iter_safetensors
from emu_jax.errors import UserError
from emu_jax.nn.pickles import read_pickle
from emu_jax.nn.resizing import cubic_weights

_TABLES = Path(__file__).with_name("brisque.safetensors")
_GAMMA = 0.05
_OFFSETS = {"cpp": 155.845, "matlab": 153.591}
_LUMA = {"cpp": (0.2125, 0.7154, 0.0721), "matlab": (0.299, 0.587, 0.114)}
_NEIGHBORS = ((0, 1), (1, 0), (1, 1), (1, -1))
_SMALLEST = 8  # pixels; below, the half image has no window


class Table(NamedTuple):
    """A fitted regression; ``release`` says whose features it reads."""

    release: str
    vectors: Float[np.ndarray, "v 36"]
    coefficients: Float[np.ndarray, " v"]
    low: Float[np.ndarray, "36"]
    high: Float[np.ndarray, "36"]


def load_table(path: str | Path = "") -> Table:
    """The shipped table of the C++ release; from ``path``, piq's file of the MATLAB release."""
    tensors = {name: np.asarray(x, np.float64) for name, x in iter_safetensors(str(_TABLES))}
    if path == "":
        return Table("cpp", *(tensors[f"cpp/{name}"] for name in Table._fields[1:]))
    found = read_pickle(Path(path))
    shapes = [tuple(x.shape) for x in found.values()]
    if len(shapes) != 2 or len(shapes[0]) != 1 or shapes[1] != (shapes[0][0], 36):
        raise UserError(
            f"{path} holds tensors of shapes {shapes}, not BRISQUE's coefficients [v] and vectors "
            "[v, 36]; use piq's brisque_svm_weights.pt."
        )
    coefficients, vectors = (np.asarray(x.double().numpy()) for x in found.values())
    return Table("matlab", vectors, coefficients, tensors["matlab/low"], tensors["matlab/high"])


def brisque(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]], table: Table | None = None
) -> Float[np.ndarray, " n"]:
    """The score of every image at its own size; NaN where an image is flat."""
    table = table or load_table()
    scores = np.empty(len(images))
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for i, image in enumerate(images):
        by_shape.setdefault(image.shape, []).append(i)
    for shape, rows in by_shape.items():
        if min(shape[:2]) < _SMALLEST:
            raise UserError(
                f"BRISQUE needs images of {_SMALLEST} pixels or more, not {shape[0]} x {shape[1]}."
            )
        found = features(np.stack([images[i] for i in rows]), table.release)
        z = 2 * (found - table.low) / (table.high - table.low) - 1
        squared = np.sum((z[:, None] - table.vectors) ** 2, axis=-1)
        scores[rows] = np.exp(-_GAMMA * squared) @ table.coefficients + _OFFSETS[table.release]
    return scores


def features(
    images: UInt8[np.ndarray, "n h w 3"], release: str = "cpp"
) -> Float[np.ndarray, "n 36"]:
    """The 36 numbers, not scaled."""
    luma = images @ np.array(_LUMA[release])
    if release == "matlab":
        luma = np.round(luma)  # it converts colors in 8 bits
    found = []
    with np.errstate(divide="ignore", invalid="ignore"):  # of flat images, which become NaN
        for _ in range(2):
            found.append(_statistics(luma, release))
            rows, columns = (_halving(n, release) for n in luma.shape[1:])
            luma = rows @ luma @ columns.T
    return np.concatenate(found, axis=1)


def _halving(n: int, release: str) -> Float[np.ndarray, "m n"]:
    """The cubic resizing of OpenCV, and that of piq in place of MATLAB's."""
    if release == "cpp":
        return cubic_weights(n, round(n / 2), ratio=2.0)
    return cubic_weights(n, n // 2, -0.5, matlab=True)


def _statistics(luma: Float[np.ndarray, "n h w"], release: str) -> Float[np.ndarray, "n 18"]:
    """The 18 numbers of one scale."""
    mu = _window(luma)
    sigma = np.sqrt(np.abs(_window(luma**2) - mu**2))
    m = (luma - mu) / (sigma + 1)
    if release == "cpp":
        shape, _, left, right = _asymmetric(m, release)
        numbers = [shape, (left + right) / 2]
    else:
        variance = np.mean(m**2, axis=(1, 2))
        numbers = [_shape(np.mean(np.abs(m), axis=(1, 2)) ** 2 / variance, release), variance]
    for down, across in _NEIGHBORS:
        if release == "cpp":
            h, w = m.shape[1] - down, m.shape[2]
            here = m[:, :h, max(0, -across) : w - max(0, across)]
            there = m[:, down:, max(0, across) : w + min(0, across)]
        else:  # the image is periodic
            here, there = m, np.roll(m, (-down, -across), axis=(1, 2))
        numbers += _asymmetric(here * there, release)
    return np.stack(numbers, axis=1)


def _window(x: Float[np.ndarray, "n h w"]) -> Float[np.ndarray, "n h w"]:
    """Gaussian means with deviation 7/6; pixels outside are 0."""
    weights = np.exp(-(np.arange(-3, 4) ** 2) / (2 * (7 / 6) ** 2))
    weights /= weights.sum()
    return correlate1d(correlate1d(x, weights, 1, mode="constant"), weights, 2, mode="constant")


def _asymmetric(x: Float[np.ndarray, "n h w"], release: str) -> list[Float[np.ndarray, " n"]]:
    """Shape, mean, left and right variance of the asymmetric generalized Gaussian fitted to x."""
    squares, negative = x**2, x < 0
    positive = x > 0 if release == "matlab" else ~negative
    left, right = (
        np.sum(squares * side, axis=(1, 2)) / np.sum(side, axis=(1, 2))
        for side in (negative, positive)
    )
    g = np.sqrt(left / right)
    ratio = np.mean(np.abs(x), axis=(1, 2)) ** 2 / np.mean(squares, axis=(1, 2))
    shape = _shape(ratio * (g**3 + 1) * (g + 1) / (g**2 + 1) ** 2, release, inverse=False)
    scale = np.exp(gammaln(2 / shape) - (gammaln(1 / shape) + gammaln(3 / shape)) / 2)
    return [shape, (np.sqrt(right) - np.sqrt(left)) * scale, left, right]


def _shape(
    ratio: Float[np.ndarray, " n"], release: str, inverse: bool = True
) -> Float[np.ndarray, " n"]:
    """The shape alpha at which Gamma(2/alpha)^2 / (Gamma(1/alpha) Gamma(3/alpha)) is ``ratio``.

    The MATLAB release takes the nearest value of its grid: by the ratio, or by its ``inverse``.
    """
    alphas, ratios = _grid()
    if release == "cpp":
        return np.where(np.isfinite(ratio), np.interp(ratio, ratios, alphas), np.nan)
    if inverse:
        ratio, ratios = 1 / ratio, 1 / ratios
    nearest = np.abs(ratio[:, None] - ratios).argmin(1)
    return np.where(np.isfinite(ratio), alphas[nearest], np.nan)


@cache
def _grid() -> tuple[Float[np.ndarray, " g"], Float[np.ndarray, " g"]]:
    alphas = np.arange(200, 10001) / 1000
    return alphas, np.exp(2 * gammaln(2 / alphas) - gammaln(1 / alphas) - gammaln(3 / alphas))
