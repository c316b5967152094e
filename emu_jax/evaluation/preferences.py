"""Preferences of people between the images of two models: majorities, shares, intervals, power.

A vote is the answer of one annotator to one pair of images, which two models made for one prompt.
It is a win of the second model (1), a tie (0) or a loss (-1). In questions about text faithfulness
the answers "both" and "neither" are ties before anything is counted.

Majority of a pair. An outcome decides the pair if it has more than half of the pair's votes:

    win if 2 w > w + t + l,  loss if 2 l > w + t + l,  else tie                            (1)

so a pair without a majority (2 wins, 2 losses, 1 tie) is a tie. With 3 or 5 votes this is the same
rule as "the most frequent outcome, a tie where two are equally frequent".

Shares of n pairs have two intervals that treat pairs as independent, Wilson's (1927) and the exact
one of Clopper and Pearson (1934), and one by bootstrap over prompts and annotators together: both
are drawn with replacement, and a vote counts as often as its prompt times its annotator (Owen 2007,
"The pigeonhole bootstrap", eq. 2; it is slightly too wide). The majority of each pair is taken anew
in every resample. Its noise moves resampled majorities towards ties, so the interval is the value
+- 1.96 standard deviations of the resamples, not their percentiles.

Power. To tell a share p of the decided pairs from one half, two-sided at the level a and with the
power 1 - b, a study needs

    n = ((z_{1-a/2} / 2 + z_{1-b} sqrt(p (1 - p))) / (p - 1/2))^2                          (2)

decided pairs (Fleiss, Levin and Paik 2003, eq. 2.27 for p_0 = 1/2): 783 for 55 %.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import brentq
from scipy.stats import beta, binom, binomtest, norm

from emu_jax.evaluation.metrics import Interval, Values, share_interval

WIN, TIE, LOSE = 1, 0, -1
OUTCOMES = {"win": WIN, "tie": TIE, "lose": LOSE}
RESAMPLES = 1000
_TAIL, _DEVIATIONS = 0.025, 1.96


@dataclass(frozen=True)
class Votes:
    """Votes of one question between two models; row i is one of them."""

    prompt: Int[np.ndarray, " n"]  # the number of the prompt
    annotator: Int[np.ndarray, " n"]
    outcome: Int[np.ndarray, " n"]  # of the second model: WIN, TIE or LOSE

    def __len__(self) -> int:
        return len(self.outcome)

    def rows(self, chosen: Int[np.ndarray, " m"] | Bool[np.ndarray, " n"]) -> Self:
        return type(self)(self.prompt[chosen], self.annotator[chosen], self.outcome[chosen])

    def of(self, prompts: Int[np.ndarray, " p"]) -> Self:
        """The votes on these prompts."""
        return self.rows(np.isin(self.prompt, prompts))

    def complete(self, least: int) -> Self:
        """The votes on prompts that have at least ``least`` of them."""
        prompts, count = np.unique(self.prompt, return_counts=True)
        return self.of(prompts[count >= least])

    def counts(self) -> Int[np.ndarray, "p 3"]:
        """Wins, ties and losses of every prompt, in ascending order of the prompts."""
        _, row = np.unique(self.prompt, return_inverse=True)
        found = np.zeros((row.max(initial=-1) + 1, 3), np.int64)
        np.add.at(found, (row, 1 - self.outcome), 1)
        return found


class Share(NamedTuple):
    """A share of pairs with its 95 % intervals."""

    count: int
    of: int
    wilson: Interval
    exact: Interval
    resampled: Interval  # over prompts and annotators

    @property
    def value(self) -> float:
        return self.wilson.value


@dataclass(frozen=True)
class Preference:
    """How often the second model wins, ties and loses by the majority of each pair."""

    win: Share
    tie: Share
    lose: Share
    p: float  # of the exact sign test that wins and losses are equally frequent

    @property
    def pairs(self) -> int:
        return self.win.of


def majority(counts: Float[np.ndarray, "... 3"] | Int[np.ndarray, "... 3"]) -> np.ndarray:
    """The outcome (1) of each pair from its numbers of wins, ties and losses."""
    half = counts.sum(-1) / 2
    return np.where(counts[..., 0] > half, WIN, np.where(counts[..., 2] > half, LOSE, TIE))


def preference(votes: Votes, seed: int = 0, resamples: int = RESAMPLES) -> Preference:
    """The shares of one or more pairs."""
    outcomes = majority(votes.counts())
    drawn = _resampled_shares(votes, seed, resamples)
    shares = [
        _share(int(np.sum(outcomes == outcome)), len(outcomes), drawn[:, column])
        for column, outcome in enumerate(OUTCOMES.values())
    ]
    win, lose = shares[0].count, shares[2].count
    p = float(binomtest(win, win + lose).pvalue) if win + lose else 1.0
    return Preference(shares[0], shares[1], shares[2], p)


def wilson(count: int, of: int) -> Interval:
    """A share p with Wilson's interval: the p_0 at most 1.96 sqrt(p_0 (1 - p_0) / n) from p."""
    p, z = count / of, _DEVIATIONS**2 / of
    reach = math.sqrt(z * p * (1 - p) + z**2 / 4)
    low, high = ((p + z / 2 + sign * reach) / (1 + z) for sign in (-1, 1))
    return Interval(p, max(0.0, low), min(1.0, high))


