import numpy as np
import pytest

from emu_jax.errors import UserError
from emu_jax.evaluation import metrics
from emu_jax.evaluation.metrics import Interval, Probe


def normal(*shape, seed=0, mean=0.0, std=1.0):
    return np.random.default_rng(seed).normal(mean, std, shape)


def white(n, d, seed=0):
    """Rows whose mean is exactly 0 and whose covariance is exactly 1."""
    x = normal(n, d, seed=seed)
    return np.linalg.qr(x - x.mean(0))[0] * np.sqrt(n - 1)


def test_an_interval_reads_as_words():
    interval = Interval(0.6149, 0.52, 0.7)
    assert str(interval) == f"{interval}" == "0.61 (0.52 to 0.70)"
    assert f"{interval:.1%}" == "61.5% (52.0% to 70.0%)"


def test_images_of_one_prompt_are_no_independent_units():
    """Five equal images of each prompt say no more than one."""
    x, b = normal(20, 3), normal(30, 3, seed=1)
    five = np.repeat(x, 5, axis=0)
    assert metrics.by_prompt(five[:, 0], 5) == pytest.approx(x[:, 0])
    frechet = metrics.frechet_to(b)
    one = metrics.statistic_interval(lambda a: np.mean(a) + 1, x, resamples=50)
    assert metrics.statistic_interval(lambda a: np.mean(a) + 1, five, resamples=50, repeats=5) == (
        pytest.approx(one)
    )
    wide, narrow = (
        np.ptp(metrics.statistic_interval(frechet, five, repeats=repeats)[1:]) for repeats in (5, 1)
    )
    assert wide > 1.5 * narrow
    wide, narrow = (np.ptp(metrics.mmd_interval(five, b, repeats=n)[1:]) for n in (5, 1))
    assert wide > 1.5 * narrow


def test_top_k_counts_better_candidates_and_ties_count_against():
    similarity = np.array([[3, 2, 1], [2, 3, 1], [2, 2, 1], [1, 1, 1], [np.nan, 1, 1]])
    truth = np.zeros(5, int)
    assert metrics.top_k(similarity, truth, 1).tolist() == [True, False, False, False, False]
    assert metrics.top_k(similarity, truth, 2).tolist() == [True, True, True, False, False]
    assert metrics.top_k(similarity, truth, 3).all()
    random = normal(200, 7)
    truth = np.random.default_rng(1).integers(7, size=200)
    best = np.argsort(-random, axis=1)[:, :2]
    np.testing.assert_array_equal(metrics.top_k(random, truth, 2), (best == truth[:, None]).any(1))


def test_frechet_of_diagonal_gaussians_is_the_closed_form():
    mean, std_a, std_b = np.array([1.0, -2.0, 0.0]), np.array([1, 2, 3]), np.array([2, 2, 0.5])
    a, b = white(50, 3) * std_a, white(80, 3, seed=1) * std_b + mean
    expected = np.sum(mean**2) + np.sum((std_a - std_b) ** 2)
    assert metrics.frechet(a, b) == pytest.approx(expected, rel=1e-10)


def test_frechet_of_any_covariances_is_the_textbook_formula():
    a, b = normal(60, 5) @ normal(5, 5, seed=1), normal(90, 5, seed=2) @ normal(5, 5, seed=3) + 1
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    roots = np.sqrt(np.linalg.eigvals(cov_a @ cov_b).real).sum()
    means = np.sum((a.mean(0) - b.mean(0)) ** 2)
    expected = means + np.trace(cov_a) + np.trace(cov_b) - 2 * roots
    assert metrics.frechet(a, b) == pytest.approx(expected, rel=1e-10)


def test_frechet_holds_where_covariances_have_no_full_rank():
    # 6 rows in 40 dimensions; b is a, larger by half and turned not at all: (1 - 1.5)^2 tr C.
    a = normal(6, 40)
    centred = a - a.mean(0)
    expected = 0.25 * np.trace(np.cov(a.T))
    assert metrics.frechet(centred, 1.5 * centred) == pytest.approx(expected, rel=1e-10)
    # Disjoint subspaces: nothing overlaps, both traces remain.
    b = np.where(np.arange(40) < 20, centred, 0.0)
    c = np.where(np.arange(40) < 20, 0.0, centred)
    both = np.trace(np.cov(b.T)) + np.trace(np.cov(c.T))
    assert metrics.frechet(b, c) == pytest.approx(both, rel=1e-10)
    assert all(0 <= metrics.frechet(x, x) < 1e-12 for x in normal(20, 6, 40))  # rounding too
    assert metrics.frechet(np.ones((3, 4)), np.full((2, 4), 3.0)) == pytest.approx(16)


