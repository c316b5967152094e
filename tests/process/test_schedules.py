"""Schedules against diffusers' tables and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

from emu_jax.errors import UserError
from emu_jax.process.schedules import Cosine, Discrete, Flow, Shifted

TABLES = {
    "linear": (Discrete("linear", 1e-4, 0.02), "linear"),
    "scaled_linear": (Discrete(), "scaled_linear"),
    "cosine": (Discrete("cosine"), "squaredcos_cap_v2"),
}
GRID = jnp.arange(1, 1001, dtype=jnp.float32) / 1000
ALL = {
    "cosine": Cosine(),
    "flow": Flow(),
    "discrete": Discrete(),
    "zero_terminal": Discrete(zero_terminal_snr=True),
    "shifted_cosine": Shifted(Cosine(), 2.0),
    "shifted_flow": Shifted(Flow(), 3.0),
    "shifted_discrete": Shifted(Discrete(zero_terminal_snr=True), 2.0),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_diffusers(name):
    schedule, theirs = TABLES[name]
    oracle = DDPMScheduler(
        beta_schedule=theirs, beta_start=schedule.beta_start, beta_end=schedule.beta_end
    )
    cumprod = oracle.alphas_cumprod.numpy()
    np.testing.assert_allclose(schedule.betas(), oracle.betas.numpy(), rtol=2e-6, atol=1e-9)
    np.testing.assert_allclose(schedule.alpha(GRID) ** 2, cumprod, rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(schedule.sigma(GRID) ** 2, 1 - cumprod, rtol=2e-4, atol=1e-6)


def test_zero_terminal_rescaling_is_diffusers():
    schedule = Discrete(zero_terminal_snr=True)
    betas = rescale_zero_terminal_snr(
        DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).betas
    )
    cumprod = np.cumprod(1 - betas.numpy().astype(np.float64))
    np.testing.assert_allclose(schedule.alpha(GRID) ** 2, cumprod, atol=1e-6)
    end = jnp.float32(1)
    assert schedule.alpha(end) == 0 and schedule.sigma(end) == 1 and schedule.zero_terminal
    assert schedule.log_snr(end) == -jnp.inf


def test_discrete_is_exact_on_its_grid():
    schedule = Discrete()
    alphas = schedule.alphas()
    np.testing.assert_array_equal(schedule.alpha(GRID), alphas.astype(np.float32))
    np.testing.assert_array_equal(schedule.sigma(GRID), np.sqrt(1 - alphas**2).astype(np.float32))
    np.testing.assert_array_equal(schedule.index(GRID), np.arange(1000))
    np.testing.assert_array_equal(jax.jit(schedule.index)(GRID), np.arange(1000))


def test_discrete_interpolates_log_snr_between_its_steps():
    schedule = Discrete()
    low, middle, high = schedule.log_snr(jnp.array([0.5, 0.50025, 0.501]))
    np.testing.assert_allclose(middle, 0.75 * low + 0.25 * high, rtol=1e-5)
    alpha = schedule.alpha(jnp.float32(0.50025))
    np.testing.assert_allclose(alpha, jnp.sqrt(jax.nn.sigmoid(middle)), rtol=1e-5)


@pytest.mark.parametrize("schedule", [Discrete(), Flow()])
def test_time_zero_is_clean(schedule):
    start = jnp.float32(0)
    assert schedule.alpha(start) == 1 and schedule.sigma(start) == 0


def test_cosine_is_a_cosine_with_bounded_log_snr():
    schedule = Cosine()
    t = jnp.linspace(0.05, 0.95, 19)
    np.testing.assert_allclose(schedule.alpha(t), np.cos(np.pi / 2 * t), atol=1e-4)
    np.testing.assert_allclose(schedule.sigma(t), np.sin(np.pi / 2 * t), atol=1e-4)
    np.testing.assert_allclose(schedule.log_snr(jnp.array([0.0, 1.0])), [20, -20], rtol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_log_snr_agrees_with_alpha_and_sigma_and_falls(name):
    schedule = ALL[name]
    t = jnp.linspace(0.002, 0.998, 200)
    ratio = 2 * jnp.log(schedule.alpha(t) / schedule.sigma(t))
    np.testing.assert_allclose(schedule.log_snr(t), ratio, rtol=1e-4, atol=2e-4)
    assert np.all(np.diff(schedule.log_snr(t)) < 0)


@pytest.mark.parametrize("name", ALL)
def test_at_log_snr_is_the_inverse(name):
    schedule = ALL[name]
    t = jnp.linspace(0.0004, 0.999, 301)
    # A shifted cosine is cut where the base's own log-SNR ends.
    t = jnp.clip(t, 0.002, 0.998) if name == "shifted_cosine" else t
    np.testing.assert_allclose(schedule.at_log_snr(schedule.log_snr(t)), t, atol=2e-5)


@pytest.mark.parametrize("base", [Cosine(), Flow(), Discrete(zero_terminal_snr=True)])
def test_shift_multiplies_the_noise_to_signal_ratio(base):
    t = jnp.linspace(0.05, 0.9, 18)
    shifted = Shifted(base, 1.5)
    ratio = shifted.sigma(t) / shifted.alpha(t) / (base.sigma(t) / base.alpha(t))
    np.testing.assert_allclose(ratio, 1.5, rtol=5e-4)


def test_shifted_flow_is_the_usual_time_warp():
    t = jnp.linspace(0, 1, 11)
    np.testing.assert_allclose(Shifted(Flow(), 3.0).sigma(t), 3 * t / (1 + 2 * t), atol=1e-6)
    np.testing.assert_allclose(Shifted(Flow(), 3.0).network_time(t), 3 * t / (1 + 2 * t), atol=1e-6)


def test_training_times_of_a_discrete_schedule_are_its_steps_each_as_likely():
    u = (jnp.arange(10_000) + 0.5) / 10_000
    index = Discrete().index(Discrete().training_time(u, 1e-3, 1.0))
    np.testing.assert_array_equal(np.bincount(np.asarray(index, int)), np.full(1000, 10))
    part = Discrete().index(Discrete().training_time(u, 0.201, 0.3))
    np.testing.assert_array_equal(np.unique(part), np.arange(200, 300))


def test_refusals():
    with pytest.raises(UserError, match="quadratic"):
        Discrete("quadratic")
    with pytest.raises(UserError, match="integer steps"):
        Flow().index(jnp.float32(0.5))
    with pytest.raises(UserError, match="above 0"):
        Shifted(Flow(), 0.0)
    with pytest.raises(UserError, match="zero_terminal_snr"):
        Shifted(Discrete(), 2.0)
