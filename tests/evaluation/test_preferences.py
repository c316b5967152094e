"""Statistics of preferences, against closed forms and published tables."""

import math

import krippendorff
import numpy as np
import pytest

from emu_jax.errors import UserError
from emu_jax.evaluation.agreement import fleiss_kappa, krippendorff_alpha
from emu_jax.evaluation.preferences import (
    Votes,
    accuracy,
    exact,
    majority,
    pairs_needed,
    power_of,
    preference,
    smallest_share,
    wilson,
)
from emu_jax.evaluation.ranking import bradley_terry, ranked


@pytest.mark.parametrize(
    ("counts", "outcome"),
    [
        ((3, 0, 2), 1),
        ((3, 1, 1), 1),
        ((2, 0, 3), -1),
        ((1, 3, 1), 0),
        ((2, 1, 2), 0),  # no majority
        ((1, 1, 1), 0),
        ((2, 2, 1), 0),
        ((2, 1, 1), 0),  # exactly half is none
        ((1, 0, 0), 1),
    ],
)
def test_a_majority_has_more_than_half_of_the_votes(counts, outcome):
    assert majority(np.array(counts)) == outcome
    assert majority(np.array([counts] * 2)).tolist() == [outcome] * 2


@pytest.mark.parametrize(  # Newcombe 1998, table I, methods 3 and 5
    ("count", "of", "by_wilson", "by_clopper_pearson"),
    [
        (81, 263, (0.2553, 0.3662), (0.2527, 0.3676)),
        (15, 148, (0.0624, 0.1605), (0.0578, 0.1617)),
        (0, 20, (0.0, 0.1611), (0.0, 0.1684)),
        (1, 29, (0.0061, 0.1718), (0.0009, 0.1776)),
    ],
)
def test_intervals_are_those_of_the_published_table(count, of, by_wilson, by_clopper_pearson):
    assert wilson(count, of)[1:] == pytest.approx(by_wilson, abs=6e-5)
    assert exact(count, of)[1:] == pytest.approx(by_clopper_pearson, abs=6e-5)
    assert wilson(count, of).value == count / of


def test_power_is_that_of_the_textbook():
    """783 pairs for 55 % (Fleiss, Levin and Paik), and the exact test is near."""
    assert pairs_needed(0.55) == 783
    assert pairs_needed(0.45) == 783
    assert pairs_needed(0.6) == 194
    assert 0.78 < power_of(783, 0.55) < 0.8  # the exact test is discrete and keeps below 5 %
    assert 0.04 < power_of(783, 0.5) <= 0.05
    assert power_of(6, 0.5) == pytest.approx(2 / 64)  # 0 or 6 of 6: the only samples that reject
    assert power_of(5, 0.9) == 0  # even 5 of 5 have p = 0.0625
    assert smallest_share(783) == pytest.approx(0.55, abs=1e-4)
    assert smallest_share(3) == 1.0


def test_shares_count_pairs_and_the_sign_test_is_exact():
    votes = Votes(
        prompt=np.repeat([7, 3, 9], [3, 3, 1]),
        annotator=np.array([0, 1, 2, 0, 1, 2, 0]),
        outcome=np.array([1, 1, -1, 1, -1, 0, 1]),
    )
    assert votes.counts().tolist() == [[1, 1, 1], [2, 0, 1], [1, 0, 0]]
    found = preference(votes, resamples=50)
    assert (found.win.count, found.tie.count, found.lose.count, found.pairs) == (2, 1, 0, 3)
    assert found.p == 0.5  # two wins of two: 2 / 2^2
    full = votes.complete(3)
    assert set(full.prompt) == {3, 7} and preference(full, resamples=50).pairs == 2
    same = preference(votes.of(np.array([9])), resamples=50)
    assert same.win.resampled == same.win.exact  # no spread to resample


def simulated(generator, prompts=150, people=12, each=5, tie=0.1, spread=0.8, lead=0.5, bias=0.5):
    """Votes by known preferences: every prompt has a lead of its own, every annotator a bias."""
    leads = lead + spread * generator.normal(size=prompts)
    biases = bias * generator.normal(size=people)
    voters = np.argsort(generator.random((prompts, people)), axis=1)[:, :each]
    prompt = np.repeat(np.arange(prompts), each)
    chance = 1 / (1 + np.exp(-(leads[prompt] + biases[voters.ravel()])))
    outcome = np.where(generator.random(len(prompt)) < chance, 1, -1)
    outcome[generator.random(len(prompt)) < tie] = 0
    return Votes(prompt, voters.ravel(), outcome)


def test_a_simulated_study_gives_its_preferences_back_within_its_intervals():
    """The true share is that of very many prompts and annotators. Wilson's interval knows nothing
    of annotators who share a bias; the resampled one does.
    """
    generator = np.random.default_rng(0)
    many = simulated(generator, prompts=8000, people=300)
    truth = np.mean(majority(many.counts()) == 1)
    found = [preference(simulated(generator), i, resamples=40).win for i in range(60)]
    covered = np.mean([one.resampled.low <= truth <= one.resampled.high for one in found])
    assert 0.93 <= covered <= 1
    assert np.mean([one.value for one in found]) == pytest.approx(truth, abs=0.03)
    wide = np.mean([one.resampled.high - one.resampled.low for one in found])
    assert wide < 0.4  # and it still says something


# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", part C: 4 observers, 12 units.
OBSERVED = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, 0, 0, 0],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, 0, 3],
    [0, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, 0],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, 0],
]


def test_alpha_is_that_of_the_published_example():
    data = np.array(OBSERVED)
    counts = np.stack([(data == value).sum(0) for value in range(1, 6)], axis=1)
    assert krippendorff_alpha(counts) == pytest.approx(0.743, abs=5e-4)
    scale = np.arange(1.0, 6)
    assert krippendorff_alpha(counts, scale) == pytest.approx(0.849, abs=5e-4)
    drawn = np.random.default_rng(0).integers(0, 4, (30, 3))
    for level, values in (("nominal", None), ("interval", np.array([1.0, 0.0, -1.0]))):
        domain = [1.0, 0.0, -1.0]
        oracle = krippendorff.alpha(
            value_counts=drawn, value_domain=domain, level_of_measurement=level
        )
        assert krippendorff_alpha(drawn, values) == pytest.approx(oracle, abs=1e-12)
    assert krippendorff_alpha(np.array([[3, 0], [0, 3]])) == 1
    assert math.isnan(krippendorff_alpha(np.array([[3, 0], [3, 0]])))
    assert math.isnan(krippendorff_alpha(np.array([[1, 0], [0, 1]])))  # no unit with two votes


def test_kappa_is_that_of_the_published_example():
    """14 psychiatrists, 10 patients, 5 categories: 0.210."""
    table = """0 0 0 0 14
        0 2 6 4 2
        0 0 3 5 6
        0 3 9 2 0
        2 2 8 1 1
        7 7 0 0 0
        3 2 6 3 0
        2 5 3 2 2
        6 5 2 1 0
        0 2 2 3 7"""
    counts = np.array([line.split() for line in table.splitlines()], np.int64)
    assert fleiss_kappa(counts) == pytest.approx(0.210, abs=5e-4)
    assert fleiss_kappa(np.array([[3, 0], [0, 3]])) == 1
    assert math.isnan(fleiss_kappa(np.array([[3, 0], [3, 0]])))
    with pytest.raises(UserError, match="same number of votes"):
        fleiss_kappa(np.array([[3, 0], [2, 0]]))


def test_strengths_are_those_of_the_published_example():
    """Agresti's baseball teams of 1987, as fitted in Firth 2005 (BradleyTerry), Baltimore 0."""
    wins = np.array(
        [  # Milwaukee, Detroit, Toronto, New York, Boston, Cleveland, Baltimore
            [0, 7, 9, 7, 7, 9, 11],
            [6, 0, 7, 5, 11, 9, 9],
            [4, 6, 0, 7, 7, 8, 12],
            [6, 8, 6, 0, 6, 7, 10],
            [6, 2, 6, 7, 0, 7, 12],
            [4, 4, 5, 6, 6, 0, 6],
            [2, 4, 1, 3, 1, 7, 0],
        ],
        np.float64,
    )
    found = bradley_terry(wins, np.zeros((7, 7)))
    strengths = found.log_strengths - found.log_strengths[-1]
    published = [1.5814, 1.4364, 1.2945, 1.2476, 1.1077, 0.6839, 0]
    assert strengths == pytest.approx(published, abs=5e-4)
    errors = [
        math.sqrt(found.covariance[i, i] + found.covariance[6, 6] - 2 * found.covariance[i, 6])
        for i in range(6)
    ]
    assert errors == pytest.approx([0.3433, 0.3396, 0.3367, 0.3359, 0.3339, 0.3319], abs=5e-4)
    assert found.log_ties == -np.inf


def test_two_models_with_ties_have_a_closed_form():
    wins, ties = np.array([[0.0, 30.0], [50.0, 0.0]]), np.array([[0.0, 20.0], [0.0, 0.0]])
    found = bradley_terry(wins, ties)
    assert found.log_strengths[1] - found.log_strengths[0] == pytest.approx(math.log(50 / 30))
    assert found.log_ties == pytest.approx(math.log(20 / math.sqrt(30 * 50)))
    with pytest.raises(UserError, match="no limit"):
        bradley_terry(np.array([[0.0, 0.0], [5.0, 0.0]]), np.zeros((2, 2)))


def test_known_strengths_of_four_models_come_back():
    generator, strengths, ties = np.random.default_rng(0), np.array([-0.6, -0.1, 0.2, 0.5]), 0.6
    votes = {}
    for i in range(4):
        for j in range(i + 1, 4):
            a, b = np.exp(strengths[[i, j]])
            chances = np.array([b, ties * math.sqrt(a * b), a])
            outcome = 1 - generator.choice(3, size=600, p=chances / chances.sum())
            votes[i, j] = Votes(np.arange(600) % 120, np.arange(600) % 20, outcome)
    found = ranked(votes, 4, resamples=40)
    for one, truth in zip(found, strengths, strict=True):
        assert one.low < truth < one.high and one.high - one.low < 0.5
    assert sum(one.value for one in found) == pytest.approx(0)


def test_a_metric_is_measured_by_the_pairs_that_people_decide():
    outcomes = np.array([1, 1, -1, 0, -1])
    leads = np.array([0.3, -0.1, -2.0, 5.0, 0.0])
    found = accuracy(outcomes, leads)
    assert found.value == (1 + 0 + 1 + 0.5) / 4