def slow_mmd(a, b):
    def kernel(x, y):
        return (np.dot(x, y) / len(x) + 1) ** 3

    n, m = len(a), len(b)
    within_a = sum(kernel(a[i], a[j]) for i in range(n) for j in range(n) if i != j)
    within_b = sum(kernel(b[i], b[j]) for i in range(m) for j in range(m) if i != j)
    across = sum(kernel(x, y) for x in a for y in b)
    return within_a / (n * (n - 1)) + within_b / (m * (m - 1)) - 2 * across / (n * m)


def test_mmd_is_its_double_loop():
    a, b = normal(12, 5), normal(9, 5, seed=1, mean=0.5)
    assert metrics.mmd(a, b) == pytest.approx(slow_mmd(a, b), rel=1e-10)


def test_mmd_has_mean_zero_between_equal_distributions():
    found = [
        metrics.mmd(normal(15, 4, seed=2 * seed), normal(15, 4, seed=2 * seed + 1))
        for seed in range(400)
    ]
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found)) < 2.5 * error
    biased = np.mean((np.sum(normal(15, 4) ** 2, 1) / 4 + 1) ** 3 - 1) / 15  # with i = j counted
    assert biased > 10 * error  # the test would notice


def test_the_interval_of_mmd_has_its_sampling_width_around_its_value():
    b = normal(300, 4, seed=10_000, mean=0.7)
    fresh = [metrics.mmd(normal(40, 4, seed=seed), b) for seed in range(300)]
    found = [metrics.mmd_interval(normal(40, 4, seed=seed), b, 300) for seed in range(20)]
    value, low, high = np.mean(found, axis=0)
    assert found[0].value == metrics.mmd(normal(40, 4), b)
    assert high - low == pytest.approx(2 * 1.96 * np.std(fresh), rel=0.2)
    # Duplicates that meet themselves would lift the middle by more than this.
    lifted = np.mean((np.sum(normal(1000, 4) ** 2, 1) / 4 + 1) ** 3 - 1) / 40
    assert abs((low + high) / 2 - value) < 0.3 * lifted
    # Of equal rows every resample is the same.
    assert metrics.mmd_interval(np.ones((5, 4)), b) == pytest.approx(
        [metrics.mmd(np.ones((5, 4)), b)] * 3
    )
    low, high = metrics.mmd_interval(normal(3, 4), b)[1:]  # some resamples have no pairs
    assert np.isfinite([low, high]).all()


def test_bootstrap_agrees_with_normal_theory():
    x = np.random.default_rng(0).exponential(size=400)
    reach = 1.96 * x.std(ddof=1) / np.sqrt(len(x))
    for found in (metrics.mean_interval(x), metrics.statistic_interval(np.mean, x, resamples=500)):
        assert found.value == x.mean()
        assert found.low == pytest.approx(x.mean() - reach, abs=0.1 * reach)
        assert found.high == pytest.approx(x.mean() + reach, abs=0.1 * reach)


def test_the_interval_of_a_mean_covers_it_as_often_as_normal_theory():
    samples = normal(300, 60)
    found = [metrics.mean_interval(x, resamples=200) for x in samples]
    covered = np.mean([interval.low <= 0 <= interval.high for interval in found])
    reach = 1.96 * samples.std(1) / np.sqrt(60)
    expected = np.mean(np.abs(samples.mean(1)) <= reach)
    assert covered == pytest.approx(expected, abs=0.015)


def test_a_paired_difference_forgets_what_the_pairs_share():
    prompt, b_gain = normal(100, std=10), normal(100, seed=1, mean=0.5, std=0.1)
    found = metrics.difference_interval(prompt, prompt + b_gain)
    assert found.value == pytest.approx(b_gain.mean())
    assert 0.4 < found.low < 0.5 < found.high < 0.6


def test_intervals_are_functions_of_their_seed():
    x, y = normal(30, 3), normal(40, 3, seed=1)
    for of in (
        lambda seed: metrics.mean_interval(x[:, 0], seed),
        lambda seed: metrics.mmd_interval(x, y, 50, seed),
        lambda seed: metrics.statistic_interval(metrics.frechet, x, y, resamples=20, seed=seed),
    ):
        assert of(3) == of(3) != of(4)


def test_the_interval_of_a_statistic_resamples_the_first_array_only():
    def of_both(x, y):
        assert y is rest
        return x.mean() + y.mean()

    rest = normal(20)
    found = metrics.statistic_interval(of_both, np.ones(10), rest, resamples=5)
    assert found == pytest.approx([1 + rest.mean()] * 3)


