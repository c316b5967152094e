"""From a config to the generation task: denoiser, process, sampling, low-resolution input."""

from functools import partial

import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from emu_jax.assembly.codecs import make_codec
from emu_jax.assembly.encoders import frozen_encoders, make_encoders
from emu_jax.assembly.groups import make_groups
from emu_jax.assembly.networks import module
from emu_jax.assembly.streams import stream_spec
from emu_jax.errors import UserError
from emu_jax.nn.conditioner import Conditioner
from emu_jax.nn.diffusion_transformer import DiffusionTransformer
from emu_jax.nn.efficient_unet import EfficientUNet
from emu_jax.nn.functional import Network
from emu_jax.nn.mmdit import MMDiT
from emu_jax.nn.pixart import PixArt
from emu_jax.nn.super_resolution import SuperResolutionTransformer
from emu_jax.nn.token_transformer import TokenTransformer
from emu_jax.nn.unet import UNet
from emu_jax.nn.uvit import UVit
from emu_jax.parallel.convolution import convolve_by
from emu_jax.parallel.placement import Placement
from emu_jax.process.gaussian import GaussianProcess
from emu_jax.process.masking import MaskingProcess
from emu_jax.process.registry import PROCESSES, SCHEDULES, look_up, make_sampler
from emu_jax.process.schedules import Shifted
from emu_jax.tasks.base import Frozen
from emu_jax.tasks.codecs import Codec, TokenCodec
from emu_jax.tasks.generation import Generation, Sampling
from emu_jax.tasks.upsampling import LOW_CODEC, Low, LowResolution, LowTokens


def make_generation(config: ConfigDict, on: Placement) -> Generation:
    """The null conditioning is missing until ``prepare`` has the encoders' weights."""
    codec, frozen = make_codec(config.codec)
    encoders = make_encoders(config.text)
    frozen |= frozen_encoders(config.text, encoders)
    widths = {name: (encoder.width, encoder.pooled_width) for name, encoder in encoders.items()}
    arguments = dict(config.conditioner, encoders=widths, width=config.conditioner.width or None)
    conditioner = partial(module, Conditioner, arguments)
    told = nnx.eval_shape(lambda: conditioner(nnx.Rngs(0)))
    low, read_by = make_low_resolution(config, codec)
    frozen |= read_by
    side = max(map(max, stream_spec(config).shapes())) // codec.factor
    process = make_process(config.process, codec)
    denoiser = make_denoiser(
        *(config.denoiser, codec, process, side, told.context_width, told.vector_width),
        *(low, on),
    )
    return Generation(
        denoiser=denoiser,
        conditioner=Network(conditioner),
        codec=codec,
        process=process,
        encoders=encoders,
        sampling=make_sampling(config.sampling, process),
        groups=make_groups(config),
        frozen=frozen,
        drop_text=config.drop_text,
        compute_dtype=jnp.dtype(config.compute_dtype),
        previews=config.sampling.previews,
        low=low,
    )


def make_low_resolution(config: ConfigDict, codec: Codec) -> tuple[Low | None, dict[str, Frozen]]:
    """What a super-resolution stage is told, and the codec to freeze that reads it, where it is
    tokens; configs of other families have no such section.
    """
    section = config.get("low_resolution")
    if not section or not section.factor:
        return None, {}
    if isinstance(codec, TokenCodec):
        low_codec, frozen = make_codec(config[LOW_CODEC], LOW_CODEC)
        if not isinstance(low_codec, TokenCodec):
            raise UserError(
                f"{LOW_CODEC} gives no tokens, which are what a super-resolution stage of tokens "
                "reads: name a vector-quantised autoencoder's run."
            )
        return LowTokens(low_codec, **section), frozen
    if codec.factor != 1:
        raise UserError(
            "Super-resolution (low_resolution.factor) is for pixels, codec.kind=identity, or for "
            "tokens."
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
) -> Network:
    """``side``: positions along the longest side of a picture; ``context_width``: of the text that
    it is given, which a U-Net whose section says another width projects to that.
    """
    arguments = section.to_dict()
    kind = arguments.pop("kind")
    arguments |= {
        "text_width" if "context_width" in arguments else "context_width": context_width,
        "vector_width": vector_width or None,
        "constrain": on.constrain,
        "attend": on.attend,
    }
    data = "tokens" if isinstance(codec, TokenCodec) else "continuous data"
    if isinstance(codec, TokenCodec):
        arguments["codes"] = codec.codes
        if isinstance(low, LowTokens):
            kinds = {"super_resolution_transformer": SuperResolutionTransformer}
            data = "tokens to be drawn from coarser ones"
            low_side = side * codec.factor // low.scale
            arguments |= {"side": side, "low_codes": low.codec.codes, "low_side": low_side}
        else:
            kinds = {"token_transformer": TokenTransformer, "uvit": UVit}
            if kind == "token_transformer":
                arguments["side"] = side
    else:
        if kind in ("unet", "efficient_unet", "pixart", "mmdit"):
            arguments["gather"] = on.gather
        kinds = {
            "unet": UNet,
            "efficient_unet": EfficientUNet,
            "transformer": DiffusionTransformer,
            "pixart": PixArt,
            "mmdit": MMDiT,
        }
        channels = codec.row(side, side)[-1]
        assert isinstance(process, GaussianProcess)
        arguments |= {
            "in_channels": 2 * channels if low else channels,
            "out_channels": process.channels(channels),
        }
        if low:
            arguments["level"] = True
    if kind not in kinds:
        raise UserError(
            f"denoiser.kind is one of {', '.join(kinds)} for this codec, which gives {data}, "
            f"not {kind!r}."
        )
    build = partial(module, kinds[kind], arguments)
    return Network(lambda rngs: convolve_by(on.convolve, build(rngs)))


def make_process(section: ConfigDict, codec: Codec) -> GaussianProcess | MaskingProcess:
    """Noise, or, where ``process.kind`` says so, masks."""
    arguments = section.to_dict()
    kind = arguments.pop("kind", "gaussian")
    masks = look_up(PROCESSES, kind, "process.kind") is MaskingProcess
    if masks != isinstance(codec, TokenCodec):
        given = "tokens" if isinstance(codec, TokenCodec) else "no tokens"
        raise UserError(
            f"process.kind {kind} does not fit codec.path, whose codec gives {given}: masking is "
            "for a vector-quantised autoencoder, gaussian for any other."
        )
    if isinstance(codec, TokenCodec):
        return MaskingProcess(codec.codes)
    schedule = look_up(SCHEDULES, arguments.pop("schedule"), "process.schedule")()
    shift = arguments.pop("shift", 1.0)
    if "bounds" in arguments:
        arguments["bounds"] = tuple(arguments["bounds"])
    return GaussianProcess(schedule if shift == 1 else Shifted(schedule, shift), **arguments)


def make_sampling(section: ConfigDict, process: GaussianProcess | MaskingProcess) -> Sampling:
    arguments = section.to_dict()
    arguments.pop("previews")
    name, temperature = arguments.pop("sampler"), arguments.pop("temperature", 0.0)
    if isinstance(process, GaussianProcess):
        return Sampling(make_sampler(name, process), **arguments)
    sampler = make_sampler(name, process, temperature=temperature)
    if arguments.get("threshold", "none") != "none" or arguments.get("guidance_rescale"):
        raise UserError(
            "Tokens have no range to keep to and no spread to restore: leave sampling.threshold at "
            "none and sampling.guidance_rescale at 0."
        )
    return Sampling(sampler, **arguments)
