"""Components of public pipelines: weights and config.json <-> parameters and arguments of ours.

A denoiser becomes parameters under ``denoiser/`` and the arguments of its constructor; an
autoencoder becomes a model of its own. An export refuses, in a ``prepare_...`` function and before
anything is written, everything that the public class cannot represent.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import jax
import numpy as np
from etils import epath

from emu_jax.checkpoint.export import Model, save_model
from emu_jax.checkpoint.foreign import read_json
from emu_jax.checkpoint.huggingface import tokenizer_folder_of
from emu_jax.checkpoint.lazy import Lazy
from emu_jax.checkpoint.paths import file_in
from emu_jax.errors import UserError
from emu_jax.interop import autoencoder, control, pixart, sd3, unet, uvit, vq
from emu_jax.interop.configs import plain
from emu_jax.interop.files import (
    CONFIG,
    DIFFUSERS,
    TRANSFORMERS,
    copy_encoder,
    copy_small,
    nested,
    open_weights,
    renamed,
    to_params,
    to_tensors,
    together,
    watched,
    write_component,
)
from emu_jax.nn.arguments import check_arguments
from emu_jax.nn.autoencoder import Autoencoder
from emu_jax.nn.control import PREFIX as CONTROL
from emu_jax.nn.control import ControlNet
from emu_jax.nn.functional import Network
from emu_jax.nn.mmdit import MMDiT
from emu_jax.nn.pixart import PixArt
from emu_jax.nn.unet import UNet
from emu_jax.nn.uvit import UVit

# Arguments that follow from the networks around it, and so are not part of ``config.denoiser``.
_FROM_OTHERS = ("in_channels", "out_channels", "vector_width", "codes", "level")
# How a denoiser is computed, which does not change its result.
_ASIDE = ("kind", "scan", "remat")
LATENT_SHIFT, LATENT_SCALE = "latent/shift", "latent/scale"
CODEBOOK = "codebook/embedding"


class Parts(Protocol):
    """The parts of a pipeline, by the names of their folders in the layout of diffusers."""

    def where(self, name: str = "") -> str:
        """The name of the part in messages."""
        ...

    def settings(self, name: str = "", file: str = CONFIG) -> dict[str, Any]:
        """The object in a part's JSON file."""
        ...

    def weights(self, name: str = "", stem: str = DIFFUSERS) -> Lazy:
        """A part's tensors, with the keys of diffusers or transformers."""
        ...

    def copy_tokenizer(self, name: str, target: Path) -> None:
        """Writes the folder of a tokenizer."""
        ...


@dataclass(frozen=True)
class Source:
    """A folder, the variant of its weights, and whether a pickle may be opened."""

    folder: Path
    variant: str = ""
    pickle: bool = False

    def where(self, name: str = "") -> str:
        return str(self.folder / name)

    def settings(self, name: str = "", file: str = CONFIG) -> dict[str, Any]:
        path = self.folder / name / file
        if path.is_file():
            # The content may be copied, so a link may not bring in a file from elsewhere.
            file_in(epath.Path(self.folder), f"{name}/{file}".lstrip("/"), self.folder)
        return read_json(path)

    def weights(self, name: str = "", stem: str = DIFFUSERS) -> Lazy:
        return open_weights(self.folder / name, stem, self.variant, self.pickle)

    def copy_tokenizer(self, name: str, target: Path) -> None:
        copy_small(self.folder / name, target)


@dataclass(frozen=True)
class Imported:
    """Sections of a config, parameters, and the public config files that they were read from."""

    sections: dict[str, Any]
    params: Lazy
    source: dict[str, Any]


@dataclass(frozen=True)
class Component:
    """A part to be exported: its config.json and its tensors, with the keys of diffusers."""

    config: dict[str, Any]
    tensors: Lazy

    def write(self, folder: Path) -> None:
        write_component(folder, self.config, self.tensors)


