"""From a config to the generation task: denoiser, process, sampling, low-resolution input."""

import math
from functools import partial
from typing import Any

import jax
from flax import nnx
from ml_collections import ConfigDict

from emu_jax.assembly.adapters import adapter_options
from emu_jax.assembly.codecs import make_codec
from emu_jax.assembly.encoders import frozen_encoders, make_encoders
from emu_jax.assembly.groups import make_groups
from emu_jax.assembly.networks import compute_dtype, module
from emu_jax.assembly.streams import require_side, stream_spec
from emu_jax.errors import UserError
from emu_jax.nn.arguments import check_arguments
from emu_jax.nn.conditioner import Conditioner
from emu_jax.nn.control import ControlNet
from emu_jax.nn.denoisers import DENOISERS
from emu_jax.nn.functional import Network
from emu_jax.nn.text_adapter import AdaptedConditioner
from emu_jax.parallel.convolution import convolve_by
from emu_jax.parallel.gates import gate_by
from emu_jax.parallel.placement import Placement
from emu_jax.process.gaussian import GaussianProcess
from emu_jax.process.masking import MaskingProcess
from emu_jax.process.registry import PROCESSES, SCHEDULES, make_sampler
from emu_jax.registry import loaded, look_up
from emu_jax.tasks.base import Frozen
from emu_jax.tasks.codecs import Codec, TokenCodec
from emu_jax.tasks.generation import Generation
from emu_jax.tasks.image_conditions import Control, Editing, Inpainting, Spatial
from emu_jax.tasks.sampling import Sampling
from emu_jax.tasks.upsampling import LOW_CODEC, Low, LowResolution, LowTokens


def make_generation(config: ConfigDict, on: Placement) -> Generation:
    """The null conditioning is missing until ``prepare`` has the encoders' weights."""
    codec, frozen = make_codec(config.codec)
    encoders = make_encoders(config.text)
    frozen |= frozen_encoders(config.text, encoders)
    widths = {name: (encoder.width, encoder.pooled_width) for name, encoder in encoders.items()}
    arguments = dict(config.conditioner, encoders=widths, width=config.conditioner.width or None)
    kind: type[Conditioner] = Conditioner
    if (adapter := config.get("adapter")) and adapter.layers:
        kind, options = AdaptedConditioner, adapter_options(config)
        arguments |= dict(adapter=options, on_null=adapter.on_null)
    conditioner = partial(module, kind, arguments)
    outputs = nnx.eval_shape(lambda: conditioner(nnx.Rngs(0)))
    low, low_codec = make_low_resolution(config, codec)
    frozen |= low_codec
    require_side(config, math.lcm(codec.factor, low.scale if low else 1))
    side = max(map(max, stream_spec(config).shapes())) // codec.factor
    process, spatial = make_process(config.process, codec), make_spatial(config)
    widths = outputs.context_width, outputs.vector_width
    denoiser = make_denoiser(config.denoiser, codec, process, side, *widths, low, on, spatial)
    sampling = make_sampling(config.sampling, process)
    if sampling.sag_scale:
        if not DENOISERS[config.denoiser.kind].attention:
            names = ", ".join(name for name, kind in DENOISERS.items() if kind.attention)
            raise UserError(
                f"sampling.sag_scale is {sampling.sag_scale}, but a denoiser of kind "
                f"{config.denoiser.kind} returns no attention: set it to 0, or use {names}."
            )
        jax.eval_shape(partial(denoiser, method="require_attention"), denoiser.shapes())
    return Generation(
        denoiser=denoiser,
        conditioner=Network(conditioner),
        codec=codec,
        process=process,
        encoders=encoders,
        sampling=sampling,
        groups=make_groups(config),
        frozen=frozen,
        drop_text=config.drop_text,
        compute_dtype=compute_dtype(config),
        previews=max(config.sampling.previews, len(config.train.get("preview_prompts", ()))),
        low=low,
        control=make_control(config, codec, *widths, on),
        spatial=spatial,
    )


def make_spatial(config: ConfigDict) -> Spatial | None:
    """The image that is concatenated to the denoiser's input; older configs have no such section.

    Raises:
      UserError: the denoiser's data are tokens, or have a low-resolution image beside them already.
    """
    section = config.get("spatial")
    if not section or not section.kind:
        return None
    if config.process.get("kind") == "masking":
        raise UserError(
            f"spatial.kind is {section.kind!r}, but tokens have no channels beside them: leave it "
            "empty."
        )
    if (config.get("low_resolution") or {}).get("factor"):
        raise UserError(
            f"spatial.kind is {section.kind!r}, but a super-resolution stage has its "
            "low-resolution image there: leave one of the two out."
        )
    return Inpainting() if section.kind == "inpainting" else Editing(section.drop)


def make_control(
    config: ConfigDict, codec: Codec, context_width: int, vector_width: int, on: Placement
) -> Control | None:
    """The ControlNet of the denoiser; older configs have no such section.

    Raises:
      UserError: the denoiser is no U-Net of its own, or the hint's encoder does not halve a hint to
        the size of the codec's data.
    """
    section = config.get("control")
    if not section or not section.hint:
        return None
    low = (config.get("low_resolution") or {}).get("factor")
    if config.denoiser.get("kind", "unet") != "unet" or low:
        raise UserError(
            f"control.hint is {section.hint!r}, but ControlNets are for denoisers of kind unet "
            "without a low-resolution image: leave it empty."
        )
    halved = 2 ** (len(section.hint_widths) - 1)
    if halved != codec.factor:
        raise UserError(
            f"control.hint_widths has {len(section.hint_widths)} entries, which shrink a hint "
            f"{halved}-fold; the codec shrinks an image {codec.factor}-fold: use "
            f"{codec.factor.bit_length()} entries."
        )
    _, arguments = _arguments(config.denoiser, context_width, vector_width, on)
    arguments |= dict(in_channels=codec.row(1, 1)[-1], attention=section.attention, bgr=section.bgr)
    arguments |= dict(hint_channels=section.hint_channels, hint_widths=tuple(section.hint_widths))
    build = partial(module, ControlNet, arguments)
    network = Network(lambda rngs: convolve_by(on.convolve, build(rngs)))
    return Control(network, section.hint, 1.0 if section.train else section.strength)


