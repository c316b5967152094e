"""scheduler_config.json: every class and every setting is mapped, harmless or refused by name."""

import inspect

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from emu_jax.errors import UserError
from emu_jax.interop import schedulers
from emu_jax.interop.scheduler_classes import CLASSES, DDIM, DDPM, DPM
from emu_jax.process.gaussian import GaussianProcess
from emu_jax.process.guidance import dynamic_threshold, static_clip
from emu_jax.process.registry import SCHEDULES, make_sampler
from emu_jax.process.sampling import sample, time_grid

SD, SDXL = "StableDiffusionPipeline", "StableDiffusionXLPipeline"
STABLE = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)


def test_the_defaults_are_those_of_each_class():
    for kind, known in CLASSES.items():
        parameters = inspect.signature(getattr(diffusers, kind).__init__).parameters
        defaults = {name: p.default for name, p in parameters.items() if name != "self"}
        assert known.defaults == defaults, kind


@pytest.mark.parametrize("kind", CLASSES)
def test_the_noise_is_that_of_the_class(kind):
    """Of a file that leaves everything out, of Stable Diffusion's, and with zero terminal SNR."""
    for config in ({}, STABLE, STABLE | dict(rescale_betas_zero_snr=True)):
        if not config.keys() <= CLASSES[kind].defaults.keys():
            with pytest.raises(UserError, match="rescale_betas_zero_snr"):
                schedulers.process({"_class_name": kind, **config})
            continue
        wanted = getattr(diffusers, kind)(**config).alphas_cumprod.double().numpy()
        if kind in ("HeunDiscreteScheduler", "KDPM2DiscreteScheduler") and not config:
            with pytest.raises(UserError, match=r"beta_schedule = linear, beta_start = 0\.00085"):
                schedulers.process({"_class_name": kind})
            continue
        if kind == "KDPM2AncestralDiscreteScheduler" and not config:
            continue
        found = schedulers.process({"_class_name": kind, **config})
        ours = SCHEDULES[found["schedule"]]().alphas() ** 2
        np.testing.assert_allclose(ours, wanted, rtol=2e-4, atol=1e-7)


def test_consistency_models_are_refused_and_their_noise_is_known():
    schedule = SCHEDULES[schedulers.process({"_class_name": "LCMScheduler"})["schedule"]]()
    assert abs(schedule.alphas()[500] ** 2 - 0.2763) < 1e-4
    with pytest.raises(UserError, match="LCMScheduler, which samples distilled models"):
        schedulers.latents({"_class_name": "LCMScheduler"}, SD)


STEPS = [
    (DDIM, dict(clip_sample=False), SDXL),
    (DDIM, dict(clip_sample=True), SD),  # this pipeline turns it off
    (DPM, {}, SDXL),
    (DPM, dict(thresholding=True, dynamic_thresholding_ratio=0.6, sample_max_value=1.2), SDXL),
    ("EulerDiscreteScheduler", {}, SDXL),
    ("HeunDiscreteScheduler", dict(clip_sample=True), SDXL),
]


@pytest.mark.parametrize(("kind", "changes", "pipeline"), STEPS)
def test_the_first_step_is_that_of_the_scheduler(kind, changes, pipeline):
    config = STABLE | dict(timestep_spacing="trailing") | changes
    process, sampling = schedulers.latents({"_class_name": kind, **config}, pipeline)
    rng = np.random.default_rng(0)
    x, output = (rng.standard_normal((2, 4, 4, 3)).astype(np.float32) for _ in range(2))
    ours = GaussianProcess(SCHEDULES[process["schedule"]](), process["prediction"])
    transform = {
        "none": None,
        "static": static_clip,
        "dynamic": lambda x0: dynamic_threshold(
            x0, sampling.get("threshold_quantile", 0.0), sampling.get("threshold_limit", 0.0)
        ),
    }[sampling["threshold"]]
    times = time_grid(ours, 2, sampling["spacing"])[:2]
    made = make_sampler(sampling["sampler"], ours)
    if kind == "HeunDiscreteScheduler":  # whose first step is Euler's; the second corrects it
        made = make_sampler("euler", ours)
    found = sample(
        lambda x, t: jnp.asarray(output),
        ours,
        made,
        times,
        jax.random.key(0),
        jnp.asarray(x),
        transform=transform,
    )
    if pipeline == SD:
        config["clip_sample"] = False  # as its constructor does
    theirs = getattr(diffusers, kind)(**config)
    theirs.set_timesteps(2)
    raw = torch.tensor(x) * theirs.init_noise_sigma
    scaled = "sigmas" in vars(theirs) and kind != DPM
    if scaled:  # these are in the units of x / alpha
        raw = torch.tensor(x) / np.sqrt(theirs.alphas_cumprod[999])
    wanted = theirs.step(torch.tensor(output), theirs.timesteps[0], raw).prev_sample
    if scaled:
        wanted = wanted * np.sqrt(theirs.alphas_cumprod[499])
    np.testing.assert_allclose(np.asarray(found), wanted, atol=2e-4)


