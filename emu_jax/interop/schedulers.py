"""diffusers' scheduler_config.json <-> ``config.process`` and ``config.sampling``.

A scheduler's file describes two things: the noise that the network was trained on, and how to
sample. The noise is imported exactly or refused. For sampling the nearest method here is chosen:
PNDM, which does not exist here, becomes DPM-Solver++, and "leading" steps become evenly spaced
steps from pure noise (:func:`replaced` lists this). For pixels (DeepFloyd IF) both are exact,
"leading" steps too, and only DDPMScheduler is supported. The scheduler of flow matching gives the
shift of the straight path. The scheduler of aMUSEd gives the id of [MASK] and the masking rate.

Classes and their default settings are in :mod:`emu_jax.interop.scheduler_classes`.
"""

from collections.abc import Mapping
from typing import Any

from emu_jax.errors import UserError
from emu_jax.interop.configs import complete
from emu_jax.interop.scheduler_classes import (
    CLASSES,
    DDIM,
    DDPM,
    DPM,
    STEPS,
    complete_settings,
    known_class,
)

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
_SPACINGS = {"trailing": "trailing", "linspace": "uniform", "leading": "uniform"}
_PIXEL_SPACINGS = {"trailing": "trailing", "linspace": "uniform", "leading": "leading"}
# DDPM's posterior variance, which ancestral sampling has.
_POSTERIOR = ("fixed_small", "fixed_small_log")
# For networks that predict a variance: how it is used.
_VARIANCES = {"learned_range": "learned_range", **dict.fromkeys(_POSTERIOR, "ignored")}
_ALGORITHMS = {"dpmsolver": "dpmpp_2m", "sde-dpmsolver": "ancestral"}
# This pipeline sets clip_sample to False, whatever the file contains.
_NEVER_CLIPS = "StableDiffusionPipeline"
_NO_LIMIT = 1e6  # for no limit, where the public class needs a number
MASKING = "AmusedScheduler"


def process(config: Mapping[str, Any]) -> dict[str, Any]:
    """schedule, prediction and time_input of a scheduler_config.json.

    Raises:
      UserError: an unknown class or setting, or noise that does not exist here, by name.
    """
    c = complete_settings(config)
    for key, known in (("num_train_timesteps", STEPS), ("trained_betas", None)):
        if c[key] != known:
            raise _refused(key, c[key], known)
    if c["prediction_type"] not in _PREDICTIONS:
        raise _refused("prediction_type", c["prediction_type"], *_PREDICTIONS)
    wanted = {key: c[key] for key in ("beta_schedule", "beta_start", "beta_end")}
    wanted["rescale_betas_zero_snr"] = bool(c.get("rescale_betas_zero_snr"))
    for name, curve in _CURVES.items():
        if {**wanted, "rescale_betas_zero_snr": False, **curve} == wanted:
            prediction = _PREDICTIONS[c["prediction_type"]]
            return dict(schedule=name, prediction=prediction, time_input="index")
    settings = ", ".join(f"{key} = {value}" for key, value in wanted.items())
    raise UserError(f"This scheduler's noise does not exist here: {settings}.")


def latents(config: Mapping[str, Any], pipeline: str = "") -> tuple[dict[str, Any], dict[str, Any]]:
    """``config.process`` and ``config.sampling`` of a scheduler_config.json, for Gaussian noise on
    latents. ``pipeline``: the class of the pipeline, some of which change a setting.

    "linspace" of DPM-Solver ends one step above the lowest time: "trailing", except for rounding.

    Raises:
      UserError: an unknown class or setting, or one that does not exist here, by name.
    """
    noise = process(config)
    c, kind = complete_settings(config), config["_class_name"]
    known = known_class(config)
    if not known.sampler:
        raise UserError(
            f"This scheduler is a {kind}, which samples distilled models; there is no such sampler "
            f"here. For a model that is not distilled, put the config of a {DPM} into its folder."
        )
    wanted: tuple[Any, ...] = _POSTERIOR if kind == DDPM else (None,)
    if c.get("variance_type") not in wanted:
        raise _refused("variance_type", c["variance_type"], *wanted)
    spacing = c.get("timestep_spacing", "linspace")
    if spacing not in _SPACINGS:
        raise _refused("timestep_spacing", spacing, *_SPACINGS)
    ours = _SPACINGS[spacing]
    if kind == DPM and spacing == "linspace":
        ours = "trailing"
    if c.get("use_karras_sigmas"):
        ours = "karras"
    if pipeline == _NEVER_CLIPS:
        c["clip_sample"] = False
    for key in ("clip_sample", "thresholding"):
        if kind == DDIM and c[key]:
            raise UserError(
                f"This {DDIM} has {key} = True: it limits the predicted image but not the "
                "predicted noise, which no sampler here does. Write false into its "
                "scheduler_config.json; latents need no limit."
            )
    sampling = dict(sampler=_sampler(c, known.sampler), spacing=ours, **_threshold(c))
    return noise, sampling


