"""Feedback: the gradient of the last call alone, after any number of steps."""

import jax
import jax.numpy as jnp
import pytest

from emu_jax.process.feedback import predict_at, sample_to, step_at_log_snr
from emu_jax.process.gaussian import GaussianProcess
from emu_jax.process.guidance import guided, static_clip
from emu_jax.process.registry import SCHEDULES
from emu_jax.process.samplers import DDIM, Ancestral, DPMSolverPP2M, Heun
from emu_jax.process.sampling import advance, start, time_grid
from emu_jax.process.schedules import Cosine

PROCESS, KEY = GaussianProcess(Cosine(), "v"), jax.random.key(7)
FOUR = {"ddim": DDIM(), "ancestral": Ancestral(), "heun": Heun(), "dpm": DPMSolverPP2M()}
SHAPE = (3, 4, 4, 2)


def network(x, t, condition):
    tall = (-1, *(1,) * (x.ndim - 1))
    return jnp.tanh(condition["gain"].reshape(tall) * x) - t.reshape(tall) * x


def make_denoise(params, scale=None):
    """A network of one parameter; with a scale it is guided."""
    cond = {"gain": jnp.full(3, params["gain"])}
    null = {"gain": jnp.full(3, params["null"])} if scale else None
    return guided(network, cond, null, scale or 1.0)


def predict_after(
    make, params, process, sampler, times, key, x, first, last, through=(1, 1), transform=None
):
    """The prediction at times[last], after steps from x at times[first]."""
    x = sample_to(
        make, params, process, sampler, times, key, x, first, last,
        through=through, transform=transform,
    )  # fmt: skip
    return predict_at(make(params), process, times, x, last, transform=transform)


@pytest.mark.parametrize("scale", [None, 2.5])
@pytest.mark.parametrize("name", FOUR)
def test_any_number_of_steps_is_the_unrolled_computation(name, scale):
    sampler, times = FOUR[name], time_grid(PROCESS, 5)
    params = {"gain": jnp.float32(0.7), "null": jnp.float32(0.3)}
    x = PROCESS.prior(KEY, SHAPE)
    program = jax.jit(
        jax.value_and_grad(
            lambda params, first, last: jnp.sum(
                predict_after(
                    lambda params: make_denoise(params, scale),
                    params, PROCESS, sampler, times, KEY, x, first, last, transform=static_clip,
                ).x0 ** 2
            )
        )
    )  # fmt: skip
    for first, last in ((0, 0), (0, 3), (2, 4)):
        denoise = make_denoise(params, scale)
        state = start(sampler, x)
        if last > first:
            steps = jnp.arange(first, last)
            state = advance(
                denoise, PROCESS, sampler, times, KEY, state, steps, transform=static_clip
            )

        def last_call(params, state=state, last=last):
            t = jnp.full(3, times[last])
            output = make_denoise(params, scale)(state.x, t)
            return jnp.sum(PROCESS.predict(output, state.x, t, static_clip).x0 ** 2)

        value, gradient = jax.value_and_grad(last_call)(params)
        found, found_gradient = program(params, first, last)
        assert float(found) == pytest.approx(float(value), rel=1e-5)
        assert abs(gradient["gain"]) > 1e-4
        for key in params:
            assert float(found_gradient[key]) == pytest.approx(
                float(gradient[key]), rel=1e-4, abs=1e-6
            )


