"""The Gaussian process against its own algebra, written out separately, and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.errors import UserError
from emu_jax.process.gaussian import GaussianProcess, Prediction
from emu_jax.process.schedules import Cosine, Discrete, Flow, Shifted

PREDICTIONS = ["eps", "x0", "v", "flow"]
SCHEDULES = {"cosine": Cosine(), "discrete": Discrete(), "flow": Flow()}
KEY = jax.random.key(0)


def process_of(schedule, prediction, **fields):
    """Flow with eps prediction stops short of pure noise, where it would be refused."""
    bounds = (1e-3, 0.99) if schedule.zero_terminal else (1e-3, 1.0)
    return GaussianProcess(schedule, prediction, bounds=bounds, **fields)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_prediction_type_means_the_same_x0_and_eps(schedule):
    schedule = SCHEDULES[schedule]
    x0, eps = jax.random.normal(KEY, (2, 6, 4, 4, 3))
    t = jnp.array([0.05, 0.2, 0.4, 0.6, 0.8, 0.9])
    alpha, sigma = schedule.alpha(t)[:, None, None, None], schedule.sigma(t)[:, None, None, None]
    x = alpha * x0 + sigma * eps
    outputs = {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0, "flow": eps - x0}
    for prediction, output in outputs.items():
        process = process_of(schedule, prediction)
        got = process.predict(output, x, t)
        np.testing.assert_allclose(got.x0, x0, atol=2e-5, err_msg=prediction)
        np.testing.assert_allclose(got.eps, eps, atol=2e-5, err_msg=prediction)
        np.testing.assert_allclose(process.output(Prediction(x0, eps), t), output, atol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_corrupted_example_is_solved_by_its_target(schedule, prediction):
    process = process_of(SCHEDULES[schedule], prediction)
    x0 = jax.random.normal(KEY, (8, 4, 4, 2))
    got = process.corrupt(jax.random.key(1), x0)
    np.testing.assert_allclose(process.predict(got.target, got.x, got.t).x0, x0, atol=1e-3)
    np.testing.assert_array_equal(process.loss(got.target, got), np.zeros(8))
    np.testing.assert_allclose(process.loss(got.target + 2, got), np.full(8, 4.0), rtol=1e-5)


@pytest.mark.parametrize("variance", ["learned_range", "ignored"])
def test_a_variance_has_no_part_in_the_loss_and_is_read_where_it_is_asked_for(variance):
    plain = process_of(SCHEDULES["cosine"], "v")
    process = process_of(SCHEDULES["cosine"], "v", variance=variance)
    assert (plain.channels(3), process.channels(3)) == (3, 6)
    got = process.corrupt(KEY, jax.random.normal(KEY, (2, 4, 4, 3)))
    said, more = jax.random.normal(jax.random.key(1), (2, 2, 4, 4, 3))
    both = jnp.concatenate([said, more], -1)
    np.testing.assert_array_equal(process.loss(both, got), plain.loss(said, got))
    slope = jax.grad(lambda output: process.loss(output, got).sum())(both)
    assert jnp.all(slope[..., :3] != 0) and not jnp.any(slope[..., 3:])
    x0, eps, none = plain.predict(said, got.x, got.t)
    found = process.predict(both, got.x, got.t)
    np.testing.assert_array_equal(found.x0, x0)
    np.testing.assert_array_equal(found.eps, eps)
    assert none is None
    if variance == "learned_range":
        np.testing.assert_array_equal(found.variance, more)
    else:
        assert found.variance is None


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_corrupt_has_the_moments_of_the_forward_process(schedule):
    schedule = SCHEDULES[schedule]
    process = process_of(schedule, "v")
    t = jnp.repeat(jnp.array([0.1, 0.5, 0.95]), 400)
    x0 = jnp.full((1200, 8, 8, 1), 0.7)
    x = np.asarray(process.corrupt(KEY, x0, t).x).reshape(3, -1)
    times = jnp.array([0.1, 0.5, 0.95])
    np.testing.assert_allclose(x.mean(1), 0.7 * schedule.alpha(times), atol=0.025)
    np.testing.assert_allclose(x.std(1), schedule.sigma(times), rtol=0.02)


def test_noise_offset_adds_a_shared_deviation_to_every_channel():
    process = GaussianProcess(Cosine(), "v", noise_offset=0.5)
    got = process.corrupt(KEY, jnp.zeros((4000, 8, 8, 2)), 0.5)
    eps = np.asarray(process.predict(got.target, got.x, got.t).eps)
    means = eps.mean((1, 2))  # [b, c]: variance 1 / 64 of the plain noise, 0.25 of the offset
    np.testing.assert_allclose(means.var(0), 0.25 + 1 / 64, rtol=0.08)
    assert abs(np.corrcoef(means.T)[0, 1]) < 0.06
    np.testing.assert_allclose((eps - means[:, None, None]).var(), 63 / 64, rtol=0.01)
    # Where sampling starts has none of it.
    for x in (
        process.prior(KEY, (4000, 8, 8, 2)),
        process.sample_forward(KEY, jnp.zeros_like(eps), 1.0),
    ):
        np.testing.assert_allclose(np.asarray(x).mean((1, 2)).var(0), 1 / 64, rtol=0.1)


def test_no_noise_offset_is_the_same_bits_as_a_process_without_the_field():
    x0 = jax.random.normal(KEY, (3, 4, 4, 2))
    plain = GaussianProcess(Cosine()).corrupt(KEY, x0)
    offset = GaussianProcess(Cosine(), noise_offset=0.1).corrupt(KEY, x0)
    np.testing.assert_array_equal(plain.t, offset.t)
    extra = (offset.x - plain.x) / GaussianProcess(Cosine()).schedule.sigma(plain.t)[
        :, None, None, None
    ]
    np.testing.assert_allclose(extra, jnp.broadcast_to(extra[:, :1, :1], extra.shape), atol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_min_snr_weighs_the_square_error_of_x0(schedule, prediction):
    """weight x mse(output) = min(SNR, gamma) x mse(x0), whatever the network predicts."""
    process = process_of(SCHEDULES[schedule], prediction, weighting="min_snr", gamma=5.0)
    t = jnp.array([0.1, 0.3, 0.5, 0.7, 0.9])
    x0 = jax.random.normal(KEY, (5, 4, 4, 2))
    got = process.corrupt(jax.random.key(1), x0, t)
    output = got.target + 0.1 * jax.random.normal(jax.random.key(2), x0.shape)
    error = jnp.mean((process.predict(output, got.x, t).x0 - x0) ** 2, axis=(1, 2, 3))
    snr = (process.schedule.alpha(t) / process.schedule.sigma(t)) ** 2
    assert snr[0] > 5 > snr[-1]
    np.testing.assert_allclose(process.loss(output, got), np.minimum(snr, 5) * error, rtol=2e-3)


def test_min_snr_closed_forms_for_a_variance_preserving_schedule():
    t = jnp.linspace(0.05, 0.95, 10)
    snr = np.exp(Cosine().log_snr(t))
    forms = {
        "eps": np.minimum(snr, 5) / snr,
        "v": np.minimum(snr, 5) / (snr + 1),
        "x0": np.minimum(snr, 5),
    }
    for prediction, expected in forms.items():
        process = GaussianProcess(Cosine(), prediction, weighting="min_snr")
        np.testing.assert_allclose(process.weight(t), expected, rtol=1e-4)
    np.testing.assert_array_equal(GaussianProcess(Cosine()).weight(t), np.ones(10))


def test_what_the_network_is_told():
    t = jnp.array([0.001, 0.5, 1.0])
    np.testing.assert_array_equal(
        GaussianProcess(Discrete(), "eps", "index").timestep_input(t), [0.0, 499.0, 999.0]
    )
    np.testing.assert_allclose(
        GaussianProcess(Cosine()).timestep_input(t), [1, 500, 1000], rtol=1e-6
    )
    shifted = GaussianProcess(Shifted(Flow(), 3.0), "flow")
    np.testing.assert_allclose(shifted.timestep_input(t)[1], 750, rtol=1e-6)
    log_snr = GaussianProcess(Flow(), "flow", "log_snr").timestep_input(t)
    np.testing.assert_allclose(log_snr, [2 * np.log(999), 0, -20], atol=1e-5)


def test_times_are_drawn_uniformly_within_the_bounds():
    process = GaussianProcess(Flow(), "flow", bounds=(0.2, 0.6))
    t = np.asarray(process.corrupt(KEY, jnp.zeros((4000, 1))).t)
    assert 0.2 <= t.min() < 0.21 and 0.59 < t.max() <= 0.6
    np.testing.assert_allclose([t.mean(), t.std()], [0.4, 0.4 / 12**0.5], rtol=0.03)


def test_everything_is_fp32_inside():
    process = GaussianProcess(Cosine(), "v")
    got = process.corrupt(KEY, jnp.ones((2, 4, 4, 3), jnp.bfloat16))
    assert {field.dtype for field in got} == {jnp.dtype("float32")}
    half = got.target.astype(jnp.bfloat16)
    assert process.loss(half, got).dtype == jnp.float32
    assert process.predict(half, got.x.astype(jnp.bfloat16), got.t).x0.dtype == jnp.float32


def test_a_transform_acts_on_x0_and_eps_follows():
    process = GaussianProcess(Cosine(), "v")
    x, output = jax.random.normal(KEY, (2, 3, 4, 4, 1))
    t = jnp.full((3,), 0.6)
    got = process.predict(output, x, t, lambda x0: jnp.clip(x0, -0.1, 0.1))
    assert float(jnp.abs(got.x0).max()) == pytest.approx(0.1)
    alpha, sigma = process.schedule.alpha(t[0]), process.schedule.sigma(t[0])
    np.testing.assert_allclose(alpha * got.x0 + sigma * got.eps, x, atol=1e-5)


@pytest.mark.parametrize("schedule", [Discrete(zero_terminal_snr=True), Flow(), Shifted(Flow(), 2)])
def test_eps_prediction_is_refused_at_zero_terminal_snr(schedule):
    with pytest.raises(UserError, match="zero terminal SNR"):
        GaussianProcess(schedule, "eps")
    GaussianProcess(schedule, "v")


@pytest.mark.parametrize(
    "fields",
    [{"prediction": "epsilon"}, {"time_input": "steps"}, {"weighting": "snr"},
     {"bounds": (0.0, 1.0)}, {"bounds": (0.5, 0.4)}, {"noise_offset": -0.1}, {"gamma": 0.0},
     {"time_input": "index"}],
)  # fmt: skip
def test_refusals(fields):
    with pytest.raises(UserError, match=f"process.{next(iter(fields))}"):
        GaussianProcess(Cosine(), **fields)


def test_zero_terminal_targets_and_gradients_are_finite_at_pure_noise():
    process = GaussianProcess(Discrete(zero_terminal_snr=True), "v", weighting="min_snr")
    x0 = jax.random.normal(KEY, (2, 4, 4, 1))
    got = process.corrupt(KEY, x0, 1.0)
    grad = jax.grad(lambda out: process.loss(out, got).sum())(jnp.zeros_like(x0))
    assert np.isfinite(got.target).all() and np.isfinite(got.weight).all()
    assert np.isfinite(grad).all()
    np.testing.assert_allclose(got.target, -x0, atol=1e-6)  # all that is left to predict


def test_logit_normal_times_have_the_quantiles_of_their_density():
    process = GaussianProcess(
        Cosine(), "v", time_density="logit_normal", time_location=0.6, time_scale=1.2
    )
    t = np.asarray(process.corrupt(KEY, jnp.zeros((20_000, 1, 1, 1))).t)
    # The quartiles of N(0.6, 1.2^2) through the logistic function: sigmoid is monotonic.
    wanted = 1 / (1 + np.exp(-(0.6 + 1.2 * np.array([-0.674490, 0.0, 0.674490]))))
    np.testing.assert_allclose(np.quantile(t, (0.25, 0.5, 0.75)), wanted, atol=0.01)
    assert t.min() >= 1e-3 and t.max() <= 1.0


def test_uniform_times_fill_their_bounds_evenly():
    process = GaussianProcess(Cosine(), "v", bounds=(0.2, 0.6))
    t = np.asarray(process.corrupt(KEY, jnp.zeros((20_000, 1, 1, 1))).t)
    np.testing.assert_allclose(np.quantile(t, (0.25, 0.5, 0.75)), (0.3, 0.4, 0.5), atol=0.01)


@pytest.mark.parametrize("fields", [{"time_density": "normal"}, {"time_scale": 0.0}])
def test_a_density_that_makes_no_sense_is_refused(fields):
    with pytest.raises(UserError, match=next(iter(fields))):
        GaussianProcess(Cosine(), "v", **fields)
