"""Whole pipelines: which sections of a config of ours they are, and the way back.

A pipeline becomes a model folder of ours, the denoiser's, with the other parts in folders of their
own inside it: ``codec`` (an autoencoding model), ``text_encoder`` and ``tokenizer`` as they were.
The config names them by absolute path.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from emu_jax.checkpoint.export import Model, save_model
from emu_jax.checkpoint.huggingface import find_folder, tokenizer_folder_of
from emu_jax.checkpoint.lazy import Lazy
from emu_jax.errors import UserError
from emu_jax.interop import autoencoder, schedulers, unet
from emu_jax.interop.configs import plain
from emu_jax.interop.files import (
    CONFIG,
    DIFFUSERS,
    TRANSFORMERS,
    copy_encoder,
    copy_small,
    nested,
    open_weights,
    read_json,
    to_params,
    to_tensors,
    together,
    watched,
    write_component,
)
from emu_jax.nn.autoencoder import Autoencoder
from emu_jax.nn.functional import Network
from emu_jax.nn.unet import UNet

INDEX, SCHEDULER = "model_index.json", "scheduler_config.json"
SD, SDXL = "StableDiffusionPipeline", "StableDiffusionXLPipeline"
# What the network is told of by what it is joined to, and so no part of ``config.denoiser``.
_FROM_OTHERS = ("in_channels", "out_channels", "context_width", "vector_width")
# How a denoiser is computed and not what.
_ASIDE = ("kind", "scan", "remat")
LATENT_SHIFT, LATENT_SCALE = "latent/shift", "latent/scale"


class Parts(Protocol):
    """A pipeline's parts, by the names that their folders have in diffusers' layout."""

    def where(self, name: str = "") -> str:
        """What a message calls the part."""
        ...

    def settings(self, name: str = "", file: str = CONFIG) -> dict[str, Any]:
        """The object in a part's JSON file."""
        ...

    def weights(self, name: str = "", stem: str = DIFFUSERS) -> Lazy:
        """A part's tensors, in diffusers' or transformers' keys."""
        ...

    def copy_tokenizer(self, name: str, target: Path) -> None:
        """Writes a tokenizer's folder."""
        ...


@dataclass(frozen=True)
class Source:
    """A folder, which of its weights are meant, and whether a pickle may be opened."""

    folder: Path
    variant: str = ""
    pickle: bool = False

    def where(self, name: str = "") -> str:
        return str(self.folder / name)

    def settings(self, name: str = "", file: str = CONFIG) -> dict[str, Any]:
        return read_json(self.folder / name / file)

    def weights(self, name: str = "", stem: str = DIFFUSERS) -> Lazy:
        return open_weights(self.folder / name, stem, self.variant, self.pickle)

    def copy_tokenizer(self, name: str, target: Path) -> None:
        copy_small(self.folder / name, target)


@dataclass(frozen=True)
class Imported:
    """Sections of a config, parameters, and the public config files that they came from."""

    sections: dict[str, Any]
    params: Lazy
    source: dict[str, Any]


# In ----------------------------------------------------------------------------------------------


def import_pipeline(source: Parts, out: Path) -> Imported:
    """The generator; codec and text encoders are written to folders in ``out``."""
    index = source.settings(file=INDEX)
    kind = index.get("_class_name")
    if kind not in (SD, SDXL):
        raise UserError(f"{source.where()} is a {kind}; known are {SD} and {SDXL}.")
    denoiser = import_unet(source, "unet")
    arguments = denoiser.sections["denoiser_arguments"]
    noise = source.settings("scheduler", SCHEDULER)
    # Refusals before anything large is written.
    process, sampling = schedulers.process(noise), schedulers.sampling(noise)
    codec = import_autoencoder(source, "vae")
    text = _text_sections(kind, source, index, out)
    features = denoiser.source["unet"].get("addition_time_embed_dim") if kind == SDXL else 0
    factor = 2 ** (len(codec.sections["autoencoder"]["widths"]) - 1)

    save_autoencoder(codec, out / "codec")
    for name in _encoders(kind):
        tensors = source.weights(name, TRANSFORMERS)
        write_component(out / name, source.settings(name), tensors, TRANSFORMERS)
        tokenizer = tokenizer_folder_of(name)
        source.copy_tokenizer(tokenizer, out / tokenizer)
    sections = dict(
        codec=dict(kind="autoencoder", path=str((out / "codec").absolute())),
        text=text,
        conditioner=dict(
            width=0, combine="channels" if kind == SDXL else "tokens", size_features=features
        ),
        denoiser=section_of(arguments),
        process=process,
        sampling=sampling,
        image_size=factor * (denoiser.source["unet"].get("sample_size") or 64),
    )
    public = dict(denoiser.source, scheduler=noise)
    return Imported(sections, denoiser.params, public)


