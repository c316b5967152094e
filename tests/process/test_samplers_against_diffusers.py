"""Every step of every sampler against diffusers' scheduler, with a made-up network.

Step i of diffusers is t = (i + 1) / T here. Schedulers that work with x / alpha are brought back to
x before comparing; the stochastic ones are handed the noise that ours draws.
"""

import functools
from unittest import mock

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.schedulers import scheduling_ddpm

from emu_jax.process.gaussian import GaussianProcess
from emu_jax.process.guidance import dynamic_threshold
from emu_jax.process.noise import fold_in, normal
from emu_jax.process.samplers import DDIM, Ancestral, DPMSolverPP2M, Euler, Heun
from emu_jax.process.sampling import advance, start, time_grid
from emu_jax.process.schedules import Discrete, Flow, Shifted

KEY = jax.random.key(5)
SHAPE = (2, 4, 4, 3)
STABLE_DIFFUSION = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
}
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}


def network(x, told, xp):
    """Any smooth function will do; it bends in x and moves with the time."""
    return 0.8 * xp.tanh(1.3 * x) + 0.3 * xp.cos(3 * x + told / 200) - 0.1


def denoiser(process):
    def denoise(x, t):
        return network(x, process.timestep_input(t)[:, None, None, None], jnp)

    return denoise


def our_steps(process, sampler, times, x):
    """x after each step."""
    times = jnp.asarray(times, jnp.float32)
    move = jax.jit(
        lambda state, i: advance(denoiser(process), process, sampler, times, KEY, state, i)
    )
    state, seen = start(sampler, jnp.asarray(x)), []
    for i in range(len(times) - 1):
        state = move(state, jnp.array([i]))
        seen.append(np.asarray(state.x))
    return seen


def our_noise(step):
    return torch.tensor(np.asarray(normal(fold_in(fold_in(KEY, step), 0), SHAPE)))


def times_of(scheduler):
    """Our times of a scheduler's steps (of a Heun scheduler's, which come twice, once)."""
    index = np.asarray(scheduler.timesteps, np.float64)
    keep = np.append(True, np.diff(index) != 0)
    return [*((index[keep] + 1) / 1000), 0.0]


def start_noise():
    return np.asarray(jax.random.normal(jax.random.key(9), SHAPE))


def compare(ours, theirs, tolerance=1e-4):
    assert len(ours) == len(theirs)
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        np.testing.assert_allclose(a, b, atol=tolerance, rtol=tolerance, err_msg=f"step {i}")


def run_vp(scheduler, x, **step_arguments):
    """Schedulers whose sample is x itself (DDIM, DDPM, DPM-Solver++)."""
    x, seen = torch.tensor(x), []
    for i, t in enumerate(scheduler.timesteps):
        arguments = {name: make(i) for name, make in step_arguments.items()}
        x = scheduler.step(network(x, float(t), torch), t, x, **arguments).prev_sample
        seen.append(x.numpy())
    return seen


def run_ratio(scheduler, x, process, evaluations=1):
    """Schedulers whose sample is x / alpha, and whose network sees x."""
    alphas = np.asarray(process.schedule.alpha(jnp.float32(times_of(scheduler))))
    x, seen = torch.tensor(x / alphas[0]), []
    for i, t in enumerate(scheduler.timesteps):
        seen_by_network = scheduler.scale_model_input(x, t)
        x = scheduler.step(network(seen_by_network, float(t), torch), t, x).prev_sample
        if evaluations == 1 or i % 2 == 1 or i == len(scheduler.timesteps) - 1:
            seen.append(x.numpy() * alphas[len(seen) + 1])
    return seen


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_ddim(prediction, eta):
    scheduler = diffusers.DDIMScheduler(
        **STABLE_DIFFUSION,
        prediction_type=PREDICTIONS[prediction],
        timestep_spacing="trailing",
        clip_sample=False,
    )
    scheduler.set_timesteps(10)
    process = GaussianProcess(Discrete(), prediction, "index")
    np.testing.assert_allclose(times_of(scheduler), time_grid(process, 10), atol=1e-6)
    theirs = run_vp(
        scheduler,
        start_noise(),
        eta=lambda i: eta,
        variance_noise=lambda i: our_noise(i) if eta else None,
    )
    compare(our_steps(process, DDIM(eta), time_grid(process, 10), start_noise()), theirs)


@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_ddpm_with_a_learned_variance_and_a_threshold(spacing):
    """As DeepFloyd IF is drawn with."""
    scheduler = diffusers.DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        variance_type="learned_range",
        thresholding=True,
        dynamic_thresholding_ratio=0.9,
        sample_max_value=1.5,
        timestep_spacing=spacing,
    )
    scheduler.set_timesteps(10)
    process = GaussianProcess(Discrete("cosine"), "eps", "index", variance="learned_range")
    times = time_grid(process, 10, "leading" if spacing == "leading" else "uniform")
    np.testing.assert_allclose(times_of(scheduler), times, atol=1e-6)

    def denoise(x, t):
        output = network(x, process.timestep_input(t)[:, None, None, None], jnp)
        return jnp.concatenate([output, jnp.sin(2 * x)], -1)

    x = state = start_noise()
    seen, state = [], start(Ancestral(), jnp.asarray(x))
    cut = functools.partial(dynamic_threshold, quantile=0.9, limit=1.5)
    for i in range(10):
        told = (denoise, process, Ancestral(), times, KEY, state, jnp.array([i]))
        state = advance(*told, transform=cut)
        seen.append(np.asarray(state.x))
    theirs, x = [], torch.tensor(x).permute(0, 3, 1, 2)
    for i, t in enumerate(scheduler.timesteps):
        output = torch.cat([network(x, float(t), torch), torch.sin(2 * x)], 1)
        noise = our_noise(i).permute(0, 3, 1, 2)
        with mock.patch.object(scheduling_ddpm, "randn_tensor", lambda *a, n=noise, **k: n):
            x = scheduler.step(output, t, x).prev_sample
        theirs.append(x.permute(0, 2, 3, 1).numpy())
    compare(seen, theirs)


