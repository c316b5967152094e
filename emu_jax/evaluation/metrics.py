"""Metrics of generated images, with intervals that account for the choice of prompts.

Frechet distance (Heusel et al. 2017) between Gaussians fitted to two sets of features:

    d^2 = |m_a - m_b|^2 + tr C_a + tr C_b - 2 tr (C_a^1/2 C_b C_a^1/2)^1/2                 (1)

With centered rows A such that C_a = A^T A, and B likewise, the last trace is the sum of the square
roots of the eigenvalues of A C_b A^T = (A B^T)(A B^T)^T, hence of the singular values of A B^T:

    tr (C_a^1/2 C_b C_a^1/2)^1/2 = |A B^T|_*                                               (2)

which also holds for the triangles of the QR decompositions of A and B. No root of a covariance is
taken, so nothing becomes complex or loses half its digits when there are fewer rows than
dimensions.

Kernel distance (Binkowski et al. 2018) with k(x, y) = (x.y / d + 1)^3. Row i of a has weight c_i (1
unless resampled), and only pairs of different rows count:

    MMD^2 = sum_{i != j} c_i c_j k(a_i, a_j) / sum_{i != j} c_i c_j
            + mean_{i != j} k(b_i, b_j) - 2 sum_i c_i mean_j k(a_i, b_j) / sum_i c_i       (3)

It is unbiased: around 0, and often below 0, for two samples of one distribution.

Intervals are 95 % intervals by bootstrap over prompts. A prompt's images are no independent units:
if a prompt has several (``repeats``), means are taken of prompts (:func:`by_prompt`), and distances
between sets resample the images of a prompt together. A share of n rows that are all equal has no
spread to resample; its bound is the share p at which n equal rows have a probability of 2.5 %,

    p^n = 0.025.                                                                           (4)
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import minimize
from scipy.special import expit

from emu_jax.errors import UserError

Values = Float[np.ndarray, " n"] | Bool[np.ndarray, " n"]

_TAILS = (0.025, 0.975)
DEVIATIONS = 1.96  # leaves the same tails of a Gaussian


class Interval(NamedTuple):
    """A measured value and its 95 % interval: "0.61 (0.52 to 0.70)"; ``f"{x:.0%}"`` in percent."""

    value: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        value, low, high = (format(number, spec or ".2f") for number in self)
        return f"{value} ({low} to {high})"

    def __str__(self) -> str:
        return format(self)


class Statistics(NamedTuple):
    """The Gaussian of a set of features: all that (1) needs of it."""

    mean: Float[np.ndarray, " d"]
    covariance: Float[np.ndarray, "d d"]


class Duel(NamedTuple):
    """Shares of the rows in which the challenger wins, ties and loses."""

    win: float
    tie: float
    lose: float


def top_k(
    similarity: Float[np.ndarray, "n p"], truth: Int[np.ndarray, " n"], k: int
) -> Bool[np.ndarray, " n"]:
    """Whether fewer than ``k`` of a row's other candidates are at least as similar as the true one.

    A tie counts against the row, and so does NaN: a judge with constant answers knows nothing.
    """
    own = np.take_along_axis(similarity, np.asarray(truth)[:, None], axis=1)
    rivals = np.sum(~(similarity < own), axis=1) - 1  # the true one is not its own rival
    return rivals < k


def frechet(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> float:
    """The squared Frechet distance (1). It is larger for fewer rows: compare equal numbers."""
    return frechet_to(b)(a)


def frechet_to(
    b: Float[np.ndarray, "m d"] | Statistics,
) -> Callable[[Float[np.ndarray, "n d"]], float]:
    """``frechet(a, b)`` for many a: the part that depends only on b is computed once."""
    if isinstance(b, Statistics):
        mean_b, root_b = b.mean, _root(b.covariance)
        b = np.stack([mean_b, mean_b])  # for messages about the dimensions
    else:
        root_b, mean_b = _covariance_root(_features(b, b)[1]), np.mean(b, axis=0, dtype=np.float64)

    def distance(a: Float[np.ndarray, "n d"]) -> float:
        a, _ = _features(a, b)
        root_a = _covariance_root(a)
        overlap = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
        means = np.sum((a.mean(0) - mean_b) ** 2)
        return max(0.0, float(means + np.sum(root_a**2) + np.sum(root_b**2) - 2 * overlap))

    return distance


def mmd(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> float:
    """The squared kernel distance (3)."""
    a, b = _features(a, b)
    return float(_weighted_mmd(*_kernels(a, b), np.ones((1, len(a))))[0])


def by_prompt(values: Values, repeats: int) -> Float[np.ndarray, " p"] | Bool[np.ndarray, " p"]:
    """The mean of each prompt's ``repeats`` images, which follow one another."""
    return values if repeats == 1 else _values(values).reshape(-1, repeats).mean(1)


