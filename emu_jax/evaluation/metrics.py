"""Measures of generated pictures, and how far chance alone could have moved them.

Frechet distance (Heusel et al. 2017) between Gaussians fitted to two sets of features:

    d^2 = |m_a - m_b|^2 + tr C_a + tr C_b - 2 tr (C_a^1/2 C_b C_a^1/2)^1/2                 (1)

With centred rows A such that C_a = A^T A, and B likewise, the last trace is the sum of the square
roots of the eigenvalues of A C_b A^T = (A B^T)(A B^T)^T, hence of the singular values of A B^T:

    tr (C_a^1/2 C_b C_a^1/2)^1/2 = |A B^T|_*                                               (2)

which stays true when A and B are exchanged for the triangles of their QR decompositions. No root
of a covariance is taken: nothing turns complex or loses half its digits where there are fewer
rows than dimensions.

Kernel distance (Binkowski et al. 2018) with k(x, y) = (x.y / d + 1)^3. Row i of a counts c_i times
(once, unless resampled), and only pairs of different rows count:

    MMD^2 = sum_{i != j} c_i c_j k(a_i, a_j) / sum_{i != j} c_i c_j
            + mean_{i != j} k(b_i, b_j) - 2 sum_i c_i mean_j k(a_i, b_j) / sum_i c_i       (3)

It is unbiased: around 0, and often below it, for two samples of one distribution.

Intervals are of 95 % and by bootstrap. Rows are the independent units: where a prompt has several
pictures, a row is the prompt's mean, not the picture.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import minimize
from scipy.special import expit

from emu_jax.errors import UserError

_TAILS = (0.025, 0.975)
_DEVIATIONS = 1.96  # leave the same tails of a Gaussian


class Interval(NamedTuple):
    """A measured value and its 95 % interval: "0.61 (0.52 to 0.70)"; ``f"{x:.0%}"`` in per cent."""

    value: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        value, low, high = (format(number, spec or ".2f") for number in self)
        return f"{value} ({low} to {high})"

    def __str__(self) -> str:
        return format(self)


class Duel(NamedTuple):
    """Shares of the rows that the challenger wins, ties and loses."""

    win: float
    tie: float
    lose: float


def top_k(
    similarity: Float[np.ndarray, "n p"], truth: Int[np.ndarray, " n"], k: int
) -> Bool[np.ndarray, " n"]:
    """Whether fewer than ``k`` of a row's other candidates are as similar as the true one.

    A tie counts against the row, and so does NaN: a judge that answers all the same knows nothing.
    """
    own = np.take_along_axis(similarity, np.asarray(truth)[:, None], axis=1)
    rivals = np.sum(~(similarity < own), axis=1) - 1  # the true one is no rival of itself
    return rivals < k


def frechet(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> float:
    """The squared Frechet distance (1), which grows as rows grow fewer: compare equal numbers."""
    return frechet_to(b)(a)


def frechet_to(b: Float[np.ndarray, "m d"]) -> Callable[[Float[np.ndarray, "n d"]], float]:
    """``frechet(a, b)`` for many a: what is to be known of b is worked out once."""
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


def mmd_interval(
    a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"], resamples: int = 1000, seed: int = 0
) -> Interval:
    """(3) and the percentiles of its bootstrap over the rows of ``a``; ``b`` is held as it is."""
    a, b = _features(a, b)
    kernels = _kernels(a, b)
    counts = np.array([np.bincount(rows, minlength=len(a)) for rows in _draws(a, resamples, seed)])
    # A row that is drawn twice must not meet itself: k(x, x) is the largest of its values, and as
    # many rows are drawn twice in every resample, all would lie above the distance itself. (3)
    # leaves such pairs out, and a resample that has no others drops out altogether.
    counts = counts[np.count_nonzero(counts, axis=1) > 1]
    return _percentiles(mmd(a, b), _weighted_mmd(*kernels, counts.astype(float)))


def mean_interval(
    values: Float[np.ndarray, " n"], seed: int = 0, resamples: int = 2000
) -> Interval:
    """The mean and the percentiles of its bootstrap."""
    values = _values(values)
    means = [values[rows].mean() for rows in _draws(values, resamples, seed)]
    return _percentiles(values.mean(), means)


def difference_interval(
    a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"], seed: int = 0, resamples: int = 2000
) -> Interval:
    """mean(b) - mean(a) where row i of both is the same prompt, drawn together."""
    a, b = _pairs(a, b)
    return mean_interval(b - a, seed, resamples)


def statistic_interval(
    function: Callable[..., float], *arrays: np.ndarray, resamples: int = 100, seed: int = 0
) -> Interval:
    """``function(*arrays)`` +- 1.96 standard deviations over resampled rows of the first array.

    Not percentiles: a hundred values tell their deviation better than their tails, and repeated
    rows shift a distance such as (1) upwards, whose percentiles might then leave out its own value.
    """
    first, *others = arrays
    value = float(function(*arrays))
    drawn = [function(first[rows], *others) for rows in _draws(first, resamples, seed)]
    reach = _DEVIATIONS * float(np.std(drawn, ddof=1))
    return Interval(value, value - reach, value + reach)


def duel(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"], margin: float) -> Duel:
    """How b does against a, row by row; a difference of at most ``margin`` is a tie."""
    a, b = _pairs(a, b)
    lead = b - a
    shares = (lead > margin, np.abs(lead) <= margin, lead < -margin)
    return Duel(*(float(np.mean(share)) for share in shares))


@dataclass(frozen=True)
class Probe:
    """Logistic regression that tells two kinds of features apart.

    On features z, standardised, with labels y = 1 and -1 and weights u that give each kind one half
    however many rows it has, it minimises

        sum_i u_i log(1 + exp(-y_i (w.z_i + bias))) + l2/2 |w|^2                           (4)
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
        # A feature that never varies, but for rounding, tells nothing and is not blown up.
        scale = np.where(scale > 1e-9 * np.abs(x).max(0), scale, 1.0)
        z = (x - centre) / scale

        def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
            weights, bias = parameters[:-1], parameters[-1]
            margin = y * (z @ weights + bias)
            pull = -u * y * expit(-margin)  # the derivative by w.z_i + bias
            value = u @ np.logaddexp(0.0, -margin) + l2 / 2 * weights @ weights
            return value, np.append(pull @ z + l2 * weights, pull.sum())

        start = np.zeros(z.shape[1] + 1)
        precise = {"maxiter": 2000, "ftol": 1e-15, "gtol": 1e-8}
        found = minimize(objective, start, method="L-BFGS-B", jac=True, options=precise).x
        return cls(centre, scale, found[:-1], float(found[-1]))

    def probability(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        """That a row is of the positive kind, were both kinds equally frequent."""
        return expit((np.asarray(x) - self.centre) / self.scale @ self.weights + self.bias)


def _covariance_root(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "r d"]:
    """R with R^T R the covariance of x, of as few rows as can be."""
    return np.linalg.qr((x - x.mean(0)) / np.sqrt(len(x) - 1)).R


def _kernels(
    a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]
) -> tuple[Float[np.ndarray, "n n"], Float[np.ndarray, " n"], float]:
    """What (3) needs: k within a, nothing on its diagonal; its mean over b; its mean within b."""

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


