"""Distances between sets of images in the features of published networks, as papers print them.

    metric             features                    estimator
    FID                Inception, pooled           Frechet distance
    FD-DINOv2          DINOv2 ViT-L/14             Frechet distance
    KID                Inception, pooled           mean MMD of 100 subsets of 1,000
    CMMD               CLIP ViT-L/14 at 336 px     biased MMD, Gaussian kernel, times 1000
    precision, recall  Inception, pooled           balls of the 3rd nearest neighbor
    Inception Score    Inception, logits           exp of the mutual information, 10 splits

The Frechet distance and the unbiased MMD over all rows are in :mod:`emu_jax.evaluation.metrics`.
KID over subsets has the same expectation as that MMD, and a larger variance: use it to compare with
published numbers, the other one for everything else.

All estimators but the MMDs depend on the number of images: compare equal numbers only.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import log_softmax

from emu_jax.errors import UserError
from emu_jax.evaluation.metrics import Statistics, mmd

SUBSETS, SUBSET = 100, 1000  # of KID: number and size
NEIGHBOR = 3  # of precision and recall
SPLITS = 10  # of the Inception Score
_SEED = 2020  # of the draws, as in torch-fidelity
_BANDWIDTH, _SCALE = 10.0, 1000.0  # of CMMD
_BLOCK = 4096  # rows whose distances are in memory at once


def statistics(features: Float[np.ndarray, "n d"]) -> Statistics:
    """Mean and unbiased covariance of rows."""
    features = np.asarray(features, np.float64)
    return Statistics(features.mean(0), np.atleast_2d(np.cov(features, rowvar=False)))


def write_statistics(path: str | Path, found: Statistics) -> None:
    """A file that pytorch-fid, torch-fidelity and :func:`read_statistics` read."""
    np.savez(path, mu=found.mean, sigma=found.covariance)


def read_statistics(path: str | Path) -> Statistics:
    """The statistics of a reference set, from an .npz file with ``mu`` and ``sigma`` (pytorch-fid,
    EDM and guided-diffusion publish such files).

    Raises:
      UserError: there is no such file, or it holds anything else. No pickle in it is opened.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            mean, covariance = (np.asarray(file[name], np.float64) for name in ("mu", "sigma"))
    except FileNotFoundError:
        raise UserError(
            f"There is no file {path}; give an .npz file with mu and sigma of a reference set."
        ) from None
    except Exception as error:  # zipfile, numpy's format and KeyError: whatever damaged bytes raise
        raise UserError(
            f"{path} is not an .npz file with the arrays mu and sigma ({type(error).__name__}); "
            "use the statistics that pytorch-fid writes."
        ) from error
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise UserError(
            f"{path}: mu has shape {list(mean.shape)} and sigma {list(covariance.shape)}; they "
            "must be [d] and [d, d]."
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"{path}: mu or sigma has values that are not finite; fetch it again.")
    return Statistics(mean, covariance)


def kid(
    a: Float[np.ndarray, "n d"],
    b: Float[np.ndarray, "m d"],
    subsets: int = SUBSETS,
    size: int = SUBSET,
    seed: int = _SEED,
) -> Float[np.ndarray, " subsets"]:
    """The unbiased MMD of every subset; papers print their mean and standard deviation.

    Subsets are drawn as by torch-fidelity: the same features have the same KID.
    """
    if min(len(a), len(b)) < size:
        raise UserError(
            f"KID draws subsets of {size} images, but the sets have {len(a)} and {len(b)}; use "
            "more images or smaller subsets."
        )
    draws = np.random.RandomState(seed)  # the reference's generator
    found = []
    for _ in range(subsets):
        rows = [draws.choice(len(x), size, replace=False) for x in (a, b)]
        found.append(mmd(a[rows[0]], b[rows[1]]))
    return np.array(found)