def mmd_interval(
    a: Float[np.ndarray, "n d"],
    b: Float[np.ndarray, "m d"],
    resamples: int = 1000,
    seed: int = 0,
    repeats: int = 1,
) -> Interval:
    """(3) and the percentiles of its bootstrap over the prompts of ``a``; ``b`` is fixed."""
    a, b = _features(a, b)
    kernels = _kernels(a, b)
    drawn = _draws(a, resamples, seed, repeats)
    counts = np.array([np.bincount(rows, minlength=len(a)) for rows in drawn])
    # A row that is drawn twice must not be paired with itself: k(x, x) is the largest of its
    # values, and since every resample has many such rows, all would lie above the distance itself.
    # (3) leaves such pairs out, and a resample that has no other pairs is dropped.
    counts = counts[np.count_nonzero(counts, axis=1) > 1]
    return _percentiles(mmd(a, b), _weighted_mmd(*kernels, counts.astype(float)))


def mean_interval(values: Values, seed: int = 0, resamples: int = 2000) -> Interval:
    """The mean with the percentiles of its bootstrap."""
    values = _values(values)
    means = [values[rows].mean() for rows in _draws(values, resamples, seed)]
    return _percentiles(values.mean(), means)


def difference_interval(a: Values, b: Values, seed: int = 0, resamples: int = 2000) -> Interval:
    """mean(b) - mean(a), where row i of both is of the same prompt and resampled together."""
    a, b = _pairs(a, b)
    return mean_interval(b - a, seed, resamples)


def ratio_interval(a: Values, b: Values, seed: int = 0, resamples: int = 2000) -> Interval:
    """mean(a) / mean(b), where row i of both is of the same prompt and resampled together."""
    a, b = _pairs(a, b)
    ratios = [a[rows].mean() / b[rows].mean() for rows in _draws(a, resamples, seed)]
    return _percentiles(a.mean() / b.mean(), ratios)


def share_interval(hits: Values) -> Interval:
    """The share of hits, or the mean of shares: :func:`mean_interval`, or the bound (4) if all rows
    are equal.
    """
    interval = mean_interval(hits)
    bound = _TAILS[0] ** (1 / len(hits))
    if interval.value == 0:
        return interval._replace(high=1 - bound)
    return interval._replace(low=bound) if interval.value == 1 else interval


def share_difference_interval(a: Values, b: Values) -> Interval:
    """share(b) - share(a): :func:`difference_interval`, or the bound (4) if all rows are equal."""
    interval = difference_interval(a, b)
    value, low, high = interval
    if np.ptp(np.subtract(b, a, dtype=np.float64)):
        return interval
    reach = 1 - _TAILS[0] ** (1 / len(a))
    return Interval(value, max(low - reach, -1.0), min(high + reach, 1.0))


def statistic_interval(
    function: Callable[..., float],
    *arrays: np.ndarray,
    resamples: int = 100,
    seed: int = 0,
    repeats: int = 1,
) -> Interval:
    """``function(*arrays)`` +- 1.96 standard deviations over resampled prompts of the first array.

    Not percentiles: a hundred values estimate their deviation better than their tails, and repeated
    rows shift a distance such as (1) upward, so that its percentiles might exclude its own value.
    """
    first, *others = arrays
    value = float(function(*arrays))
    drawn = [function(first[rows], *others) for rows in _draws(first, resamples, seed, repeats)]
    reach = DEVIATIONS * float(np.std(drawn, ddof=1))
    return Interval(value, value - reach, value + reach)