def make_low_resolution(config: ConfigDict, codec: Codec) -> tuple[Low | None, dict[str, Frozen]]:
    """The low-resolution input of a super-resolution stage, and its frozen codec where it consists
    of tokens. Configs of other families have no such section.
    """
    section = config.get("low_resolution")
    if not section or not section.factor:
        return None, {}
    if isinstance(codec, TokenCodec):
        low_codec, frozen = make_codec(config[LOW_CODEC], LOW_CODEC)
        if not isinstance(low_codec, TokenCodec):
            raise UserError(
                f"{LOW_CODEC}.path {config[LOW_CODEC].path} has no codebook: a super-resolution "
                "stage for tokens needs the run of a vector-quantized autoencoder."
            )
        return LowTokens(low_codec, section.factor), frozen
    if codec.factor != 1:
        raise UserError(
            f"low_resolution.factor is {section.factor}, but super-resolution works on pixels "
            "(codec.kind=identity) or tokens: set it to 0."
        )
    arguments = section.to_dict()
    schedule = arguments.pop("schedule", "")
    noise = look_up(SCHEDULES, schedule, "low_resolution.schedule")() if schedule else None
    return LowResolution(**arguments, schedule=noise), {}


def make_denoiser(
    section: ConfigDict,
    codec: Codec,
    process: GaussianProcess | MaskingProcess,
    side: int,
    context_width: int,
    vector_width: int,
    low: Low | None,
    on: Placement,
    spatial: Spatial | None = None,
) -> Network:
    """The denoiser of a config's ``denoiser`` section.

    ``side`` is the number of positions along the longest side of an image. ``context_width`` is the
    width of the conditioner's text states; a section with a ``context_width`` of its own projects
    them to that.
    """
    name, arguments = _arguments(section, context_width, vector_width, on)
    if isinstance(codec, TokenCodec):
        data = "coarse tokens" if isinstance(low, LowTokens) else "tokens"
        arguments["codes"] = codec.codes
        if isinstance(low, LowTokens):
            low_side = side * codec.factor // low.scale
            arguments |= {"low_codes": low.codec.codes, "low_side": low_side}
    else:
        data, channels = "continuous", codec.row(side, side)[-1]
        assert isinstance(process, GaussianProcess)
        beside = channels if low else spatial.channels(channels) if spatial else 0
        arguments["in_channels"] = channels + beside
        arguments["out_channels"] = process.channels(channels)
    kinds = {name: kind for name, kind in DENOISERS.items() if kind.data == data}
    if name not in kinds:
        raise UserError(
            f"denoiser.kind is {name!r}; use one of {', '.join(kinds)} for this codec and stage "
            f"({data})."
        )
    kind = kinds[name]
    if kind.side:
        arguments["side"] = side
    if low and kind.level:
        arguments["level"] = True
    build = partial(module, loaded(kind.build), arguments)
    return Network(lambda rngs: gate_by(on.gated, convolve_by(on.convolve, build(rngs))))


def _arguments(
    section: ConfigDict, context_width: int, vector_width: int, on: Placement
) -> tuple[str, dict[str, Any]]:
    """The kind of a denoiser, and those arguments of its constructor that all kinds have."""
    arguments = {key: value for key, value in section.to_dict().items() if value is not None}
    name = arguments.pop("kind")
    return name, arguments | {
        "text_width" if "context_width" in arguments else "context_width": context_width,
        "vector_width": vector_width or None,
        "constrain": on.constrain,
        "attend": on.attend,
        "gather": on.gather,
    }


def make_process(section: ConfigDict, codec: Codec) -> GaussianProcess | MaskingProcess:
    """The corruption process: Gaussian noise, or masks for ``process.kind`` = "masking"."""
    arguments = section.to_dict()
    name = arguments.pop("kind", "gaussian")
    kind = look_up(PROCESSES, name, "process.kind")
    if (kind.data == "tokens") != isinstance(codec, TokenCodec):
        given = "tokens" if isinstance(codec, TokenCodec) else "no tokens"
        raise UserError(
            f"process.kind is {name!r}, but the codec gives {given}: use masking with a "
            "vector-quantized autoencoder and gaussian with any other codec."
        )
    if isinstance(codec, TokenCodec):
        arguments["codes"] = codec.codes
    return kind.build(**arguments)


def make_sampling(section: ConfigDict, process: GaussianProcess | MaskingProcess) -> Sampling:
    """The sampling settings of a config, for a process."""
    arguments = section.to_dict()
    name = arguments.pop("sampler")
    sampler = make_sampler(name, process, **{"temperature": 0.0, **arguments})
    for key in ("previews", "temperature"):
        arguments.pop(key, None)
    check_arguments(Sampling, arguments, "sampling")
    defaults = {"threshold": "none", "guidance_rescale": 0.0, "sag_scale": 0.0}
    changed = any(arguments.get(name, value) != value for name, value in defaults.items())
    if changed and not isinstance(process, GaussianProcess):
        raise UserError(
            "sampling.threshold, sampling.guidance_rescale and sampling.sag_scale do not apply to "
            "tokens: leave them at none and 0."
        )
    return Sampling(sampler, **arguments)