def cmmd(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> float:
    """CMMD (Jayasumana et al. 2023, arXiv:2401.09603) of embeddings of length one.

    1000 times the biased MMD with k(x, y) = exp(-|x - y|^2 / (2 10^2)); pairs of a row with itself
    count, as in the published code.
    """
    return cmmd_to(b)(a)


def covered(
    rows: Float[np.ndarray, "n d"], by: Float[np.ndarray, "m d"], k: int = NEIGHBOR
) -> Bool[np.ndarray, " n"]:
    """Whether each row lies in a ball around a row of ``by`` that reaches to its k-th neighbor in
    ``by`` (improved precision and recall, Kynkaanniemi et al. 2019, arXiv:1904.06991).

    Precision is the share of generated images that real ones cover, recall the share of real images
    that generated ones cover.
    """
    return _balls(by, k)(rows)


def _balls(
    by: Float[np.ndarray, "m d"], k: int = NEIGHBOR
) -> Callable[[Float[np.ndarray, "n d"]], Bool[np.ndarray, " n"]]:
    """``covered(rows, by, k)`` for many rows: the radii are computed once."""
    by = np.asarray(by, np.float64)
    if len(by) <= k:
        raise UserError(f"Precision and recall need more than {k} images, not {len(by)}.")
    radius = np.concatenate(  # the 0-th neighbor is the row itself
        [np.partition(squared, k, axis=1)[:, k] for squared in _squared_distances(by, by)]
    )

    def inside(rows: Float[np.ndarray, "n d"]) -> Bool[np.ndarray, " n"]:
        blocks = _squared_distances(np.asarray(rows, np.float64), by)
        return np.concatenate([(squared <= radius).any(1) for squared in blocks])

    return inside


def precision_recall(
    generated: Float[np.ndarray, "n d"], real: Float[np.ndarray, "m d"], k: int = NEIGHBOR
) -> tuple[float, float]:
    """The means of :func:`covered` in both directions."""
    return float(covered(generated, real, k).mean()), float(covered(real, generated, k).mean())


def inception_score(
    logits: Float[np.ndarray, "n c"], splits: int = SPLITS, seed: int = _SEED
) -> Float[np.ndarray, " splits"]:
    """exp E KL(p(y | x) || p(y)) of every split (Salimans et al. 2016); papers print their mean and
    standard deviation. Rows are shuffled as by torch-fidelity.
    """
    n = len(logits)
    if n < splits:
        raise UserError(f"The Inception Score needs {splits} images or more, not {n}.")
    log_p = log_softmax(np.asarray(logits, np.float64), axis=1)
    log_p = log_p[np.random.RandomState(seed).permutation(n)]
    scores = []
    for i in range(splits):
        part = log_p[i * n // splits : (i + 1) * n // splits]
        p = np.exp(part)
        scores.append(np.exp(np.sum(p * (part - np.log(p.mean(0))), axis=1).mean()))
    return np.array(scores)


# As figures of the registry: from the features of references to a figure of features --------------

Figure = Callable[[Float[np.ndarray, "n d"]], float]


def mmd_to(real: Float[np.ndarray, "m d"]) -> Figure:
    return lambda rows: mmd(rows, real)


def kid_to(real: Float[np.ndarray, "m d"]) -> Figure:
    return lambda rows: float(kid(rows, real).mean())


def cmmd_to(real: Float[np.ndarray, "m d"]) -> Figure:
    """:func:`cmmd` against these embeddings, whose own term is computed once."""
    real = np.asarray(real, np.float64)
    own = _mean_kernel(real, real)

    def distance(rows: Float[np.ndarray, "n d"]) -> float:
        rows = np.asarray(rows, np.float64)
        return _SCALE * (_mean_kernel(rows, rows) + own - 2 * _mean_kernel(rows, real))

    return distance


def precision_to(real: Float[np.ndarray, "m d"]) -> Figure:
    inside = _balls(real)
    return lambda rows: float(inside(rows).mean())


def recall_to(real: Float[np.ndarray, "m d"]) -> Figure:
    """Rows that a bootstrap draws twice count once: they would be their own neighbors."""
    return lambda rows: float(covered(real, np.unique(rows, axis=0)).mean())


def mean_inception_score(logits: Float[np.ndarray, "n c"]) -> float:
    """It reads no references."""
    return float(inception_score(logits).mean())


def _mean_kernel(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> float:
    total = sum(
        np.exp(squared / (-2 * _BANDWIDTH**2)).sum() for squared in _squared_distances(x, y)
    )
    return float(total) / (len(x) * len(y))


def _squared_distances(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]):
    """Blocks of rows of the matrix [n, m]."""
    norms = np.sum(y**2, axis=1)
    for start in range(0, len(x), _BLOCK):
        block = x[start : start + _BLOCK]
        squared = np.sum(block**2, axis=1)[:, None] + norms - 2 * block @ y.T
        yield np.maximum(squared, 0.0)