@pytest.mark.parametrize("name", FOUR)
def test_the_gradient_passes_the_last_calls_and_no_other(name):
    """DRaFT-K and AlignProp: equal to differentiating the unrolled last calls."""
    sampler, times, last = FOUR[name], time_grid(PROCESS, 6), 5
    params = {"gain": jnp.float32(0.7), "null": jnp.float32(0.3)}
    x = PROCESS.prior(KEY, SHAPE)

    @jax.jit
    def program(params, n):
        return jax.value_and_grad(
            lambda params: jnp.sum(
                predict_after(
                    make_denoise, params, PROCESS, sampler, times, KEY, x, 0, last, through=(4, n)
                ).x0 ** 2
            )
        )(params)  # fmt: skip

    found = {n: program(params, n) for n in (1, 2, 4)}
    for n, (value, gradient) in found.items():
        begin = last - (n - 1)
        denoise = make_denoise(params)
        before = advance(
            denoise, PROCESS, sampler, times, KEY, start(sampler, x), jnp.arange(begin)
        )

        def by_hand(params, state=before, begin=begin):
            denoise = make_denoise(params)
            if begin < last:
                steps = jnp.arange(begin, last)
                state = advance(denoise, PROCESS, sampler, times, KEY, state, steps)
            t = jnp.full(3, times[last])
            return jnp.sum(PROCESS.predict(denoise(state.x, t), state.x, t).x0 ** 2)

        expected, wanted = jax.value_and_grad(by_hand)(params)
        assert float(value) == pytest.approx(float(expected), rel=1e-5)
        assert float(gradient["gain"]) == pytest.approx(float(wanted["gain"]), rel=1e-4)
    gains = [float(gradient["gain"]) for _, gradient in found.values()]
    assert len({round(gain, 3) for gain in gains}) == 3  # each further call counts


def test_no_call_is_made_that_is_not_needed():
    calls = []

    def counted(params):
        def denoise(x, t):
            jax.debug.callback(lambda: calls.append(1))
            return params * x

        return denoise

    program = jax.jit(
        lambda last: predict_after(
            counted, jnp.float32(0.5), PROCESS, DDIM(), time_grid(PROCESS, 20), KEY,
            PROCESS.prior(KEY, SHAPE), 0, last,
        ).x0
    )  # fmt: skip
    for last in (2, 17):
        calls.clear()
        program(last).block_until_ready()
        jax.effects_barrier()
        assert len(calls) == last + 1


@pytest.mark.parametrize("name", ["ddim", "dpm"])
@pytest.mark.parametrize("prediction", ["v", "eps", "flow"])
def test_a_reward_moves_a_gaussian_as_its_closed_form_says(name, prediction):
    """Of data N(m, s^2) the exact denoiser is E[x0|x] = m + g (x - alpha m) with
    g = s^2 alpha / (s^2 alpha^2 + sigma^2), so dx0'/dm = 1 - alpha g by the last call alone.
    """
    process = GaussianProcess(SCHEDULES["flow" if prediction == "flow" else "cosine"](), prediction)
    process = GaussianProcess(process.schedule, prediction, bounds=(1e-3, 0.95))
    s, times = 0.4, time_grid(process, 6)

    def exact(m):
        def denoise(x, t):
            tall = t.reshape(-1, 1)
            alpha, sigma = process.schedule.alpha(tall), process.schedule.sigma(tall)
            x0 = m + s**2 * alpha / (s**2 * alpha**2 + sigma**2) * (x - alpha * m)
            eps = (x - alpha * x0) / sigma
            return process.output(process.predict(x0, x, t)._replace(x0=x0, eps=eps), t)

        return denoise

    x = process.prior(KEY, (500, 1))
    reward = jax.jit(
        jax.grad(
            lambda m, last: jnp.mean(
                predict_after(exact, m, process, FOUR[name], times, KEY, x, 0, last).x0
            )
        )
    )
    for last in range(6):
        alpha, sigma = process.schedule.alpha(times[last]), process.schedule.sigma(times[last])
        expected = sigma**2 / (s**2 * alpha**2 + sigma**2)
        assert float(reward(0.3, last)) == pytest.approx(float(expected), rel=1e-4)


def test_noise_levels_travel_between_schedules_by_their_ratio_of_signal_to_noise():
    published = SCHEDULES["scaled_linear"]()
    assert float(published.log_snr(jnp.float32(0.5))) == pytest.approx(-0.96, abs=0.01)
    times = time_grid(PROCESS, 20)
    assert float(times[step_at_log_snr(PROCESS, times, -0.96)]) == pytest.approx(0.65)
