"""From a config to the parts of a run: task, streams, mesh. The one place that knows every room.

Each function reads one section of a config made from :func:`emu_jax.cli.config.defaults`.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from emu_jax.checkpoint.export import load_model
from emu_jax.checkpoint.foreign import described_by, require_fit
from emu_jax.checkpoint.paths import is_config_file
from emu_jax.checkpoint.safetensors_io import fingerprint_params
from emu_jax.cli.config import read
from emu_jax.cli.encoders import blank_condition, frozen_encoders, make_encoders
from emu_jax.cli.models import locate, make_lora, open_model
from emu_jax.data.pipeline import Part, StreamSpec
from emu_jax.data.source import open_source
from emu_jax.errors import UserError
from emu_jax.nn.arguments import check_arguments
from emu_jax.nn.autoencoder import Autoencoder
from emu_jax.nn.conditioner import Conditioner
from emu_jax.nn.contrastive import ContrastiveModel
from emu_jax.nn.diffusion_transformer import DiffusionTransformer
from emu_jax.nn.discriminator import PatchDiscriminator
from emu_jax.nn.efficient_unet import EfficientUNet
from emu_jax.nn.functional import Network
from emu_jax.nn.mmdit import MMDiT
from emu_jax.nn.perceptual import Lpips, load_lpips
from emu_jax.nn.pixart import PixArt
from emu_jax.nn.stack import relaid
from emu_jax.nn.super_resolution import SuperResolutionTransformer
from emu_jax.nn.token_transformer import TokenTransformer
from emu_jax.nn.unet import UNet
from emu_jax.nn.uvit import UVit
from emu_jax.parallel.convolution import convolve_by
from emu_jax.parallel.placement import ONE_DEVICE, Placement
from emu_jax.process.decoding import ParallelDecoding
from emu_jax.process.gaussian import GaussianProcess
from emu_jax.process.masking import MaskingProcess
from emu_jax.process.samplers import sampler_named
from emu_jax.process.schedules import Cosine, Discrete, Flow, Schedule, Shifted
from emu_jax.tasks.adapting import BASE, AdaptedGeneration, base_shapes
from emu_jax.tasks.autoencoding import Autoencoding
from emu_jax.tasks.base import Frozen, Group, Task
from emu_jax.tasks.bottlenecks import Quantizer
from emu_jax.tasks.codecs import (
    AutoencoderCodec,
    Codec,
    IdentityCodec,
    TokenCodec,
    codec_params,
)
from emu_jax.tasks.contrastive import Contrastive
from emu_jax.tasks.generation import Generation, Sampling
from emu_jax.tasks.upsampling import LOW_CODEC, Low, LowResolution, LowTokens
from emu_jax.training.optimizers import make_optimizer

SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "cosine": Cosine,
    "linear": partial(Discrete, "linear", 1e-4, 0.02),
    "scaled_linear": partial(Discrete, "scaled_linear"),
    "scaled_linear_zero_snr": partial(Discrete, "scaled_linear", zero_terminal_snr=True),
    "squared_cosine": partial(Discrete, "cosine"),
    "flow": Flow,
}
Constrain = Callable[[jax.Array], jax.Array]


def make_task(config: ConfigDict, on: Placement = ONE_DEVICE) -> Task:
    """The task of a config, on one device or as ``on`` says."""
    makers = {
        "generation": make_generation,
        "autoencoding": make_autoencoding,
        "contrastive": make_contrastive,
    }
    if config.task not in makers:
        raise UserError(f"config.task is one of {', '.join(makers)}, not {config.task!r}.")
    return makers[config.task](config, on)


def make_groups(config: ConfigDict) -> dict[str, Group]:
    groups = {}
    for name, section in config.groups.items():
        updates = (config.train.steps - section.first_step) // section.every
        transform, schedule = make_optimizer(section.optimizer.to_dict(), steps=updates)
        groups[name] = Group(
            section.pattern,
            transform,
            schedule,
            section.first_step,
            section.every,
            section.ema_decay or None,
        )
    return groups


# Autoencoding ------------------------------------------------------------------------------------


def autoencoder_network(config: ConfigDict, constrain: Constrain) -> Network:
    arguments = dict(config.autoencoder, latent_channels=config.latent_channels)
    if quantized(config):
        arguments["variational"] = False
    return Network(partial(_module, Autoencoder, {**arguments, "constrain": constrain}))


def autoencoder_factor(config: ConfigDict) -> int:
    """Pixels along a side of what becomes one position of the latents."""
    return 2 ** (len(config.autoencoder.widths) - 1)


def quantized(config: ConfigDict) -> int:
    """How many codes an autoencoder has; 0: its latents are Gaussian."""
    return config.quantizer.codes if "quantizer" in config else 0


def make_autoencoding(config: ConfigDict, on: Placement) -> Autoencoding:
    critic = config.discriminator.to_dict()
    discriminator = None
    if critic.pop("enabled"):
        discriminator = Network(partial(_module, PatchDiscriminator, critic))
    loss, lpips, frozen = config.loss, None, {}
    if loss.perceptual_weight:
        if not loss.perceptual_path:
            raise UserError(
                "loss.perceptual_weight needs loss.perceptual_path, the VGG-16 and LPIPS weights; "
                "set the weight to 0 to train without."
            )
        lpips = Network(partial(_module, Lpips, {}))
        frozen["lpips"] = _frozen_arrays(loss.perceptual_path, load_lpips(loss.perceptual_path))
    groups = make_groups(config)
    if not discriminator:
        groups.pop("discriminator", None)
    quantizer = None
    if quantized(config):
        quantizer = Quantizer(config.latent_channels, **config.quantizer)
        if quantizer.frozen and not config.init_from:
            raise UserError(
                "quantizer.frozen needs init_from, the trained autoencoder whose codes it keeps."
            )
    return Autoencoding(
        autoencoder=autoencoder_network(config, on.constrain),
        discriminator=discriminator,
        lpips=lpips,
        latent_channels=config.latent_channels,
        groups=groups,
        frozen=frozen,
        kl_weight=loss.kl_weight,
        perceptual_weight=loss.perceptual_weight,
        adversarial_weight=loss.adversarial_weight,
        adversarial_start=loss.adversarial_start,
        compute_dtype=jnp.dtype(config.compute_dtype),
        quantizer=quantizer,
    )


# The judge ---------------------------------------------------------------------------------------


def make_contrastive(config: ConfigDict, on: Placement) -> Contrastive:
    encoders = make_encoders(config.text)
    pooled = [encoder.pooled_width for encoder in encoders.values()]
    if len(pooled) != 1 or not pooled[0]:
        raise UserError(
            "A judge reads one text encoder, one with a pooled vector: see config.text."
        )
    arguments = dict(config.judge, text_width=pooled[0], constrain=on.constrain)
    return Contrastive(
        model=Network(partial(_module, ContrastiveModel, arguments)),
        encoders=encoders,
        groups=make_groups(config),
        frozen=frozen_encoders(config.text, encoders),
        compute_dtype=jnp.dtype(config.compute_dtype),
    )


# Generation --------------------------------------------------------------------------------------


def make_generation(config: ConfigDict, on: Placement) -> Generation:
    """Its null conditions are blank: what the encoders say of no text takes their weights."""
    codec, frozen = make_codec(config.codec)
    encoders = make_encoders(config.text)
    frozen |= frozen_encoders(config.text, encoders)
    widths = {name: (encoder.width, encoder.pooled_width) for name, encoder in encoders.items()}
    arguments = dict(config.conditioner, encoders=widths, width=config.conditioner.width or None)
    conditioner = partial(_module, Conditioner, arguments)
    told = nnx.eval_shape(lambda: conditioner(nnx.Rngs(0)))
    low, read_by = make_low_resolution(config, codec)
    frozen |= read_by
    side = max(map(max, stream_spec(config).shapes())) // codec.factor
    process = make_process(config.process, codec)
    denoiser = make_denoiser(
        *(config.denoiser, codec, process, side, told.context_width, told.vector_width),
        *(low, on),
    )
    task = Generation(
        denoiser=denoiser,
        conditioner=Network(conditioner),
        codec=codec,
        process=process,
        encoders=encoders,
        null={name: blank_condition(encoder) for name, encoder in encoders.items()},
        sampling=make_sampling(config.sampling, process),
        groups=make_groups(config),
        frozen=frozen,
        drop_text=config.drop_text,
        compute_dtype=jnp.dtype(config.compute_dtype),
        previews=config.sampling.previews,
        low=low,
    )
    lora = make_lora(config)
    if lora is None:
        return task
    frozen = {BASE: adapted_base(config, base_shapes(task)), **frozen}
    return AdaptedGeneration(**{**vars(task), "frozen": frozen}, lora=lora)


def adapted_base(config: ConfigDict, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> Frozen:
    """The generator that ``init_from`` names, to be left as it is while an adapter of it trains.

    A config file in its place, as for a codec, says that a step is only planned.
    """
    source, dtype = config.init_from, config.lora.dtype
    if not source:
        raise UserError("lora.rank needs init_from, the trained generator that is adapted.")
    if config.init_skip:
        raise UserError(
            "init_skip starts parameters anew, which lora.rank would leave so: set one of the two."
        )
    if is_config_file(source):
        return Frozen(source, "none", shapes, _untrained("init_from", source), dtype)
    model = open_model(source)
    found = relaid(model.params, shapes)
    for path, wanted in shapes.items():
        shape = np.shape(found[path]) if path in found else None
        if shape != wanted.shape:
            there = "is not in" if shape is None else f"is {list(shape)} in"
            raise UserError(
                f"{path} {there} {source} and {list(wanted.shape)} here: lora adapts a model as it "
                "is, so take the config that it was trained with."
            )
    base = {path: found[path] for path in shapes}
    return Frozen(source, model.fingerprint, shapes, lambda: iter(base.items()), dtype)


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
    noise = _schedule("low_resolution.schedule", schedule) if schedule else None
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
    build = partial(_module, kinds[kind], arguments)
    return Network(lambda rngs: convolve_by(on.convolve, build(rngs)))


def make_process(section: ConfigDict, codec: Codec) -> GaussianProcess | MaskingProcess:
    """Noise, or, where ``process.kind`` says so, masks."""
    arguments = section.to_dict()
    kind = arguments.pop("kind", "gaussian")
    if kind not in ("gaussian", "masking"):
        raise UserError(f"process.kind is gaussian or masking, not {kind!r}.")
    if (kind == "masking") != isinstance(codec, TokenCodec):
        given = "tokens" if isinstance(codec, TokenCodec) else "no tokens"
        raise UserError(
            f"process.kind {kind} does not fit codec.path, whose codec gives {given}: masking is "
            "for a vector-quantised autoencoder, gaussian for any other."
        )
    if isinstance(codec, TokenCodec):
        return MaskingProcess(codec.codes)
    schedule = _schedule("process.schedule", arguments.pop("schedule"))
    shift = arguments.pop("shift", 1.0)
    if "bounds" in arguments:
        arguments["bounds"] = tuple(arguments["bounds"])
    check_arguments(GaussianProcess, arguments, "process")
    return GaussianProcess(schedule if shift == 1 else Shifted(schedule, shift), **arguments)


def _schedule(key: str, name: str) -> Schedule:
    if name not in SCHEDULES:
        raise UserError(f"{key} is one of {', '.join(SCHEDULES)}, not {name!r}.")
    return SCHEDULES[name]()


def make_sampling(section: ConfigDict, process: GaussianProcess | MaskingProcess) -> Sampling:
    arguments = section.to_dict()
    arguments.pop("previews")
    name, temperature = arguments.pop("sampler"), arguments.pop("temperature", 0.0)
    check_arguments(Sampling, arguments, "sampling")
    if isinstance(process, GaussianProcess):
        return Sampling(sampler_named(name), **arguments)
    if name != "parallel":
        raise UserError(f"Tokens are drawn by the sampler parallel, not {name!r}.")
    if arguments.get("threshold", "none") != "none" or arguments.get("guidance_rescale"):
        raise UserError(
            "Tokens have no range to keep to and no spread to restore: leave sampling.threshold at "
            "none and sampling.guidance_rescale at 0."
        )
    return Sampling(ParallelDecoding(temperature), **arguments)


def make_codec(section: ConfigDict, name: str = "codec") -> tuple[Codec, dict[str, Frozen]]:
    """The codec, and its weights to freeze, from an autoencoder's run or exported model.

    ``name`` is the section's, and the frozen network's. A path that is a config file says the
    shapes alone, of an autoencoder still to be trained: enough to plan a generator's step with.
    """
    if section.kind == "identity":
        return IdentityCodec(), {}
    if section.kind != "autoencoder":
        raise UserError(f"{name}.kind is autoencoder or identity, not {section.kind!r}.")
    planned = is_config_file(section.path)  # typed by the user: stored configs name none
    model = None if planned else load_model(locate(section.path), dtype=np.float32)
    made_by = ConfigDict(model.config) if model else read(section.path)
    if made_by.get("task") != "autoencoding":
        task = made_by.get("task")
        raise UserError(f"{name}.path {section.path} is no autoencoder: its task is {task}.")
    with described_by(section.path):
        network, factor = autoencoder_network(made_by, lambda x: x), autoencoder_factor(made_by)
        codes = quantized(made_by)
        codec = (
            TokenCodec(network, codes, made_by.latent_channels, factor)
            if codes
            else AutoencoderCodec(network, made_by.latent_channels, factor)
        )
        weights = codec_params(model.params) if model else {}
    if model:
        require_fit(weights, codec.shapes(), section.path)
        return codec, {name: _frozen_arrays(section.path, weights)}
    untrained = _untrained(f"{name}.path", section.path)
    return codec, {name: Frozen(section.path, "none", codec.shapes(), untrained)}


def _untrained(key: str, path: str) -> Callable[[], Iterator[tuple[str, np.ndarray]]]:
    def refuse() -> Iterator[tuple[str, np.ndarray]]:
        raise UserError(
            f"{key} {path} is a config file, which is enough to plan a step, not to run one: "
            "name the run or the exported model of what was trained by it."
        )

    return refuse


# Data --------------------------------------------------------------------------------------------


def make_parts(config: ConfigDict, sources: ConfigDict) -> list[Part]:
    """The sources of one stream; one that is not there or selects nothing is refused at once."""
    chosen = [
        Part(open_source(entry.dataset, config.data.data_dir), entry.weight, entry.select)
        for entry in sources.values()
    ]
    for part in chosen:
        part.records()
    return chosen


def stream_spec(config: ConfigDict, **changes: Any) -> StreamSpec:
    data = config.data
    arguments: dict[str, Any] = dict(
        batch_size=config.train.batch_size,
        side=data.image_size,
        seed=config.train.seed,
        buckets=data.buckets,
        bucket_step=data.bucket_step,
        background=tuple(data.background),
        crop="random" if data.random_crop else "centre",
        flip=data.flip,
        workers=data.workers,
        threads=data.threads,
    )
    return StreamSpec(**{**arguments, **changes})


# Small helpers -----------------------------------------------------------------------------------


def _module(kind: Callable, arguments: Mapping[str, Any], rngs: nnx.Rngs) -> Any:
    check_arguments(kind, arguments, kind.__name__)
    try:
        return kind(**arguments, rngs=rngs)
    except TypeError as error:
        raise UserError(f"{kind.__name__}: {error}.") from error


def _frozen_arrays(source: str, params: Mapping[str, Any]) -> Frozen:
    shapes = {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in params.items()}
    return Frozen(source, fingerprint_params(params), shapes, lambda: iter(params.items()))
