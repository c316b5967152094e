"""diffusers' scheduler_config.json <-> ``config.process`` and ``config.sampling``.

A scheduler's file says two things: which noise the network was trained on, and how to sample. The
first is taken over exactly or refused. Of the second the nearest of ours is taken: PNDM, which we
do not have, becomes DPM-Solver++, and "leading" steps become evenly spaced ones from pure noise. Of
pixels (DeepFloyd IF) both are exact, "leading" steps too, and DDPMScheduler alone is known. Flow
matching's says how far the straight path is shifted. aMUSEd's says which token is [MASK], and that
as many stay masked as ours leaves.
"""

from collections.abc import Mapping
from typing import Any

from emu_jax.errors import UserError
from emu_jax.interop.configs import complete

# Our name of a schedule -> betas and zero terminal SNR.
_CURVES: dict[str, dict[str, Any]] = {
    "scaled_linear": dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    "scaled_linear_zero_snr": dict(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        rescale_betas_zero_snr=True,
    ),
    "squared_cosine": dict(beta_schedule="squaredcos_cap_v2"),
    "linear": dict(beta_schedule="linear", beta_start=1e-4, beta_end=0.02),
}
_PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
# Public class -> our sampler; the first class of each sampler is the one that is written.
_DPM = "DPMSolverMultistepScheduler"
_SAMPLERS = {
    "DDIMScheduler": "ddim",
    _DPM: "dpmpp_2m",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "ancestral",
    "HeunDiscreteScheduler": "heun",
    "DDPMScheduler": "ancestral",
    "PNDMScheduler": "dpmpp_2m",
}
_SPACINGS = {"trailing": "trailing", "linspace": "uniform", "leading": "uniform"}
# The same of pixels.
_PIXEL_SPACINGS = {"trailing": "trailing", "linspace": "uniform", "leading": "leading"}
# What becomes of the variance that a network of pixels says.
_VARIANCES = {
    "learned_range": "learned_range",
    "fixed_small": "ignored",
    "fixed_small_log": "ignored",
}
_STEPS = 1000
_NO_LIMIT = 1e6  # where the public class wants a number
DDPM = "DDPMScheduler"
MASKING = "AmusedScheduler"
_DEFAULTS: dict[str, Any] = dict(
    num_train_timesteps=_STEPS,
    beta_start=1e-4,
    beta_end=0.02,
    beta_schedule="linear",
    trained_betas=None,
    prediction_type="epsilon",
    rescale_betas_zero_snr=False,
    timestep_spacing="leading",
    use_karras_sigmas=False,
)
_DDPM_DEFAULTS: dict[str, Any] = dict(
    {key: value for key, value in _DEFAULTS.items() if key != "use_karras_sigmas"},
    variance_type="fixed_small",
    clip_sample=True,
    clip_sample_range=1.0,
    thresholding=False,
    dynamic_thresholding_ratio=0.995,
    sample_max_value=1.0,
    steps_offset=0,
)


def process(config: Mapping[str, Any]) -> dict[str, Any]:
    """schedule, prediction and time_input of a scheduler_config.json.

    Raises:
      UserError: noise or a prediction that ours does not know, by the setting's name.
    """
    c = {**_DEFAULTS, **config}
    for key in ("num_train_timesteps", "trained_betas"):
        if c[key] != _DEFAULTS[key]:
            raise UserError(f"This scheduler has {key} = {c[key]}; only {_DEFAULTS[key]} is known.")
    if c["prediction_type"] not in _PREDICTIONS:
        raise UserError(f"This scheduler has prediction_type = {c['prediction_type']}, not known.")
    wanted = {key: c[key] for key in ("beta_schedule", "beta_start", "beta_end")}
    wanted["rescale_betas_zero_snr"] = bool(c["rescale_betas_zero_snr"])
    for name, curve in _CURVES.items():
        if {**wanted, "rescale_betas_zero_snr": False, **curve} == wanted:
            prediction = _PREDICTIONS[c["prediction_type"]]
            return dict(schedule=name, prediction=prediction, time_input="index")
    said = ", ".join(f"{key} = {value}" for key, value in wanted.items())
    raise UserError(f"This scheduler's noise is not known here: {said}.")


