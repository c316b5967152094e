"""diffusers' scheduler_config.json <-> ``config.process`` and ``config.sampling``.

A scheduler's file says two things: which noise the network was trained on, and how to sample. The
first is taken over exactly or refused. Of the second the nearest of ours is taken: PNDM, which we
do not have, becomes DPM-Solver++, and "leading" steps become evenly spaced ones from pure noise.
Flow matching's says how far the straight path is shifted. aMUSEd's says which token is [MASK], and
that as many stay masked as ours leaves.
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
_STEPS = 1000
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
    """
    c = {**_DEFAULTS, **config}
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
    ):
        if process[key] not in known:
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
    found["timestep_spacing"] = "trailing" if spacing == "trailing" else "linspace"
    if spacing == "karras":
        found["use_karras_sigmas"] = True
    if kind == "DDIMScheduler":
        found |= dict(clip_sample=False, set_alpha_to_one=True)
    return found


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