@dataclass(frozen=True)
class Denoiser:
    """A class of denoisers: our ``kind`` and network, its folder in a pipeline, and the module that
    translates its config.json."""

    kind: str
    network: type
    folder: str
    public: ModuleType

    def shapes(self, arguments: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
        return Network(partial(_build, self.network, arguments)).shapes()


UNET = Denoiser("unet", UNet, "unet", unet)
UVIT = Denoiser("uvit", UVit, "transformer", uvit)
PIXART = Denoiser("pixart", PixArt, "transformer", pixart)
MMDIT = Denoiser("mmdit", MMDiT, "transformer", sd3)
DENOISERS = (UNET, UVIT, PIXART, MMDIT)


# In ----------------------------------------------------------------------------------------------


def import_denoiser(source: Parts, kind: Denoiser, name: str = "") -> Imported:
    """A denoiser: parameters and the arguments of its constructor."""
    config = source.settings(name)
    arguments = kind.public.arguments(config)
    params = to_params(source.weights(name), kind.shapes(arguments), source.where(name))
    # The width of the text comes from the encoders; a projection may attend with another width.
    others = {*_FROM_OTHERS, "text_width" if arguments.get("text_width") else "context_width"}
    own = {key: value for key, value in arguments.items() if key not in others}
    sections = dict(denoiser={"kind": kind.kind, **own}, arguments=arguments)
    return Imported(sections, nested("denoiser", params), {kind.folder: config})


def import_control(source: Parts, name: str = "") -> Imported:
    """A ControlNet: its parameters, and the sections of its U-Net and of itself. What its hints are
    its files do not say.
    """
    config = source.settings(name)
    arguments, own = control.arguments(config)
    shapes = Network(partial(_build, ControlNet, arguments | own)).shapes()
    params = to_params(source.weights(name), shapes, source.where(name))
    structure = {key: x for key, x in arguments.items() if key not in _FROM_OTHERS}
    sections = dict(denoiser={"kind": UNET.kind, **structure}, control={"hint": "other", **own})
    return Imported(sections, nested(CONTROL, params), {CONTROL: config})


def import_autoencoder(source: Parts, name: str = "") -> Imported:
    """An autoencoding model, with its latent shift and scale."""
    config = source.settings(name)
    arguments = autoencoder.arguments(config)
    shapes = Network(partial(_build, Autoencoder, arguments)).shapes()
    params = to_params(source.weights(name), shapes, source.where(name), autoencoder.current_key)
    shift, scale = autoencoder.latent_figures(config)
    figures = {LATENT_SHIFT: shift, LATENT_SCALE: scale}
    channels = arguments.pop("latent_channels")
    return Imported(
        dict(latent_channels=channels, autoencoder=arguments),
        together(nested("autoencoder", params), figures),
        {"vae": config},
    )


def import_vq(source: Parts, name: str = "") -> Imported:
    """An autoencoding model, with its codebook."""
    config = source.settings(name)
    sections = vq.sections(config)
    params = to_params(
        source.weights(name), _vq_shapes(sections), source.where(name), autoencoder.current_key
    )
    params = renamed(params, lambda path: CODEBOOK if path == vq.BOOK else f"autoencoder/{path}")
    return Imported(sections, params, {"vqvae": config})


def _vq_shapes(sections: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    width = sections["latent_channels"]
    arguments = dict(sections["autoencoder"], latent_channels=width, variational=False)
    book = jax.ShapeDtypeStruct((sections["quantizer"]["codes"], width), np.float32)
    return {**Network(partial(_build, Autoencoder, arguments)).shapes(), vq.BOOK: book}


def import_text_encoder(source: Parts, name: str, out: Path) -> None:
    """Copies a text encoder and its tokenizer into folders of ``out``, unchanged."""
    tensors = source.weights(name, TRANSFORMERS)
    write_component(out / name, source.settings(name), tensors, TRANSFORMERS)
    tokenizer = tokenizer_folder_of(name)
    source.copy_tokenizer(tokenizer, out / tokenizer)


def save_autoencoder(imported: Imported, out: Path) -> None:
    """Writes a model folder of ours."""
    config = {"task": "autoencoding", **imported.sections}
    params = watched(imported.params, "codec", passes=2)
    save_model(str(out), params, config, {"step": 0, "source": imported.source}, dtype=None)


# Out ---------------------------------------------------------------------------------------------


def denoiser_of(config: Mapping[str, Any]) -> Denoiser:
    """The public class of a model's denoiser."""
    kind = config["denoiser"].get("kind", "unet")
    for known in DENOISERS:
        if known.kind == kind:
            return known
    names = " or ".join(f"a {known.kind} ({known.public.CLASS})" for known in DENOISERS)
    raise UserError(f"A public denoiser is {names}; this one is a {kind}.")


def prepare_denoiser(model: Model, side: int, conditioner: Mapping[str, Any]) -> Component:
    """The denoiser."""
    kind = denoiser_of(model.config)
    section = {k: v for k, v in model.config["denoiser"].items() if k not in _ASIDE}
    params = _under("denoiser", model.params)
    arguments = section | kind.public.measured(params)
    if len(params) != len(kind.shapes(arguments)):
        raise UserError("The parameters of the model's denoiser do not match its config.")
    features = conditioner.get("size_features")
    if kind is UVIT:
        source = model.meta.get("source", {}).get(kind.folder, {})
        alone = source.get("micro_cond_encode_dim", uvit.DEFAULTS["micro_cond_encode_dim"])
        config = uvit.to_config(arguments, features or alone)
    elif kind in (PIXART, MMDIT):
        config = kind.public.to_config(arguments, side)
    else:
        config = unet.to_config(arguments)
        if features:
            config["addition_time_embed_dim"] = features
    meaning = kind.public.arguments
    config |= dict(sample_size=side)
    config = as_it_came(model, kind.folder, config, meaning, meaning(config))
    return Component(config, to_tensors(params))


def prepare_control(model: Model) -> Component:
    """The ControlNet of a model."""
    section = {k: v for k, v in model.config["denoiser"].items() if k not in _ASIDE}
    params, own = _under(CONTROL, model.params), model.config["control"]
    measured = unet.measured(params)
    width = measured.pop("context_width") or section.get("context_width")
    arguments = (
        section | measured | dict(context_width=width or unet.DEFAULTS["cross_attention_dim"])
    )
    config = control.to_config(arguments, own)
    if features := model.config.get("conditioner", {}).get("size_features"):
        config["addition_time_embed_dim"] = features
    config = as_it_came(model, CONTROL, config, control.arguments, control.arguments(config))
    return Component(config, to_tensors(params))


def _under(prefix: str, params: Mapping[str, Any]) -> dict[str, Any]:
    head = f"{prefix}/"
    return {path[len(head) :]: value for path, value in params.items() if path.startswith(head)}


def codec_class(model: Model) -> str:
    """The public class of an autoencoding model."""
    return vq.CLASS if model.config.get("quantizer", {}).get("codes") else autoencoder.CLASS


def prepare_autoencoder(model: Model, side: int) -> Component:
    """An autoencoding model of either class."""
    config, params = model.config, model.params
    network = _under("autoencoder", params)
    if codec_class(model) == vq.CLASS:
        public = vq.to_config(config, side)
        public = as_it_came(model, "vqvae", public, vq.sections, vq.sections(public))
        tensors = to_tensors({**network, vq.BOOK: params[CODEBOOK]})
        return Component(public, tensors)
    arguments = {**config["autoencoder"], "latent_channels": config["latent_channels"]}
    shift, scale = (np.asarray(params[name], np.float32) for name in (LATENT_SHIFT, LATENT_SCALE))
    public = autoencoder.to_config(arguments, shift, scale, side)

    def meaning(c: Mapping[str, Any]) -> Any:
        return autoencoder.arguments(c), [
            list(figures) for figures in autoencoder.latent_figures(c)
        ]

    public = as_it_came(model, "vae", public, meaning, meaning(public))
    return Component(public, to_tensors(network))


def export_text_encoder(folder: Path, name: str, out: Path) -> None:
    """The inverse of :func:`import_text_encoder`. The tokenizer may be in the encoder's folder."""
    copy_encoder(folder, out / name)
    tokenizer = folder.parent / tokenizer_folder_of(folder.name)
    copy_small(tokenizer if tokenizer.is_dir() else folder, out / tokenizer_folder_of(name))


def as_it_came(
    model: Model, part: str, own: dict[str, Any], meaning: Callable[[Any], Any], wanted: Any
) -> dict[str, Any]:
    """The public config file of a part as it was imported, if its meaning is still ``wanted``, else
    ``own``."""
    source = model.meta.get("source", {}).get(part)
    if source is not None and plain(meaning(source)) == plain(wanted):
        return dict(source)
    return own


def _build(kind: Any, arguments: Mapping[str, Any], rngs: Any) -> Any:
    check_arguments(kind, arguments, kind.__name__)
    return kind(**arguments, rngs=rngs)