def sampling(config: Mapping[str, Any]) -> dict[str, Any]:
    """sampler, spacing and threshold of a scheduler_config.json.

    DPM-Solver's "linspace" ends a step above the lowest time: "trailing", but for rounding.

    Raises:
      UserError: the network says a variance.
    """
    c = {**_DEFAULTS, **config}
    if str(c.get("variance_type")).startswith("learned"):
        raise UserError(
            f"This scheduler has variance_type = {c['variance_type']}; only pipelines of pixels "
            "are known with that."
        )
    spacing = "karras" if c["use_karras_sigmas"] else _SPACINGS.get(c["timestep_spacing"])
    if (
        spacing == "uniform"
        and c.get("_class_name") == _DPM
        and c["timestep_spacing"] == "linspace"
    ):
        spacing = "trailing"
    threshold = "none"
    # Latents are never clipped; a scheduler of theirs says so.
    if c.get("thresholding"):
        threshold = "dynamic"
    elif c.get("clip_sample"):
        threshold = "static"
    return dict(
        sampler=_SAMPLERS.get(c.get("_class_name", ""), "dpmpp_2m"),
        spacing=spacing or "uniform",
        threshold=threshold,
    )


def to_config(process: Mapping[str, Any], sampling: Mapping[str, Any]) -> dict[str, Any]:
    """scheduler_config.json of ``config.process`` and ``config.sampling``.

    Raises:
      UserError: noise, a prediction or a way of telling the time that the public classes lack.
    """
    names = {ours: theirs for theirs, ours in _PREDICTIONS.items()}
    for key, known in (
        ("schedule", _CURVES),
        ("prediction", names),
        ("time_input", ("index",)),
        ("variance", ("fixed",)),
    ):
        if process.get(key, "fixed") not in known:
            raise UserError(
                f"Public pipelines have no process.{key}={process[key]}, only "
                f"{', '.join(known)}: this generator cannot be exported to one."
            )
    sampler, spacing = sampling["sampler"], sampling.get("spacing", "trailing")
    kind = next((kind for kind, ours in _SAMPLERS.items() if ours == sampler), None)
    if kind is None:
        raise UserError(f"Public pipelines have no sampler {sampler}.")
    found = dict(_class_name=kind, num_train_timesteps=_STEPS, prediction_type="")
    found |= _CURVES[process["schedule"]]
    found["prediction_type"] = names[process["prediction"]]
    found["timestep_spacing"] = spacing if spacing in ("trailing", "leading") else "linspace"
    if spacing == "karras":
        found["use_karras_sigmas"] = True
    if kind == "DDIMScheduler":
        found |= dict(clip_sample=False, set_alpha_to_one=True)
    return found


# Pixels ------------------------------------------------------------------------------------------