def _sampler(c: Mapping[str, Any], usual: str) -> str:
    """A stochastic solver becomes ancestral sampling."""
    algorithm = str(c.get("algorithm_type", "")).removesuffix("++")
    if algorithm not in ("", "deis", *_ALGORITHMS):
        raise _refused("algorithm_type", c["algorithm_type"], *_ALGORITHMS)
    return _ALGORITHMS.get(algorithm, usual)


def _threshold(c: Mapping[str, Any]) -> dict[str, Any]:
    """sampling.threshold with its options."""
    if c.get("thresholding"):
        return dict(
            threshold="dynamic",
            threshold_quantile=c["dynamic_thresholding_ratio"],
            threshold_limit=c["sample_max_value"],
        )
    if not c.get("clip_sample"):
        return dict(threshold="none")
    if c["clip_sample_range"] != 1:
        raise _refused("clip_sample_range", c["clip_sample_range"], 1)
    return dict(threshold="static")


def _refused(key: str, value: Any, *known: Any) -> UserError:
    return UserError(
        f"This scheduler has {key} = {value}, which is not supported; supported: "
        f"{', '.join(map(str, known))}."
    )


def replaced(config: Mapping[str, Any]) -> list[str]:
    """What an import of latents samples otherwise than the scheduler does, one phrase each."""
    if config.get("_class_name") not in CLASSES:
        return []
    c, known = complete_settings(config), known_class(config)
    sampler = _sampler(c, known.sampler)
    found = []
    if not known.exact or c.get("algorithm_type", "dpmsolver++") != "dpmsolver++":
        found.append(f"{config['_class_name']} becomes sampling.sampler={sampler}")
    elif c.get("solver_order", 2) != 2 or c.get("solver_type", "midpoint") != "midpoint":
        found.append("the solver becomes that of order 2 with the midpoint rule")
    if c.get("timestep_spacing") == "leading" and not c.get("use_karras_sigmas"):
        found.append('"leading" steps become even ones from pure noise (sampling.spacing=uniform)')
    if not c.get("set_alpha_to_one", True) or c.get("final_sigmas_type", "zero") != "zero":
        found.append("the last step ends without noise")
    return found


def to_config(
    process: Mapping[str, Any], sampling: Mapping[str, Any], pipeline: str = ""
) -> dict[str, Any]:
    """scheduler_config.json of ``config.process`` and ``config.sampling``: the inverse of
    :func:`latents`.

    Raises:
      UserError: noise, a prediction, a time input or a threshold that the public classes lack.
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
    spacing = sampling.get("spacing", "trailing")
    threshold = _threshold_config(sampling)
    kind = _class_of(sampling, threshold, pipeline)
    defaults = CLASSES[kind].defaults
    found = dict(_class_name=kind, num_train_timesteps=STEPS, prediction_type="")
    found |= _CURVES[process["schedule"]]
    found["prediction_type"] = names[process["prediction"]]
    found["timestep_spacing"] = spacing if spacing in ("trailing", "leading") else "linspace"
    if spacing == "karras":
        found["use_karras_sigmas"] = True
    for key in sorted(found.keys() - defaults.keys() - {"_class_name"}):
        raise UserError(
            f"{kind} has no {key}, which this generator needs ({found[key]}): it cannot be "
            "exported with this sampling.sampler."
        )
    if "clip_sample" in defaults:
        found["clip_sample"] = False
    if "set_alpha_to_one" in defaults:
        found["set_alpha_to_one"] = True
    return found | threshold


def _threshold_config(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`_threshold`."""
    match sampling.get("threshold", "none"):
        case "dynamic":
            return dict(
                thresholding=True,
                dynamic_thresholding_ratio=sampling.get("threshold_quantile", 0.995),
                sample_max_value=sampling.get("threshold_limit") or _NO_LIMIT,
            )
        case "static":
            return dict(clip_sample=True)
    return {}


def _class_of(sampling: Mapping[str, Any], threshold: Mapping[str, Any], pipeline: str) -> str:
    """The class to write. DDIM's thresholds are not ours, see :func:`latents`."""
    sampler = sampling["sampler"]
    candidates = [
        kind for kind, known in CLASSES.items() if known.exact and known.sampler == sampler
    ]
    if not candidates:
        raise UserError(f"Public pipelines have no sampler {sampler}.")
    never = threshold and sampler == "ddim"
    never = never or (pipeline == _NEVER_CLIPS and "clip_sample" in threshold)
    for kind in candidates:
        if threshold.keys() <= CLASSES[kind].defaults.keys() and not never:
            return kind
    raise UserError(
        f"Public pipelines have no sampling.threshold={sampling['threshold']} with "
        f"sampling.sampler={sampler}{f' in a {pipeline}' if pipeline else ''}: set the "
        "threshold to none before the export."
    )