def _encoders(kind: str) -> list[str]:
    return ["text_encoder", "text_encoder_2"] if kind == SDXL else ["text_encoder"]


def _text_sections(
    kind: str, source: Parts, index: Mapping[str, Any], out: Path
) -> dict[str, dict[str, Any]]:
    """``config.text``: SD reads the last layer, SDXL the penultimate ones and a pooled vector.

    A config has its entries in the order of their names, and so are they joined.
    """

    def section(name: str, **options: Any) -> dict[str, Any]:
        config = source.settings(name)
        tokenizer = source.settings(tokenizer_folder_of(name), "tokenizer_config.json")
        longest = tokenizer.get("model_max_length", 77)
        length = min(longest, config.get("max_position_embeddings", 77))
        place = str((out / name).absolute())
        return dict(kind="clip", path=place, length=length, dtype="float32", **options)

    if kind == SD:
        return dict(clip=section("text_encoder", layer="last", pooled=False, null="empty"))
    null = "zeros" if index.get("force_zeros_for_empty_prompt", True) else "empty"
    sides = dict(layer="penultimate", null=null)
    return dict(
        clip_l=section("text_encoder", pooled=False, **sides),
        openclip_g=section("text_encoder_2", pooled=True, **sides),
    )


def import_unet(source: Parts, name: str = "") -> Imported:
    """A denoiser: parameters and the constructor's arguments."""
    config = source.settings(name)
    arguments = unet.arguments(config)
    shapes = Network(partial(_build, UNet, arguments)).shapes()
    params = to_params(source.weights(name), shapes, source.where(name))
    sections = dict(denoiser_arguments=arguments)
    return Imported(sections, nested("denoiser", params), {"unet": config})


def import_autoencoder(source: Parts, name: str = "") -> Imported:
    """An autoencoding model, with its latent figures."""
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


def save_autoencoder(imported: Imported, out: Path) -> None:
    """As a model folder of ours."""
    config = {"task": "autoencoding", **imported.sections}
    params = watched(imported.params, "codec", passes=2)
    save_model(str(out), params, config, {"step": 0, "source": imported.source}, dtype=None)


def section_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """``config.denoiser``: what its neighbours do not say."""
    return {"kind": "unet", **{k: v for k, v in arguments.items() if k not in _FROM_OTHERS}}


# Out ---------------------------------------------------------------------------------------------