# Class, setting, words of the refusal.
REFUSED = [
    ("EDMEulerScheduler", dict(prediction_type="v_prediction"), "is a EDMEulerScheduler, which is"),
    ("FlowMatchEulerDiscreteScheduler", dict(shift=3.0), "is a FlowMatchEulerDiscreteScheduler"),
    (None, {}, "is a None"),
    (DDIM, dict(novelty=1), "has a setting 'novelty', which is not supported"),
    (DDIM, {}, "clip_sample = True: it limits"),  # the default of the class
    (DDIM, dict(clip_sample=False, thresholding=True), "thresholding = True: it limits"),
    (DDPM, dict(clip_sample_range=2.0), r"clip_sample_range = 2\.0"),
    (DDIM, dict(beta_end=0.02), r"beta_end = 0\.02"),
    (DDIM, dict(num_train_timesteps=500), "num_train_timesteps = 500"),
    (DDIM, dict(trained_betas=[0.1]), "trained_betas"),
    (DDIM, dict(timestep_spacing="log"), "timestep_spacing = log"),
    (DDPM, dict(variance_type="fixed_large"), "variance_type = fixed_large"),
    (DDPM, dict(variance_type="learned_range"), "variance_type = learned_range"),
    (DPM, dict(variance_type="learned"), "variance_type = learned"),
    (DPM, dict(use_flow_sigmas=True, prediction_type="flow_prediction"), "use_flow_sigmas = True"),
    (DPM, dict(prediction_type="flow_prediction"), "prediction_type = flow_prediction"),
    (DPM, dict(use_lu_lambdas=True), "use_lu_lambdas = True"),
    (DPM, dict(algorithm_type="other"), "algorithm_type = other"),
    ("EulerDiscreteScheduler", dict(use_beta_sigmas=True), "use_beta_sigmas = True"),
    ("EulerDiscreteScheduler", dict(interpolation_type="log_linear"), "interpolation_type"),
    ("EulerDiscreteScheduler", dict(timestep_type="continuous"), "timestep_type"),
    ("EulerDiscreteScheduler", dict(sigma_max=14.0), r"sigma_max = 14\.0"),
    ("HeunDiscreteScheduler", dict(rescale_betas_zero_snr=True), "rescale_betas_zero_snr"),
]


@pytest.mark.parametrize(("kind", "changes", "words"), REFUSED)
def test_what_does_not_exist_here_is_refused_by_name(kind, changes, words):
    with pytest.raises(UserError, match=words) as error:
        schedulers.latents({"_class_name": kind, **STABLE, **changes}, SDXL)
    assert "\n" not in str(error.value)


def test_published_files_with_settings_of_other_classes_are_read():
    """Stable Diffusion 1.5's and XL's, which diffusers reads with a warning."""
    old = dict(set_alpha_to_one=False, skip_prk_steps=True, steps_offset=1, clip_sample=False)
    sd15 = dict(_class_name="PNDMScheduler", **STABLE, **old)
    assert schedulers.latents(sd15, SD) == (
        dict(schedule="scaled_linear", prediction="eps", time_input="index"),
        dict(sampler="dpmpp_2m", spacing="uniform", threshold="none"),
    )
    assert [phrase.split()[0] for phrase in schedulers.replaced(sd15)] == [
        *("PNDMScheduler", '"leading"', "the")
    ]
    sdxl = sd15 | dict(_class_name="EulerDiscreteScheduler", timestep_spacing="leading")
    assert schedulers.latents(sdxl, SDXL)[1]["sampler"] == "euler"
    exact = dict(_class_name=DDIM, **STABLE, timestep_spacing="trailing", clip_sample=False)
    assert schedulers.replaced(exact) == []


def test_a_stochastic_solver_becomes_ancestral_sampling():
    config = dict(_class_name=DPM, **STABLE, algorithm_type="sde-dpmsolver++")
    assert schedulers.latents(config)[1]["sampler"] == "ancestral"
    assert schedulers.replaced(config) == [f"{DPM} becomes sampling.sampler=ancestral"]


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "euler", "ancestral", "heun"])
def test_a_threshold_is_exported_or_refused(sampler):
    process = dict(schedule="scaled_linear", prediction="eps", time_input="index")
    limits = dict(threshold_quantile=0.9, threshold_limit=2.0)
    for threshold, options in (("none", {}), ("static", {}), ("dynamic", limits)):
        sampling = dict(sampler=sampler, spacing="trailing", threshold=threshold, **options)
        lacking = dict(dpmpp_2m="static", heun="dynamic", ddim=threshold, euler=threshold)
        if threshold != "none" and lacking.get(sampler) == threshold:
            with pytest.raises(UserError, match=rf"no sampling\.threshold={threshold}"):
                schedulers.to_config(process, sampling, SDXL)
            continue
        config = schedulers.to_config(process, sampling, SDXL)
        getattr(diffusers, config["_class_name"]).from_config(config).set_timesteps(3)
        assert schedulers.latents(config, SDXL) == (process, sampling)
    with pytest.raises(UserError, match=rf"no sampling\.threshold=static .* in a {SD}"):
        schedulers.to_config(process, dict(sampler="ancestral", threshold="static"), SD)


def test_amuseds_settings_are_all_read():
    config = dict(_class_name=schedulers.MASKING, mask_token_id=7, masking_schedule="cosine")
    assert schedulers.masking(config, 8)[0] == dict(kind="masking")
    for change, words in (
        (dict(masking_schedule="linear"), "masking_schedule = 'linear'"),
        (dict(mask_token_id=6), "mask_token_id = 6; only 7"),
        (dict(novelty=1), "novelty"),
    ):
        with pytest.raises(UserError, match=words):
            schedulers.masking(config | change, 8)
