"""The scheduler classes of diffusers that can be imported: their default settings, and the sampler
that replaces each.

A scheduler_config.json leaves out what equals the default of its class, and the defaults differ
from class to class. :func:`complete_settings` fills them in and refuses, by name, every setting
that is neither read by :mod:`emu_jax.interop.schedulers` nor in the list of harmless ones below.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from emu_jax.errors import UserError
from emu_jax.interop.configs import complete

STEPS = 1000
DDIM, DDPM, DPM = "DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler"


class Known(NamedTuple):
    """``sampler``: ours ("": none). ``exact``: whether it is the same method."""

    sampler: str
    exact: bool
    defaults: Mapping[str, Any]


_NOISE = dict(
    num_train_timesteps=STEPS,
    beta_start=1e-4,
    beta_end=0.02,
    beta_schedule="linear",
    trained_betas=None,
    prediction_type="epsilon",
)
_STABLE = dict(_NOISE, beta_start=0.00085, beta_end=0.012)
_LEADING = dict(timestep_spacing="leading", steps_offset=0)
_LINSPACE = dict(timestep_spacing="linspace", steps_offset=0)
_RESCALE = dict(rescale_betas_zero_snr=False)
_CLIP = dict(clip_sample=True, clip_sample_range=1.0)
_THRESHOLD = dict(thresholding=False, dynamic_thresholding_ratio=0.995, sample_max_value=1.0)
_SIGMAS = dict(use_karras_sigmas=False, use_exponential_sigmas=False, use_beta_sigmas=False)
_FLOW = dict(
    use_flow_sigmas=False,
    flow_shift=1.0,
    use_dynamic_shifting=False,
    time_shift_type="exponential",
)
_MULTISTEP = dict(_NOISE, **_THRESHOLD, **_SIGMAS, **_FLOW, solver_order=2)
_SOLVER = dict(
    _MULTISTEP,
    algorithm_type="dpmsolver++",
    solver_type="midpoint",
    final_sigmas_type="zero",
    lambda_min_clipped=-float("inf"),
    variance_type=None,
)
_CONSISTENCY = dict(
    _STABLE,
    **_CLIP | dict(clip_sample=False),
    **_THRESHOLD,
    **_LEADING,
    **_RESCALE,
    beta_schedule="scaled_linear",
    original_inference_steps=50,
    set_alpha_to_one=True,
    timestep_scaling=10.0,
)
_KDPM = dict(_STABLE, **_SIGMAS, **_LINSPACE)

# The first class of a sampler that can represent the settings is the one that an export writes.
CLASSES: dict[str, Known] = {
    DDIM: Known(
        "ddim",
        True,
        dict(_NOISE, **_CLIP, **_THRESHOLD, **_LEADING, **_RESCALE, set_alpha_to_one=True),
    ),
    DPM: Known(
        "dpmpp_2m",
        True,
        dict(
            _SOLVER,
            **_LINSPACE,
            **_RESCALE,
            lower_order_final=True,
            euler_at_final=False,
            use_lu_lambdas=False,
        ),
    ),
    "EulerDiscreteScheduler": Known(
        "euler",
        True,
        dict(
            _NOISE,
            **_SIGMAS,
            **_LINSPACE,
            **_RESCALE,
            interpolation_type="linear",
            sigma_min=None,
            sigma_max=None,
            timestep_type="discrete",
            final_sigmas_type="zero",
        ),
    ),
    "EulerAncestralDiscreteScheduler": Known(
        "ancestral", True, dict(_NOISE, **_LINSPACE, **_RESCALE)
    ),
    "HeunDiscreteScheduler": Known(
        "heun", True, dict(_STABLE, **_SIGMAS, **_CLIP | dict(clip_sample=False), **_LINSPACE)
    ),
    DDPM: Known(
        "ancestral",
        True,
        dict(_NOISE, **_CLIP, **_THRESHOLD, **_LEADING, **_RESCALE, variance_type="fixed_small"),
    ),
    # The same differential equation, solved by another method.
    "PNDMScheduler": Known(
        "dpmpp_2m", False, dict(_NOISE, **_LEADING, skip_prk_steps=False, set_alpha_to_one=False)
    ),
    "LMSDiscreteScheduler": Known("dpmpp_2m", False, dict(_NOISE, **_SIGMAS, **_LINSPACE)),
    "KDPM2DiscreteScheduler": Known("dpmpp_2m", False, _KDPM),
    "KDPM2AncestralDiscreteScheduler": Known("ancestral", False, _KDPM),
    "DPMSolverSinglestepScheduler": Known(
        "dpmpp_2m", False, dict(_SOLVER, lower_order_final=False)
    ),
    "DEISMultistepScheduler": Known(
        "dpmpp_2m",
        False,
        dict(
            _MULTISTEP,
            **_LINSPACE,
            algorithm_type="deis",
            solver_type="logrho",
            lower_order_final=True,
        ),
    ),
    "UniPCMultistepScheduler": Known(
        "dpmpp_2m",
        False,
        dict(
            _MULTISTEP,
            **_LINSPACE,
            **_RESCALE,
            predict_x0=True,
            solver_type="bh2",
            lower_order_final=True,
            disable_corrector=[],
            solver_p=None,
            final_sigmas_type="zero",
            sigma_min=None,
            sigma_max=None,
            shift_terminal=None,
        ),
    ),
    # They sample distilled models, which no sampler here does; their noise is known.
    "LCMScheduler": Known("", False, _CONSISTENCY),
    "TCDScheduler": Known("", False, _CONSISTENCY),
}
# Read by ``schedulers``: mapped to ours, or refused there.
_READ = {
    *_NOISE,
    *("rescale_betas_zero_snr", "timestep_spacing", "use_karras_sigmas", "algorithm_type"),
    *("clip_sample", "clip_sample_range", "variance_type", *_THRESHOLD),
}
# Harmless: what they set is replaced here anyway, as docs/interop.md says. The offset of "leading"
# steps; the value on which the last step ends, which is x0 here; details of a multistep method; the
# shift of sigmas that are refused themselves.
_HARMLESS = {
    *("steps_offset", "set_alpha_to_one", "final_sigmas_type"),
    *("skip_prk_steps", "solver_order", "solver_type", "predict_x0", "solver_p"),
    *("lower_order_final", "euler_at_final", "disable_corrector"),
    *("flow_shift", "time_shift_type", "original_inference_steps", "timestep_scaling"),
}
_ALL = {key for known in CLASSES.values() for key in known.defaults}


def known_class(config: Mapping[str, Any]) -> Known:
    """The entry of a scheduler's class.

    Raises:
      UserError: it has none.
    """
    kind = config.get("_class_name")
    if not isinstance(kind, str) or kind not in CLASSES:
        names = ", ".join(name for name, known in CLASSES.items() if known.sampler)
        raise UserError(f"This scheduler is a {kind}, which is not supported; use one of {names}.")
    return CLASSES[kind]


def complete_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with the defaults of their class. A setting that only other classes have is
    left out, as diffusers ignores it, except one that would change the noise.

    Raises:
      UserError: an unknown class, or a setting that is neither read nor harmless, by name.
    """
    defaults = known_class(config).defaults
    kept = {
        key: value
        for key, value in config.items()
        if key in defaults or key not in _ALL or (key in _RESCALE and value)
    }
    return complete(kept, defaults, {*_READ, *_HARMLESS}, config["_class_name"])