def exact(count: int, of: int) -> Interval:
    """A share with the interval of Clopper and Pearson."""
    low = beta.ppf(_TAIL, count, of - count + 1) if count else 0.0
    high = beta.isf(_TAIL, count + 1, of - count) if count < of else 1.0
    return Interval(count / of, float(low), float(high))


def weights(
    votes: Votes, seed: int, resamples: int
) -> Iterator[tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]]:
    """How often each vote's prompt, and each vote's annotator, is drawn, for every resample."""
    generator = np.random.default_rng(seed)
    prompts, prompt = np.unique(votes.prompt, return_inverse=True)
    people, annotator = np.unique(votes.annotator, return_inverse=True)
    for _ in range(resamples):
        each = [
            np.bincount(generator.integers(len(of), size=len(of)), minlength=len(of))
            for of in (prompts, people)
        ]
        yield each[0][prompt], each[1][annotator]


def pairs_needed(share: float, power: float = 0.8, level: float = 0.05) -> int:
    """The number (2) of decided pairs that tell ``share`` from one half."""
    reach = norm.ppf(1 - level / 2) / 2 + norm.ppf(power) * math.sqrt(share * (1 - share))
    return math.ceil((reach / (share - 0.5)) ** 2)


def power_of(pairs: int, share: float, level: float = 0.05) -> float:
    """The probability that the exact sign test of so many decided pairs rejects one half."""
    # The largest number of losses in the lower tail of one half; the upper tail is its mirror.
    bound = int(binom.ppf(level / 2, pairs, 0.5))
    bound -= binom.cdf(bound, pairs, 0.5) > level / 2
    lower = binom.cdf(bound, pairs, share)
    return float(lower + binom.sf(pairs - bound - 1, pairs, share))


def smallest_share(pairs: int, power: float = 0.8, level: float = 0.05) -> float:
    """The smallest share above one half that so many decided pairs tell from it, by (2); 1 if there
    is none.
    """

    def missing(share: float) -> float:
        reach = norm.ppf(1 - level / 2) / 2 + norm.ppf(power) * math.sqrt(share * (1 - share))
        return reach - (share - 0.5) * math.sqrt(pairs)

    return float(brentq(missing, 0.5, 1.0)) if missing(1.0) < 0 else 1.0


def accuracy(outcomes: Int[np.ndarray, " n"], leads: Float[np.ndarray, " n"]) -> Interval:
    """How often a metric prefers the image that the majority prefers, among the pairs that the
    majority decides. ``leads`` are the second model's values minus the first's, larger is better;
    equal values count one half.
    """
    decided = outcomes != TIE
    hits: Values = (1 + np.sign(leads[decided]) * outcomes[decided]) / 2
    return share_interval(hits)


def _resampled_shares(votes: Votes, seed: int, resamples: int) -> Float[np.ndarray, "r 3"]:
    """The shares of wins, ties and losses in every resample that has votes."""
    _, row = np.unique(votes.prompt, return_inverse=True)
    pairs = row.max(initial=-1) + 1
    cell, found = row * 3 + (1 - votes.outcome), []
    of_prompt = np.zeros(pairs, np.int64)
    for by_prompt, by_annotator in weights(votes, seed, resamples):
        counts = np.bincount(cell, by_annotator, minlength=3 * pairs).reshape(pairs, 3)
        of_prompt[row] = by_prompt
        weight = of_prompt * (counts.sum(1) > 0)
        if weight.any():
            outcomes = majority(counts)
            found.append(np.bincount(1 - outcomes, weight, minlength=3) / weight.sum())
    return np.array(found)


def _share(count: int, of: int, drawn: Float[np.ndarray, " r"]) -> Share:
    bounds = exact(count, of)
    reach = _DEVIATIONS * float(np.std(drawn, ddof=1)) if len(drawn) > 1 else 0.0
    value = bounds.value
    # Pairs that are all equal have no spread to resample.
    resampled = Interval(value, max(0.0, value - reach), min(1.0, value + reach))
    return Share(count, of, wilson(count, of), bounds, resampled if reach else bounds)