def test_the_interval_of_frechet_has_its_sampling_width():
    b = normal(400, 3, seed=10_000, mean=1.0)
    fresh = [metrics.frechet(normal(80, 3, seed=seed), b) for seed in range(200)]
    found = [
        metrics.statistic_interval(metrics.frechet, normal(80, 3, seed=seed), b)
        for seed in range(10)
    ]
    width = np.mean([interval.high - interval.low for interval in found])
    assert width == pytest.approx(2 * 1.96 * np.std(fresh), rel=0.2)


def test_a_duel_is_b_against_a():
    a, b = np.zeros(8), np.array([1, 0.6, 0.5, 0.5, 0, -0.5, -1, 3])
    assert metrics.duel(a, b, 0.5) == (3 / 8, 4 / 8, 1 / 8)
    assert metrics.duel(b, a, 0.5) == (1 / 8, 4 / 8, 3 / 8)


def test_a_probe_of_one_switch_finds_the_odds_whatever_the_counts():
    # Switched on in 3 of 4 positives and 1 of 4 negatives: the closed form is 3/4 and 1/4.
    positive = np.tile([[1.0], [1.0], [1.0], [0.0]], (20, 1))
    negative = np.array([[0.0], [0.0], [1.0], [0.0]])
    probe = Probe.fit(positive, negative, l2=0)
    np.testing.assert_allclose(probe.probability(np.array([[1.0], [0.0]])), [0.75, 0.25], atol=1e-6)


@pytest.mark.parametrize("mean", [0.5, 10.0])  # overlapping, separable
def test_a_probe_is_where_the_gradient_vanishes(mean):
    scale = np.array([1.0, 100.0, 0.01])
    positive, negative = normal(40, 3, mean=mean) * scale, normal(90, 3, seed=1) * scale
    probe = Probe.fit(positive, negative, l2=0.05)

    def objective(weights, bias):
        def cost(x, y):
            z = (x - probe.centre) / probe.scale
            return np.mean(np.log1p(np.exp(-y * (z @ weights + bias))))

        both = cost(positive, 1) + cost(negative, -1)
        return both / 2 + 0.025 * np.sum(weights**2)

    best, step = np.append(probe.weights, probe.bias), 1e-4
    slopes = [
        (objective(*split(best + move)) - objective(*split(best - move))) / (2 * step)
        for move in step * np.eye(4)
    ]
    np.testing.assert_allclose(slopes, 0, atol=1e-6)
    right = np.append(probe.probability(positive) > 0.5, probe.probability(negative) < 0.5)
    assert right.all() if mean == 10 else 0.6 < right.mean() < 1


def split(parameters):
    return parameters[:-1], parameters[-1]


def test_a_probe_does_not_see_a_constant_feature():
    def widened(x, value):
        return np.hstack([x, np.full((len(x), 1), value)])

    positive, negative = normal(30, 2, mean=1), normal(31, 2, seed=1)
    plain = Probe.fit(positive, negative)
    probe = Probe.fit(widened(positive, 0.1), widened(negative, 0.1))
    x = normal(10, 2, seed=2)
    np.testing.assert_allclose(probe.probability(widened(x, 5.0)), plain.probability(x), atol=1e-5)


@pytest.mark.parametrize("n", [1, 7, 100])
def test_equal_rows_have_the_exact_binomial_bound(n):
    none, every = np.zeros(n, bool), np.ones(n, bool)
    value, low, high = metrics.share_interval(none)
    assert value == low == 0 and (1 - high) ** n == pytest.approx(0.025)
    assert metrics.share_interval(every) == pytest.approx((1, 1 - high, 1))
    assert metrics.share_difference_interval(every, every) == pytest.approx((0, -high, high))
    assert metrics.share_difference_interval(none, every) == pytest.approx((1, 1 - high, 1))
    assert metrics.share_difference_interval(every, none) == pytest.approx((-1, -1, high - 1))


def test_rows_that_differ_keep_the_bootstrap():
    hits = np.arange(50) % 3 == 0
    assert metrics.share_interval(hits) == metrics.mean_interval(hits)
    assert metrics.share_difference_interval(~hits, hits) == metrics.difference_interval(
        ~hits, hits
    )


@pytest.mark.usefixtures("unchecked_arrays")
def test_what_cannot_be_compared_is_refused():
    with pytest.raises(UserError, match=r"\[4, 3\] and \[4, 2\]"):
        metrics.frechet(np.ones((4, 3)), np.ones((4, 2)))
    with pytest.raises(UserError, match="at least two rows"):
        metrics.mmd(np.ones((1, 3)), np.ones((4, 3)))
    with pytest.raises(UserError, match="not finite"):
        metrics.frechet(np.full((4, 3), np.nan), np.ones((4, 3)))
    with pytest.raises(UserError, match="3 and 4 values"):
        metrics.difference_interval(np.ones(3), np.ones(4))
    with pytest.raises(UserError, match="non-empty"):
        metrics.mean_interval(np.ones(0))
