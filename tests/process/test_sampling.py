"""The loop around the samplers: one program, cut anywhere, started anywhere, held in part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.errors import UserError
from emu_jax.process.gaussian import GaussianProcess
from emu_jax.process.guidance import static_clip
from emu_jax.process.masking import MaskingProcess
from emu_jax.process.samplers import DDIM, Ancestral, DPMSolverPP2M, Heun
from emu_jax.process.sampling import advance, sample, start, time_grid
from emu_jax.process.schedules import Cosine, Discrete, Flow

PROCESS = GaussianProcess(Cosine(), "v")
KEY = jax.random.key(7)
SAMPLERS = {"ddim": DDIM(), "ancestral": Ancestral(), "heun": Heun(), "dpm": DPMSolverPP2M()}


def denoise(x, t, gain=0.7):
    return jnp.tanh(gain * x) - t.reshape(-1, *(1,) * (x.ndim - 1)) * x


def pictures(rows=3):
    return jax.random.uniform(jax.random.key(1), (rows, 4, 4, 2), minval=-1, maxval=1)


def half_mask(x):
    return jnp.broadcast_to(jnp.arange(x.shape[2])[None, None, :, None] < 2, (*x.shape[:3], 1))


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_network_is_compiled_once_whatever_the_number_of_steps(name):
    traced = []

    def counting(x, t):
        traced.append(t.shape)
        return denoise(x, t)

    def program(x, times, key):
        return sample(counting, PROCESS, SAMPLERS[name], times, key, x)

    x = PROCESS.prior(KEY, (3, 4, 4, 2))
    text = str(jax.make_jaxpr(program)(x, time_grid(PROCESS, 50), KEY))
    assert set(traced) == {(3,)}
    assert len(traced) <= 2 * (2 if name == "heun" else 1)  # scan may trace its body twice
    assert text.count("tanh") == (2 if name == "heun" else 1)
    assert jnp.isfinite(jax.jit(program)(x, time_grid(PROCESS, 4), KEY)).all()


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_run_cut_in_two_is_the_whole_run_bit_for_bit(name):
    times = time_grid(PROCESS, 6)

    @jax.jit
    def move(state, first):
        steps = first + jnp.arange(3)
        return advance(denoise, PROCESS, SAMPLERS[name], times, KEY, state, steps)

    x = PROCESS.prior(KEY, (3, 4, 4, 2))
    cut = move(move(start(SAMPLERS[name], x), 0), 3).x
    whole = jax.jit(lambda x: sample(denoise, PROCESS, SAMPLERS[name], times, KEY, x))(x)
    np.testing.assert_array_equal(cut, whole)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_last_step_returns_x0(name):
    times = jnp.array([0.3, 0.0])
    x = PROCESS.prior(KEY, (3, 4, 4, 2))
    got = sample(denoise, PROCESS, SAMPLERS[name], times, KEY, x)
    t = jnp.full((3,), 0.3)
    np.testing.assert_allclose(got, PROCESS.predict(denoise(x, t), x, t).x0, atol=1e-6)


@pytest.mark.parametrize("process", [PROCESS, GaussianProcess(Flow(), "x0")])
@pytest.mark.parametrize("name", SAMPLERS)
def test_k_steps_without_gradient_and_one_with(process, name):
    """The gradient is that of the last step alone, finite from pure noise on, and exact."""
    sampler, times, k = SAMPLERS[name], time_grid(process, 4), 2
    x = process.prior(KEY, (2, 4, 4, 2))

    def last_step(gain, state):
        def network(x, t):
            return denoise(x, t, gain)

        state = advance(network, process, sampler, times, KEY, state, jnp.array([k]))
        return jnp.sum(state.x**2)

    def feedback(gain):
        def network(x, t):
            return denoise(x, t, gain)

        state = start(sampler, x)
        state = advance(network, process, sampler, times, KEY, state, jnp.arange(k))
        return last_step(gain, jax.lax.stop_gradient(state)), state

    (value, state), grad = jax.jit(jax.value_and_grad(feedback, has_aux=True))(0.7)
    up, down = (jax.jit(last_step)(0.7 + d, state) for d in (0.01, -0.01))
    assert np.isfinite(value) and abs(grad) > 1e-3
    np.testing.assert_allclose(grad, (up - down) / 0.02, rtol=2e-2)
    through = jax.jit(
        jax.grad(
            lambda gain: jnp.sum(
                sample(lambda x, t: denoise(x, t, gain), process, sampler, times, KEY, x)
            )
        )
    )(0.7)
    assert np.isfinite(through)


def test_a_picture_to_start_from_survives_the_less_the_later_the_start():
    """With a denoiser that always answers the same picture, only the start says what is kept."""
    process = GaussianProcess(Cosine(), "x0")
    x0, times = pictures(), time_grid(process, 10)
    deviations = []
    for k in (0, 5, 9):
        x = process.sample_forward(KEY, x0, times[k])
        keep = sample(lambda x, t: x, process, DDIM(), times[k:], KEY, x)
        deviations.append(float(jnp.abs(keep - x0).mean()))
    assert deviations[0] > deviations[1] > deviations[2]
    # DDIM with the true eps goes straight back to the picture, from any start.
    exact = GaussianProcess(Cosine(), "x0")
    got = sample(
        lambda x, t: x0, exact, DDIM(), times[5:], KEY, exact.sample_forward(KEY, x0, times[5])
    )
    np.testing.assert_array_equal(got, x0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_known_region_is_kept_exactly_and_the_rest_sees_it(name):
    known, x = pictures(), PROCESS.prior(KEY, (3, 4, 4, 2))
    mask = half_mask(known)
    seen = []

    def network(x, t):
        jax.debug.callback(lambda x, t: seen.append((np.asarray(x), float(t[0]))), x, t)
        # Every pixel looks at the row's mean, so what is known reaches what is not.
        return denoise(x, t) + x.mean((1, 2, 3), keepdims=True)

    times = time_grid(PROCESS, 5)
    arguments = (network, PROCESS, SAMPLERS[name], times, KEY, x)
    got = sample(*arguments, known=known, known_mask=mask)
    jax.effects_barrier()
    lowest = min(t for _, t in seen)
    late = [x for x, t in seen if t == lowest]  # Heun asks there twice, before and after the paste
    kept = np.broadcast_to(mask, got.shape)
    np.testing.assert_array_equal(np.asarray(got)[kept], np.asarray(known)[kept])
    assert not np.allclose(np.asarray(got)[~kept], np.asarray(known)[~kept])
    assert np.abs(np.asarray(got - sample(*arguments))[~kept]).max() > 1e-3
    # What the network saw of it late in the run was the known picture with a little noise on it.
    at = jnp.float32(lowest)
    alpha, sigma = float(PROCESS.schedule.alpha(at)), float(PROCESS.schedule.sigma(at))
    noise = (late[-1] - alpha * np.asarray(known))[kept] / sigma
    assert abs(noise.mean()) < 0.5 and 0.75 < noise.std() < 1.25


def test_the_rest_of_a_gaussian_follows_what_is_known():
    """Two values with correlation r and the exact denoiser: given the first, the other has the mean
    r times the first.
    """
    r, first, rows = 0.9, 1.5, 4000
    process = GaussianProcess(Cosine(), "x0")
    covariance = jnp.array([[1.0, r], [r, 1.0]])

    def network(x, t):
        alpha, sigma = process.schedule.alpha(t[0]), process.schedule.sigma(t[0])
        noisy = alpha**2 * covariance + sigma**2 * jnp.eye(2)
        return x @ jnp.linalg.inv(noisy) @ (alpha * covariance)

    x, known = process.prior(KEY, (rows, 2)), jnp.full((rows, 2), first)
    times = time_grid(process, 100)
    arguments = (network, process, Ancestral(), times, KEY, x)
    free = np.asarray(sample(*arguments))
    np.testing.assert_allclose(np.cov(free.T), covariance, atol=0.08)
    got = np.asarray(sample(*arguments, known=known, known_mask=jnp.array([[1.0, 0.0]])))
    assert (got[:, 0] == first).all()
    # Early steps see little of the known value, and later ones do not make up for all of it.
    assert 0.6 * r * first < got[:, 1].mean() < r * first
    assert got[:, 1].mean() > free[:, 1].mean() + 0.8


def test_a_share_is_held_until_its_time():
    """All of it to the end, nothing never, and a half until t = 0.5."""
    keep = jnp.array([0.0, 0.25, 0.5, 1.0])
    held = [PROCESS.held_at(keep, t).tolist() for t in (1.0, 0.8, 0.6, 0.4, 0.001)]
    assert held == [
        [False, True, True, True],
        [False, True, True, True],
        [False, False, True, True],
        [False, False, False, True],
        [False, False, False, True],
    ]
    assert MaskingProcess(8).held_at(keep, 0.9).tolist() == [False, False, False, True]


def test_every_step_draws_its_own_noise_from_its_number():
    times = time_grid(PROCESS, 4)
    x = jnp.zeros((2, 64, 64, 1))
    zero = GaussianProcess(Cosine(), "x0")
    states = [
        advance(lambda x, t: 0 * x, zero, Ancestral(), times, KEY, start(Ancestral(), x), i[None]).x
        for i in jnp.arange(3)
    ]
    for first, second in ((0, 1), (1, 2)):
        a, b = np.asarray(states[first]).ravel(), np.asarray(states[second]).ravel()
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.05


@pytest.mark.parametrize("name", ["ddim", "ancestral"])
def test_with_a_key_for_each_row_a_picture_does_not_depend_on_its_neighbours(name):
    keys = jax.random.split(KEY, 4)
    times = time_grid(PROCESS, 3)

    def draw(keys):
        x = PROCESS.prior(keys, (len(keys), 4, 4, 2))
        return sample(denoise, PROCESS, SAMPLERS[name], times, keys, x)

    np.testing.assert_allclose(draw(keys)[1:3], draw(keys[1:3]), atol=1e-6)


def test_a_transform_holds_x0():
    x = 3 * PROCESS.prior(KEY, (3, 4, 4, 2))
    times = time_grid(PROCESS, 5)
    free = sample(denoise, PROCESS, DDIM(), times, KEY, x)
    held = sample(denoise, PROCESS, DDIM(), times, KEY, x, transform=static_clip)
    assert float(jnp.abs(free).max()) > 1 >= float(jnp.abs(held).max())


def test_the_sample_is_fp32_whatever_the_network_works_in():
    def half(x, t):
        return denoise(x.astype(jnp.bfloat16), t.astype(jnp.bfloat16))

    x = PROCESS.prior(KEY, (2, 4, 4, 2)).astype(jnp.bfloat16)
    for sampler in SAMPLERS.values():
        run = jax.eval_shape(
            lambda x, sampler=sampler: sample(
                half, PROCESS, sampler, time_grid(PROCESS, 2), KEY, x
            ),
            x,
        )
        assert run.dtype == jnp.float32


def test_time_grids():
    process = GaussianProcess(Discrete(), "eps", "index")
    np.testing.assert_allclose(time_grid(process, 4), [1, 0.75, 0.5, 0.25, 0])
    np.testing.assert_allclose(
        process.timestep_input(time_grid(process, 28, "uniform"))[:-1],
        np.linspace(999, 0, 28),
        atol=1e-3,
    )
    told = process.timestep_input(time_grid(process, 3, "leading"))[:-1]
    np.testing.assert_allclose(told, [666, 333, 0], atol=1e-3)
    karras = time_grid(process, 9, "karras")
    np.testing.assert_allclose(karras[jnp.array([0, 8, 9])], [1, 0.001, 0], atol=1e-6)
    ratios = np.exp(-process.schedule.log_snr(karras[:-1]) / 2) ** (1 / 7)
    np.testing.assert_allclose(np.diff(ratios), np.diff(ratios)[0], rtol=1e-2)
    for process in (PROCESS, GaussianProcess(Flow(), "flow")):
        for spacing in ("trailing", "uniform", "karras"):
            for n in (1, 7):
                times = np.asarray(time_grid(process, n, spacing))
                assert times.shape == (n + 1,) and times[0] == 1 and times[-1] == 0
                assert np.all(np.diff(times) < 0)


def test_refusals():
    with pytest.raises(UserError, match="this one has none; use 'trailing'"):
        time_grid(PROCESS, 4, "leading")
    with pytest.raises(UserError, match=r"with 1001 steps needs .* this one has 1000"):
        time_grid(GaussianProcess(Discrete(), "eps", "index"), 1001, "leading")
    with pytest.raises(UserError, match=r"sampling\.steps is 0; use 1 or more"):
        time_grid(PROCESS, 0)
    with pytest.raises(ValueError, match="together"):
        sample(denoise, PROCESS, DDIM(), time_grid(PROCESS, 2), KEY, pictures(), known=pictures())
