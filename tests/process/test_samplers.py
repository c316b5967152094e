"""Samplers against a closed form: Gaussian data have an exact denoiser.

For x0 ~ N(mu, c^2) in every dimension, x at t is N(alpha mu, v), v = alpha^2 c^2 + sigma^2, and

    E[x0 | x] = mu + c^2 alpha (x - alpha mu) / v

The probability-flow ODE keeps (x - alpha mu) / sqrt(v), so it maps x at t = 1 onto
mu + c (x - alpha mu) / sqrt(v).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.process.gaussian import GaussianProcess, Prediction
from emu_jax.process.samplers import DDIM, Ancestral, DPMSolverPP2M, Euler, Heun
from emu_jax.process.sampling import sample, time_grid
from emu_jax.process.schedules import Cosine, Discrete, Flow

MU, C = 0.4, 0.5
PROCESSES = {
    "cosine": GaussianProcess(Cosine(), "v"),
    "scaled_linear": GaussianProcess(Discrete(), "eps", "index"),
    "zero_terminal": GaussianProcess(Discrete(zero_terminal_snr=True), "v", "index"),
    "flow": GaussianProcess(Flow(), "flow"),
}
DETERMINISTIC = {"ddim": (DDIM(), 1), "heun": (Heun(), 2), "dpmpp_2m": (DPMSolverPP2M(), 2)}


def exact_denoiser(process):
    def denoise(x, t):
        t = t.reshape(-1, *(1,) * (x.ndim - 1))
        alpha, sigma = process.schedule.alpha(t), process.schedule.sigma(t)
        variance = alpha**2 * C**2 + sigma**2
        x0 = MU + C**2 * alpha * (x - alpha * MU) / variance
        eps = sigma * (x - alpha * MU) / variance
        return process.output(Prediction(x0, eps), t.reshape(-1))

    return denoise


@partial(jax.jit, static_argnums=(0, 1))
def run(process, sampler, times, key, x):
    return sample(exact_denoiser(process), process, sampler, times, key, x)


def flow_map(process, x, t=1.0, s=0.0):
    """x at s on the trajectory through x at t."""

    def moments(time):
        time = jnp.float32(time)
        alpha, sigma = process.schedule.alpha(time), process.schedule.sigma(time)
        return alpha * MU, jnp.sqrt(alpha**2 * C**2 + sigma**2)

    (mean_t, std_t), (mean_s, std_s) = moments(t), moments(s)
    return mean_s + std_s * (x - mean_t) / std_t


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_the_error_falls_at_the_samplers_order(process, name):
    """In equal steps of log-SNR, away from the ends: the last step, to t = 0, is of 1st order."""
    process = PROCESSES[process]
    sampler, order = DETERMINISTIC[name]
    x = jnp.linspace(-2, 2, 9).reshape(1, 9)
    ends = process.schedule.log_snr(jnp.array([0.9, 0.1]))
    errors = []
    for n in (20, 40, 80):
        times = process.schedule.at_log_snr(jnp.linspace(*ends, n + 1))
        got = run(process, sampler, times, jax.random.key(0), x)
        errors.append(float(jnp.abs(got - flow_map(process, x, times[0], times[-1])).max()))
    observed = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(observed[-1], order, atol=0.3, err_msg=f"{errors}")


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_from_noise_to_picture_along_the_flow(process, name):
    process = PROCESSES[process]
    x = jnp.linspace(-2, 2, 9).reshape(1, 9)
    for spacing in ("trailing", "uniform", "karras"):
        times = time_grid(process, 80, spacing)
        got = run(process, DETERMINISTIC[name][0], times, jax.random.key(0), x)
        error = float(jnp.abs(got - flow_map(process, x)).max())
        # Stable Diffusion's sigma rises as the square root of t: its last step costs the most.
        assert error < (0.05 if name == "ddim" or process.schedule.steps else 0.01), spacing


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("sampler", [Ancestral(), DDIM(eta=0.5)], ids=["ancestral", "eta_half"])
def test_stochastic_samplers_close_in_on_mean_and_variance(process, sampler):
    process = PROCESSES[process]
    x0 = MU + C * jax.random.normal(jax.random.key(3), (20_000, 2))
    x = process.sample_forward(jax.random.key(1), x0, 1.0)
    errors = []
    for n in (100, 400):
        times = time_grid(process, n, "uniform")
        got = np.asarray(run(process, sampler, times, jax.random.key(2), x))
        assert got.mean() == pytest.approx(MU, abs=0.01)
        errors.append(abs(got.std() - C))
        # Normal in shape too: a normal distribution's fourth moment is 3.
        assert np.mean(((got - got.mean()) / got.std()) ** 4) == pytest.approx(3, rel=0.05)
    assert errors[1] < 0.35 * errors[0] + 0.004, errors  # 1st order, and what 40,000 numbers vary
    assert errors[1] < 0.015, errors


def test_ancestral_is_the_posterior_of_the_forward_process():
    """One step from t to s, given x0, against the product of the two Gaussians that meet at x_s."""
    process = PROCESSES["cosine"]
    t, s = jnp.float32(0.6), jnp.float32(0.5)
    a_t, a_s = (float(process.schedule.alpha(u)) for u in (t, s))
    v_t, v_s = (float(process.schedule.sigma(u)) ** 2 for u in (t, s))
    x0, x = 0.3, -0.8
    # q(x_t | x_s) = N(a x_s, v); q(x_s | x0) = N(a_s x0, v_s)
    a, v = a_t / a_s, v_t - (a_t / a_s) ** 2 * v_s
    variance = 1 / (a**2 / v + 1 / v_s)
    mean = variance * (a * x / v + a_s * x0 / v_s)

    def predict(x, t):
        return Prediction(jnp.full_like(x, x0), (x - a_t * x0) / v_t**0.5)

    many = jnp.full((200_000, 1), x)
    got, _ = Ancestral().step(predict, process, many, (), t, s, jax.random.key(0))
    assert float(got.mean()) == pytest.approx(mean, abs=3e-3)
    assert float(got.var()) == pytest.approx(variance, rel=0.01)


def test_heun_survives_a_step_from_nearly_pure_noise():
    """The cosine's log-SNR of -20 in 5 steps: EDM's form of the correction alone would explode."""
    process = PROCESSES["cosine"]
    x = jnp.linspace(-2, 2, 9).reshape(1, 9)
    got = run(process, Heun(), time_grid(process, 5), jax.random.key(0), x)
    euler = run(process, Euler(), time_grid(process, 5), jax.random.key(0), x)
    exact = flow_map(process, x)
    assert float(jnp.abs(got - exact).max()) < 0.5 * float(jnp.abs(euler - exact).max())