def pixels(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """``config.process`` and ``config.sampling`` of the scheduler_config.json of a pipeline of
    pixels, whose network says a variance.

    Raises:
      UserError: another class than DDPMScheduler, or something that ours does not know, by name.
    """
    if config.get("_class_name") != DDPM:
        raise UserError(
            f"This scheduler is a {config.get('_class_name')}; pixels are drawn by {DDPM} alone."
        )
    c = complete(config, _DDPM_DEFAULTS, _DDPM_DEFAULTS, DDPM)
    for key, known in (("variance_type", _VARIANCES), ("timestep_spacing", _PIXEL_SPACINGS)):
        if c[key] not in known:
            raise UserError(f"This scheduler has {key} = {c[key]}; known are {', '.join(known)}.")
    if c["timestep_spacing"] == "leading" and c["steps_offset"]:
        raise UserError(f"This scheduler has steps_offset = {c['steps_offset']}; only 0 is known.")
    threshold = dict(threshold="none")
    if c["thresholding"]:
        threshold = dict(
            threshold="dynamic",
            threshold_quantile=c["dynamic_thresholding_ratio"],
            threshold_limit=c["sample_max_value"],
        )
    elif c["clip_sample"]:
        if c["clip_sample_range"] != 1:
            raise UserError(
                f"This scheduler has clip_sample_range = {c['clip_sample_range']}; only 1 is known."
            )
        threshold = dict(threshold="static")
    spacing = _PIXEL_SPACINGS[c["timestep_spacing"]]
    return dict(process(c), variance=_VARIANCES[c["variance_type"]]), dict(
        sampler="ancestral", spacing=spacing, **threshold
    )


def pixels_config(process: Mapping[str, Any], sampling: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`pixels`.

    Raises:
      UserError: what the public class does not have.
    """
    spacing, known = sampling.get("spacing", "trailing"), _PIXEL_SPACINGS.values()
    if sampling["sampler"] != "ancestral" or spacing not in known:
        raise UserError(
            f"Public pipelines of pixels draw by sampling.sampler=ancestral at {', '.join(known)} "
            f"steps, and not by {sampling['sampler']} at {spacing} ones."
        )
    found = to_config({**process, "variance": "fixed"}, sampling)
    learned = process.get("variance") == "learned_range"
    threshold = sampling.get("threshold", "none")
    found |= dict(
        _class_name=DDPM,
        variance_type="learned_range" if learned else "fixed_small",
        thresholding=threshold == "dynamic",
        clip_sample=threshold == "static",
    )
    if threshold == "dynamic":
        found["dynamic_thresholding_ratio"] = sampling.get("threshold_quantile", 0.995)
        found["sample_max_value"] = sampling.get("threshold_limit") or _NO_LIMIT
    return found


def steps_of_noise(config: Mapping[str, Any]) -> str:
    """``low_resolution.schedule`` of a scheduler_config.json: of its noise alone, nothing is drawn
    by it."""
    return process(config)["schedule"]


def steps_config(schedule: str) -> dict[str, Any]:
    """The inverse of :func:`steps_of_noise`."""
    if schedule not in _CURVES:
        raise UserError(
            f"Public pipelines have no low_resolution.schedule={schedule}, only "
            f"{', '.join(_CURVES)}: this generator cannot be exported to one."
        )
    return dict(_class_name=DDPM, num_train_timesteps=_STEPS, **_CURVES[schedule])


# Flow matching -----------------------------------------------------------------------------------

FLOW = "FlowMatchEulerDiscreteScheduler"
_FLOW_DEFAULTS: dict[str, Any] = dict(
    num_train_timesteps=_STEPS,
    shift=1.0,
    use_dynamic_shifting=False,
    base_shift=0.5,
    max_shift=1.15,
    base_image_seq_len=256,
    max_image_seq_len=4096,
    invert_sigmas=False,
    shift_terminal=None,
    use_karras_sigmas=False,
    use_exponential_sigmas=False,
    use_beta_sigmas=False,
    time_shift_type="exponential",
    stochastic_sampling=False,
)
# Read below, or of dynamic shifting alone, which is refused.
_FLOW_READ = {
    *("shift", "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len"),
    "time_shift_type",
}


def flow(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """``config.process`` and ``config.sampling`` of a straight path's scheduler_config.json.

    The public class spaces times evenly down to its lowest, which it takes shifted already, and
    then shifts all of them: that time is our lower bound.

    Raises:
      UserError: another path, by the setting's name.
    """
    if config.get("_class_name") != FLOW:
        raise UserError(
            f"This scheduler is {config.get('_class_name')}; of flow matching only {FLOW} is known."
        )
    shift = complete(config, _FLOW_DEFAULTS, _FLOW_READ, FLOW)["shift"]
    low = shift / (_STEPS + shift - 1)
    return (
        dict(
            schedule="flow",
            shift=shift,
            prediction="flow",
            time_input="continuous",
            bounds=(low, 1.0),
        ),
        dict(sampler="euler", spacing="uniform", threshold="none"),
    )


def flow_config(process: Mapping[str, Any], sampling: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`flow`.

    Raises:
      UserError: what the public class cannot say, by the setting's name.
    """
    for section, name, key, known in (
        (process, "process", "schedule", "flow"),
        (process, "process", "prediction", "flow"),
        (process, "process", "time_input", "continuous"),
        (sampling, "sampling", "sampler", "euler"),
    ):
        if section[key] != known:
            raise UserError(
                f"{FLOW} has no {name}.{key}={section[key]}, only {known}: this generator cannot "
                "be exported to it."
            )
    return dict(_FLOW_DEFAULTS, _class_name=FLOW, shift=process.get("shift", 1.0))


# Tokens ------------------------------------------------------------------------------------------


def masking(config: Mapping[str, Any], vocabulary: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """``config.process`` and ``config.sampling`` of aMUSEd's scheduler_config.json, whose
    denoiser's table has ``vocabulary`` rows.

    Steps, guidance and temperature are those that its pipeline takes where it is told none. Its
    temperature falls from 2 in the first of T steps to 0 in the last, which is T / (T - 1) times 2
    at the times that steps end at.

    Raises:
      UserError: another schedule or [MASK] than ours, by the setting's name.
    """
    schedule = config.get("masking_schedule", "cosine")
    if config.get("_class_name") != MASKING or schedule != "cosine":
        raise UserError(
            f"This scheduler is {config.get('_class_name')} with masking_schedule = {schedule}; of "
            f"tokens only {MASKING} with cosine is known here."
        )
    if config.get("mask_token_id") != vocabulary - 1:
        raise UserError(
            f"This scheduler has mask_token_id = {config.get('mask_token_id')}; only the last of "
            f"the {vocabulary} rows of the transformer's table is known here."
        )
    steps = 12
    return dict(kind="masking"), dict(
        sampler="parallel",
        spacing="trailing",
        steps=steps,
        temperature=2 * steps / (steps - 1),
        guidance_scale=10.0,
        guidance_ramp=False,
    )


def masking_config(vocabulary: int) -> dict[str, Any]:
    """The inverse of :func:`masking`."""
    return dict(_class_name=MASKING, mask_token_id=vocabulary - 1, masking_schedule="cosine")