def duel(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"], margin: float) -> Duel:
    """b against a, row by row; a difference of at most ``margin`` is a tie."""
    a, b = _pairs(a, b)
    lead = b - a
    shares = (lead > margin, np.abs(lead) <= margin, lead < -margin)
    return Duel(*(float(np.mean(share)) for share in shares))


@dataclass(frozen=True)
class Probe:
    """Logistic regression that separates two kinds of features.

    On standardized features z, with labels y = 1 and -1 and weights u that sum to one half for each
    kind whatever its number of rows, it minimizes

        sum_i u_i log(1 + exp(-y_i (w.z_i + bias))) + l2/2 |w|^2                           (5)
    """

    centre: Float[np.ndarray, " d"]
    scale: Float[np.ndarray, " d"]
    weights: Float[np.ndarray, " d"]
    bias: float

    @classmethod
    def fit(
        cls,
        positive: Float[np.ndarray, "n d"],
        negative: Float[np.ndarray, "m d"],
        l2: float = 1e-2,
    ) -> Self:
        positive, negative = _features(positive, negative)
        n, m = len(positive), len(negative)
        x = np.concatenate([positive, negative])
        y = np.repeat([1.0, -1.0], [n, m])
        u = np.repeat([0.5 / n, 0.5 / m], [n, m])
        centre = u @ x
        scale = np.sqrt(u @ (x - centre) ** 2)
        # A feature that is constant up to rounding carries no information: do not scale it up.
        scale = np.where(scale > 1e-9 * np.abs(x).max(0), scale, 1.0)
        z = (x - centre) / scale

        def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
            weights, bias = parameters[:-1], parameters[-1]
            margin = y * (z @ weights + bias)
            pull = -u * y * expit(-margin)  # derivative with respect to w.z_i + bias
            value = u @ np.logaddexp(0.0, -margin) + l2 / 2 * weights @ weights
            return value, np.append(pull @ z + l2 * weights, pull.sum())

        start = np.zeros(z.shape[1] + 1)
        precise = {"maxiter": 2000, "ftol": 1e-15, "gtol": 1e-8}
        found = minimize(objective, start, method="L-BFGS-B", jac=True, options=precise).x
        return cls(centre, scale, found[:-1], float(found[-1]))

    def probability(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        """Probability that a row is of the positive kind if both kinds are equally frequent."""
        return expit((np.asarray(x) - self.centre) / self.scale @ self.weights + self.bias)


def _covariance_root(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "r d"]:
    """R with R^T R the covariance of x and as few rows as possible."""
    return np.linalg.qr((x - x.mean(0)) / np.sqrt(len(x) - 1)).R


def _root(covariance: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    """R with R^T R the covariance; rounding may have made it slightly indefinite."""
    values, vectors = np.linalg.eigh(covariance)
    return np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T


def _kernels(
    a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]
) -> tuple[Float[np.ndarray, "n n"], Float[np.ndarray, " n"], float]:
    """The terms of (3): k within a with a zero diagonal; its mean over b; its mean within b."""

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / x.shape[1] + 1) ** 3

    within_a, within_b = kernel(a, a), kernel(b, b)
    np.fill_diagonal(within_a, 0.0)
    np.fill_diagonal(within_b, 0.0)
    return within_a, kernel(a, b).mean(1), within_b.sum() / (len(b) * (len(b) - 1))


def _weighted_mmd(
    within_a: Float[np.ndarray, "n n"],
    across: Float[np.ndarray, " n"],
    within_b: float,
    counts: Float[np.ndarray, "s n"],
) -> Float[np.ndarray, " s"]:
    """(3) for each row of counts."""
    drawn = counts.sum(1)
    pairs = drawn**2 - np.sum(counts**2, axis=1)
    return np.sum(counts @ within_a * counts, 1) / pairs + within_b - 2 * counts @ across / drawn


def _draws(
    x: np.ndarray, resamples: int, seed: int, repeats: int = 1
) -> Iterator[Int[np.ndarray, " n"]]:
    """Row numbers of x, for every resample; prompts of ``repeats`` rows, drawn with replacement."""
    generator, prompts = np.random.default_rng(seed), len(x) // repeats
    for _ in range(resamples):
        chosen = generator.integers(prompts, size=prompts)
        yield (chosen[:, None] * repeats + np.arange(repeats)).ravel()


def _percentiles(value: float, drawn: np.ndarray | list[float]) -> Interval:
    low, high = np.quantile(drawn, _TAILS)
    return Interval(float(value), float(low), float(high))


def _values(x: np.ndarray) -> Float[np.ndarray, " n"]:
    x = np.asarray(x, np.float64)
    if x.ndim != 1 or not len(x):
        raise UserError(f"A mean needs a non-empty vector, not an array of shape {list(x.shape)}.")
    return x


def _pairs(a: np.ndarray, b: np.ndarray) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    a, b = _values(a), _values(b)
    if len(a) != len(b):
        raise UserError(
            f"{len(a)} and {len(b)} values cannot be paired; use the same prompts for both."
        )
    return a, b


def _features(
    a: np.ndarray, b: np.ndarray
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "m d"]]:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise UserError(
            "Two sets of features [n, d] need the same d and at least two rows each, not "
            f"{list(a.shape)} and {list(b.shape)}."
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise UserError(
            "There are features that are not finite; check the network that computed them."
        )
    return a, b