def test_ddim_with_zero_terminal_snr():
    scheduler = diffusers.DDIMScheduler(
        **STABLE_DIFFUSION,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        rescale_betas_zero_snr=True,
    )
    scheduler.set_timesteps(10)
    process = GaussianProcess(Discrete(zero_terminal_snr=True), "v", "index")
    ours = our_steps(process, DDIM(), time_grid(process, 10), start_noise())
    compare(ours, run_vp(scheduler, start_noise()))


def test_ddim_as_stable_diffusion_ships_it():
    """Leading spacing with an offset, and a last step that stops at the first table entry."""
    scheduler = diffusers.DDIMScheduler(
        **STABLE_DIFFUSION, clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    scheduler.set_timesteps(10)
    times = [*times_of(scheduler)[:-1], 1 / 1000]
    process = GaussianProcess(Discrete(), "eps", "index")
    compare(our_steps(process, DDIM(), times, start_noise()), run_vp(scheduler, start_noise()))


def test_ddpm():
    scheduler = diffusers.DDPMScheduler(
        **STABLE_DIFFUSION, timestep_spacing="trailing", clip_sample=False
    )
    scheduler.set_timesteps(10)
    drawn = iter(our_noise(i) for i in range(10))
    with mock.patch(
        "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *a, **k: next(drawn)
    ):
        theirs = run_vp(scheduler, start_noise())
    process = GaussianProcess(Discrete(), "eps", "index")
    compare(our_steps(process, Ancestral(), time_grid(process, 10), start_noise()), theirs)


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("spacing", ["trailing", "uniform", "karras"])
def test_euler(prediction, spacing):
    scheduler = diffusers.EulerDiscreteScheduler(
        **STABLE_DIFFUSION,
        prediction_type=PREDICTIONS[prediction],
        timestep_spacing="trailing" if spacing == "trailing" else "linspace",
        use_karras_sigmas=spacing == "karras",
    )
    n = 10 if spacing == "trailing" else 28  # 27 divides 999, so linspace meets whole steps
    scheduler.set_timesteps(n)
    process = GaussianProcess(Discrete(), prediction, "index")
    np.testing.assert_allclose(times_of(scheduler), time_grid(process, n, spacing), atol=2e-4)
    ours = our_steps(process, Euler(), times_of(scheduler), start_noise())
    compare(ours, run_ratio(scheduler, start_noise(), process))


def test_euler_ancestral():
    scheduler = diffusers.EulerAncestralDiscreteScheduler(
        **STABLE_DIFFUSION, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(10)
    process = GaussianProcess(Discrete(), "eps", "index")
    drawn = iter(our_noise(i) for i in range(10))
    name = "diffusers.schedulers.scheduling_euler_ancestral_discrete.randn_tensor"
    with mock.patch(name, lambda *a, **k: next(drawn)):
        theirs = run_ratio(scheduler, start_noise(), process)
    compare(our_steps(process, Ancestral(), time_grid(process, 10), start_noise()), theirs)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_heun(prediction):
    scheduler = diffusers.HeunDiscreteScheduler(
        **STABLE_DIFFUSION,
        prediction_type=PREDICTIONS[prediction],
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(10)
    process = GaussianProcess(Discrete(), prediction, "index")
    ours = our_steps(process, Heun(), time_grid(process, 10), start_noise())
    compare(ours, run_ratio(scheduler, start_noise(), process, evaluations=2))


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_dpm_solver_pp_2m(prediction):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **STABLE_DIFFUSION,
        prediction_type=PREDICTIONS[prediction],
        algorithm_type="dpmsolver++",
        solver_type="midpoint",
        solver_order=2,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(20)
    process = GaussianProcess(Discrete(), prediction, "index")
    np.testing.assert_allclose(times_of(scheduler), time_grid(process, 20), atol=1e-6)
    ours = our_steps(process, DPMSolverPP2M(), time_grid(process, 20), start_noise())
    compare(ours, run_vp(scheduler, start_noise()))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_match_euler(shift):
    n = 10
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / n, n))
    process = GaussianProcess(Shifted(Flow(), shift), "flow")
    np.testing.assert_allclose(
        process.timestep_input(time_grid(process, n))[:-1], scheduler.timesteps, rtol=1e-5
    )
    ours = our_steps(process, Euler(), time_grid(process, n), start_noise())
    compare(ours, run_vp(scheduler, start_noise()))