def export_pipeline(model: Model, codec: Model, out: Path) -> str:
    """Writes a generator as a pipeline, whose class is returned. Everything that the public classes
    cannot say is refused before anything is written.
    """
    config, source = model.config, model.meta.get("source", {})
    kind = pipeline_of(config)
    noise = _as_it_came(
        source.get("scheduler"),
        schedulers.to_config(config["process"], config["sampling"]),
        lambda c: (schedulers.process(c), schedulers.sampling(c)),
        (
            {key: config["process"][key] for key in ("schedule", "prediction", "time_input")},
            {key: config["sampling"].get(key) for key in ("sampler", "spacing", "threshold")},
        ),
    )
    side = config["data"]["image_size"]
    write_vae = prepare_autoencoder(codec, side)
    write_unet = prepare_unet(model, side // _factor(codec), config["conditioner"])

    folders = [find_folder(section["path"]) for _, section in sorted(config["text"].items())]
    names = _encoders(kind)
    for folder, name in zip(folders, names, strict=True):
        copy_encoder(folder, out / name)
        tokenizer = folder.parent / tokenizer_folder_of(folder.name)
        copy_small(tokenizer if tokenizer.is_dir() else folder, out / tokenizer_folder_of(name))
    write_vae(out / "vae")
    write_unet(out / "unet")
    (out / "scheduler").mkdir(parents=True, exist_ok=True)
    (out / "scheduler" / SCHEDULER).write_text(json.dumps(noise, indent=2) + "\n")
    (out / INDEX).write_text(json.dumps(_index(kind, noise, config), indent=2) + "\n")
    return kind


def pipeline_of(config: Mapping[str, Any]) -> str:
    """The public class that conditions as a generator does.

    Raises:
      UserError: there is none.
    """
    text = [
        (options.get("kind", name), options.get("layer", "last"), options.get("pooled", True))
        for name, options in sorted(config["text"].items())
    ]
    joined = config["conditioner"]
    if joined.get("width") or config["codec"]["kind"] != "autoencoder":
        text = []
    if text == [("clip", "last", False)] and not joined["size_features"]:
        return SD
    two = [("clip", "penultimate", False), ("clip", "penultimate", True)]
    if text == two and joined["combine"] == "channels" and joined["size_features"]:
        return SDXL
    raise UserError(
        f"Public pipelines condition by one CLIP's last states ({SD}) or by two CLIPs' penultimate "
        f"states, a pooled vector and sizes ({SDXL}), without projections, on latents: this "
        "generator is conditioned otherwise, so export it without --format=diffusers."
    )


def prepare_unet(model: Model, side: int, conditioner: Mapping[str, Any]):
    """A function that writes the denoiser to a folder."""
    section = {k: v for k, v in model.config["denoiser"].items() if k not in _ASIDE}
    kind = model.config["denoiser"].get("kind", "unet")
    if kind != "unet":
        raise UserError(f"{unet.CLASS} is a unet; this denoiser is a {kind}.")
    params = _under("denoiser", model.params)
    arguments = section | _measured(params)
    if len(params) != len(Network(partial(_build, UNet, arguments)).shapes()):
        raise UserError("The model's denoiser is not the one that its config describes.")
    config = unet.to_config(arguments) | dict(sample_size=side)
    if conditioner.get("size_features"):
        config["addition_time_embed_dim"] = conditioner["size_features"]
    config = _as_it_came(
        model.meta.get("source", {}).get("unet"), config, unet.arguments, unet.arguments(config)
    )
    return lambda folder: write_component(folder, config, to_tensors(params))


def _under(prefix: str, params: Mapping[str, Any]) -> dict[str, Any]:
    head = f"{prefix}/"
    return {path[len(head) :]: value for path, value in params.items() if path.startswith(head)}


def _measured(params: Mapping[str, Any]) -> dict[str, Any]:
    """What a denoiser's parameters say of its neighbours."""
    ends = ("/attn2/to_k/kernel", "/add_k_proj/kernel")
    context = [value.shape[0] for path, value in params.items() if path.endswith(ends)]
    vector = params.get("add_embedding/linear_1/kernel")
    return dict(
        in_channels=params["conv_in/kernel"].shape[2],
        out_channels=params["conv_out/kernel"].shape[3],
        context_width=context[0] if context else None,
        vector_width=None if vector is None else vector.shape[0],
    )


def prepare_autoencoder(model: Model, side: int):
    """A function that writes an autoencoding model to a folder."""
    config, params = model.config, model.params
    if config.get("quantizer", {}).get("codes"):
        raise UserError(f"{autoencoder.CLASS} has no codes: this autoencoder is quantised.")
    arguments = {**config["autoencoder"], "latent_channels": config["latent_channels"]}
    shift, scale = (np.asarray(params[name], np.float32) for name in (LATENT_SHIFT, LATENT_SCALE))
    public = autoencoder.to_config(arguments, shift, scale, side)

    def meaning(c: Mapping[str, Any]) -> Any:
        return autoencoder.arguments(c), [
            list(figures) for figures in autoencoder.latent_figures(c)
        ]

    public = _as_it_came(model.meta.get("source", {}).get("vae"), public, meaning, meaning(public))
    tensors = to_tensors(_under("autoencoder", params))
    return lambda folder: write_component(folder, public, tensors)


def _as_it_came(source: Any, own: dict[str, Any], meaning: Any, wanted: Any) -> dict[str, Any]:
    """The public file that was imported, if it still means what ``own`` does, else ``own``."""
    if source is not None and plain(meaning(source)) == plain(wanted):
        return dict(source)
    return own


def _factor(codec: Model) -> int:
    return 2 ** (len(codec.config["autoencoder"]["widths"]) - 1)


def _index(kind: str, noise: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """model_index.json: the class of each part."""
    parts: dict[str, Any] = dict(
        vae=["diffusers", autoencoder.CLASS],
        unet=["diffusers", unet.CLASS],
        scheduler=["diffusers", noise["_class_name"]],
        text_encoder=["transformers", "CLIPTextModel"],
        tokenizer=["transformers", "CLIPTokenizer"],
        image_encoder=[None, None],
        feature_extractor=[None, None],
    )
    if kind == SD:
        parts |= dict(safety_checker=[None, None], requires_safety_checker=False)
    else:
        parts |= dict(
            text_encoder_2=["transformers", "CLIPTextModelWithProjection"],
            tokenizer_2=["transformers", "CLIPTokenizer"],
            force_zeros_for_empty_prompt=all(
                options.get("null", "empty") == "zeros" for options in config["text"].values()
            ),
        )
    return {"_class_name": kind, **parts}


def _build(kind: Any, arguments: Mapping[str, Any], rngs: Any) -> Any:
    return kind(**arguments, rngs=rngs)