def _draws(x: np.ndarray, resamples: int, seed: int) -> Iterator[Int[np.ndarray, " n"]]:
    """Row numbers of x drawn with replacement, anew for every resample."""
    generator = np.random.default_rng(seed)
    for _ in range(resamples):
        yield generator.integers(len(x), size=len(x))


def _percentiles(value: float, drawn: np.ndarray | list[float]) -> Interval:
    low, high = np.quantile(drawn, _TAILS)
    return Interval(float(value), float(low), float(high))


def _values(x: np.ndarray) -> Float[np.ndarray, " n"]:
    x = np.asarray(x, np.float64)
    if x.ndim != 1 or not len(x):
        raise UserError(f"a mean is taken of one row of numbers, at least one, not {list(x.shape)}")
    return x


def _pairs(a: np.ndarray, b: np.ndarray) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    a, b = _values(a), _values(b)
    if len(a) != len(b):
        raise UserError(f"{len(a)} and {len(b)} values cannot be paired: score the same prompts")
    return a, b


def _features(
    a: np.ndarray, b: np.ndarray
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "m d"]]:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise UserError(
            "two sets of features [n, d] are compared when both have the same d and at least two "
            f"rows, not {list(a.shape)} and {list(b.shape)}"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise UserError("features that are not finite cannot be compared: check their network")
    return a, b
