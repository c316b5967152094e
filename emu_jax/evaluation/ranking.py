"""Strengths of several models from votes on their pairs: Bradley-Terry with ties.

Davidson's model (1970): with strengths s_i, log-strengths h_i and a tendency to ties nu,

    P(i wins) : P(tie) : P(j wins) = s_i : nu sqrt(s_i s_j) : s_j                          (1)

These are the probabilities of a multinomial logit with the parameters (h, log nu) and the features
x_i = e_i, x_tie = (e_i + e_j) / 2 + e_nu, x_j = e_j, so the log-likelihood is concave and Newton's
method finds its maximum; only differences of h count, and they are given with sum 0. The maximum is
finite if and only if there is a chain of wins or ties from every model to every other.

Votes on one prompt, or of one annotator, are not independent: the intervals are 1.96 standard
deviations of resamples of prompts and annotators together (see preferences.py), not those of the
likelihood.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.sparse.csgraph import connected_components

from emu_jax.errors import UserError
from emu_jax.evaluation.metrics import Interval
from emu_jax.evaluation.preferences import LOSE, TIE, WIN, Votes, weights

_STEPS, _CLOSE = 100, 1e-10
_DEVIATIONS = 1.96


@dataclass(frozen=True)
class Strengths:
    """The maximum of the likelihood of (1)."""

    log_strengths: Float[np.ndarray, " m"]  # their sum is 0
    log_ties: float  # log nu; -inf without ties
    covariance: Float[np.ndarray, "m m"]  # of the log-strengths, votes being independent


def bradley_terry(wins: Float[np.ndarray, "m m"], ties: Float[np.ndarray, "m m"]) -> Strengths:
    """Fits (1). ``wins[i, j]``: how often i beats j; ``ties[i, j]`` with i < j: how often they tie.

    Raises:
      UserError: some models never lost nor tied against the others.
    """
    models, both = len(wins), ties + ties.T
    if connected_components(wins + both > 0, connection="strong")[0] > 1:
        raise UserError(
            "Some models have won, or lost, every vote against the others, so their strength has "
            "no limit: collect more votes."
        )
    tied = bool(both.any())
    size = models + tied
    features, counts = [], []
    for i in range(models):
        for j in range(i + 1, models):
            if wins[i, j] + wins[j, i] + both[i, j] > 0:
                one = np.zeros((3, size))
                one[0, i] = one[2, j] = 1
                one[1, [i, j]] = 0.5
                if tied:
                    one[1, -1] = 1
                features.append(one)
                counts.append([wins[i, j], both[i, j], wins[j, i]])
    x, count = np.array(features), np.array(counts, np.float64)
    seen = count > 0
    possible = np.array([0.0, 0.0 if tied else -np.inf, 0.0])
    parameters = np.zeros(size)

    def probabilities(parameters: np.ndarray) -> tuple[np.ndarray, float]:
        logits = x @ parameters + possible
        logits -= np.logaddexp.reduce(logits, axis=1, keepdims=True)
        return np.exp(logits), float(np.sum(count[seen] * logits[seen]))

    information = np.zeros((size, size))
    for _ in range(_STEPS):
        chances, likelihood = probabilities(parameters)
        expected = chances * count.sum(1, keepdims=True)
        gradient = np.einsum("pk,pkf->f", count - expected, x)
        mean = np.einsum("pk,pkf->pf", chances, x)
        information = np.einsum("pk,pkf,pkg->fg", expected, x, x)
        information -= np.einsum("p,pf,pg->fg", count.sum(1), mean, mean)
        step = np.linalg.pinv(information, hermitian=True) @ gradient
        while probabilities(parameters + step)[1] < likelihood and np.abs(step).max() > _CLOSE:
            step /= 2
        parameters = parameters + step
        if np.abs(step).max() < _CLOSE:
            break
    covariance = np.linalg.pinv(information, hermitian=True)[:models, :models]
    strengths = parameters[:models] - parameters[:models].mean()
    return Strengths(strengths, float(parameters[-1]) if tied else -np.inf, covariance)


def ranked(
    votes: Mapping[tuple[int, int], Votes], models: int, seed: int = 0, resamples: int = 200
) -> list[Interval]:
    """Log-strengths of the models, numbered from 0, with their intervals. ``votes`` of (i, j) are
    those in which j is the second model. UserError as of :func:`bradley_terry`.
    """
    pairs = list(votes)
    joined = Votes(
        *(
            np.concatenate([getattr(one, name) for one in votes.values()])
            for name in ("prompt", "annotator", "outcome")
        )
    )
    which = np.repeat(np.arange(len(pairs)), [len(one) for one in votes.values()])
    first, second = np.array(pairs).T[:, which]

    def fit(weight: np.ndarray) -> np.ndarray:
        wins, ties = np.zeros((models, models)), np.zeros((models, models))
        for outcome, table, i, j in (
            (WIN, wins, second, first),
            (LOSE, wins, first, second),
            (TIE, ties, first, second),
        ):
            rows = joined.outcome == outcome
            np.add.at(table, (i[rows], j[rows]), weight[rows])
        return bradley_terry(wins, ties).log_strengths

    found = fit(np.ones(len(joined)))
    drawn = []
    for by_prompt, by_annotator in weights(joined, seed, resamples):
        try:
            drawn.append(fit((by_prompt * by_annotator).astype(np.float64)))
        except UserError:  # a resample may lack what keeps strengths finite
            continue
    reach = _DEVIATIONS * np.std(drawn, axis=0, ddof=1) if len(drawn) > 1 else np.inf
    return [
        Interval(float(value), float(value - r), float(value + r))
        for value, r in zip(found, np.broadcast_to(reach, found.shape), strict=True)
    ]