# Pixels ------------------------------------------------------------------------------------------


def pixels(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """``config.process`` and ``config.sampling`` of the scheduler_config.json of a pipeline of
    pixels, whose network predicts a variance.

    Raises:
      UserError: another class than DDPMScheduler, or a setting that does not exist here, by name.
    """
    if config.get("_class_name") != DDPM:
        raise UserError(
            f"This scheduler is a {config.get('_class_name')}; for pixels only {DDPM} is supported."
        )
    c = complete_settings(config)
    for key, known in (("variance_type", _VARIANCES), ("timestep_spacing", _PIXEL_SPACINGS)):
        if c[key] not in known:
            raise _refused(key, c[key], *known)
    if c["timestep_spacing"] == "leading" and c["steps_offset"]:
        raise _refused("steps_offset", c["steps_offset"], 0)
    ours = dict(process(config), variance=_VARIANCES[c["variance_type"]])
    spacing = _PIXEL_SPACINGS[c["timestep_spacing"]]
    return ours, dict(sampler="ancestral", spacing=spacing, **_threshold(c))


def pixels_config(process: Mapping[str, Any], sampling: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`pixels`.

    Raises:
      UserError: a setting that the public class does not have.
    """
    spacing, known = sampling.get("spacing", "trailing"), _PIXEL_SPACINGS.values()
    if sampling["sampler"] != "ancestral" or spacing not in known:
        raise UserError(
            f"Public pipelines of pixels need sampling.sampler=ancestral and sampling.spacing="
            f"{' or '.join(known)}; this generator has {sampling['sampler']} and {spacing}."
        )
    found = to_config({**process, "variance": "fixed"}, sampling)
    learned = process.get("variance") == "learned_range"
    found |= dict(
        _class_name=DDPM,
        variance_type="learned_range" if learned else "fixed_small",
        thresholding=False,
        clip_sample=False,
    )
    return found | _threshold_config(sampling)


def steps_of_noise(config: Mapping[str, Any]) -> str:
    """``low_resolution.schedule`` of a scheduler_config.json. Only its noise is used; nothing is
    sampled with it."""
    return process(config)["schedule"]


def steps_config(schedule: str) -> dict[str, Any]:
    """The inverse of :func:`steps_of_noise`."""
    if schedule not in _CURVES:
        raise UserError(
            f"Public pipelines have no low_resolution.schedule={schedule}, only "
            f"{', '.join(_CURVES)}: this generator cannot be exported to one."
        )
    return dict(_class_name=DDPM, num_train_timesteps=STEPS, **_CURVES[schedule])


# Flow matching -----------------------------------------------------------------------------------

FLOW = "FlowMatchEulerDiscreteScheduler"
_FLOW_DEFAULTS: dict[str, Any] = dict(
    num_train_timesteps=STEPS,
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
# Read below, or only used by dynamic shifting, which is refused.
_FLOW_READ = {
    *("shift", "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len"),
    "time_shift_type",
}


def flow(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """``config.process`` and ``config.sampling`` of the scheduler_config.json of flow matching.

    The public class spaces times evenly down to its lowest time, which is already shifted, and then
    shifts all of them. That time is the lower bound here.

    Raises:
      UserError: another class or path, by name.
    """
    if config.get("_class_name") != FLOW:
        raise UserError(
            f"This scheduler is a {config.get('_class_name')}; for flow matching only {FLOW} is "
            "supported."
        )
    shift = complete(config, _FLOW_DEFAULTS, _FLOW_READ, FLOW)["shift"]
    low = shift / (STEPS + shift - 1)
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
      UserError: a setting that the public class does not have, by name.
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
    """``config.process`` and ``config.sampling`` of the scheduler_config.json of aMUSEd.

    ``vocabulary``: the number of rows in the embedding table of the denoiser. Steps, guidance and
    temperature are the defaults of its pipeline. Its temperature falls from 2 in the first of T
    steps to 0 in the last, which is 2 T / (T - 1) at the times where the steps end.

    Raises:
      UserError: another schedule or [MASK] than ours, by the setting's name.
    """
    kind = config.get("_class_name")
    if kind != MASKING:
        raise UserError(f"This scheduler is a {kind}; for tokens only {MASKING} is supported.")
    defaults = dict(mask_token_id=0, masking_schedule="cosine")
    token = complete(config, defaults, ["mask_token_id"], MASKING)["mask_token_id"]
    if token != vocabulary - 1:
        raise UserError(
            f"This scheduler has mask_token_id = {token}; only {vocabulary - 1} is supported, the "
            "last row of the transformer's embedding table."
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
