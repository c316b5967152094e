"""Reads and writes single files in the original layout of Stable Diffusion 1.5 and XL base. Reading
presents them as diffusers' folders.

Such a file contains the denoiser, the autoencoder and the text encoders, each with a prefix and
with keys of its own (:mod:`emu_jax.interop.original_keys`). It has no configs, no noise schedule
and no tokenizers: configs and schedule are those of the family's published folder.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from emu_jax.checkpoint.foreign import read_json
from emu_jax.checkpoint.huggingface import find_folder
from emu_jax.checkpoint.lazy import Lazy
from emu_jax.checkpoint.safetensors_io import open_safetensors, write_safetensors
from emu_jax.errors import UserError
from emu_jax.interop import autoencoder, schedulers, unet
from emu_jax.interop.configs import plain
from emu_jax.interop.files import (
    CONFIG,
    DIFFUSERS,
    METADATA,
    TRANSFORMERS,
    open_pickle,
    open_weights,
    renamed,
    together,
    watched,
)
from emu_jax.interop.original_keys import Keys, autoencoder_places, openclip_places, unet_places
from emu_jax.interop.pipelines import Pipeline
from emu_jax.interop.single_file_families import PREFIXES, Family, family_for, family_of
from emu_jax.nn.torch_layout import torch_paths
from emu_jax.text.clip import text_config, text_network, tower_key

ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
_TOKENIZER = "tokenizer_config.json"
# Padding tokens of the two tokenizers, which share one vocabulary.
_PAD = {"tokenizer": "<|endoftext|>", "tokenizer_2": "!"}
# Tensors of a training run or a sampler, without effect on the networks.
ASIDE = re.compile(
    r"model_ema\..*|denoiser\.sigmas|betas|(sqrt_|log_)?(one_minus_|recip_|recipm1_)?alphas_cumprod"
    r"(_prev)?|posterior_.*|lvlb_weights|logvar|.*\.position_ids|.*\.embedders\.1\.model\.logit_scale"
)
# The keys of a text encoder's config that determine its network.
_TEXT = (
    *("vocab_size", "max_position_embeddings", "hidden_size", "num_hidden_layers"),
    *("num_attention_heads", "intermediate_size", "hidden_act", "layer_norm_eps"),
)


@dataclass(frozen=True)
class SingleFile:
    """The components of a file, as :class:`emu_jax.interop.components.Parts`."""

    file: Path
    tensors: Lazy
    family: Family
    tokenizer: Path
    averaged: bool = False

    def where(self, name: str = "") -> str:
        return f"{self.file} ({name})" if name else str(self.file)

    def settings(self, name: str = "", file: str = CONFIG) -> dict[str, Any]:
        if file == _TOKENIZER:
            return read_json(self.tokenizer / file)
        return dict(self.family.settings[name])

    def weights(self, name: str = "", stem: str = DIFFUSERS) -> Lazy:
        """A component's tensors, with the keys of the folder layout.

        Raises:
          UserError: a tensor that occurs twice, or has no average.
        """
        del stem
        prefix, keys = self.family.prefixes[name], keys_of(name, self.family.settings[name])
        found: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {}
        for key in self.tensors:
            if not key.startswith(prefix) or ASIDE.fullmatch(key):
                continue
            kept = averaged_key(key) if self.averaged and name == "unet" else key
            if kept not in self.tensors:
                raise UserError(f"{self.file} has no average of {key}.")
            for new, fit in keys.pieces(key.removeprefix(prefix)).items():
                if new in found:
                    raise UserError(
                        f"{self.file} contains {new} twice, as {found[new][0]} and {key}."
                    )
                found[new] = kept, fit

        def shape(key: str, fit: Callable[[np.ndarray], np.ndarray]) -> jax.ShapeDtypeStruct:
            whole = self.tensors.shapes[key]
            # An array of the full shape that takes no memory.
            fitted = fit(np.broadcast_to(np.zeros((), whole.dtype), whole.shape))
            return jax.ShapeDtypeStruct(fitted.shape, whole.dtype)

        def read(name: str) -> np.ndarray:
            key, fit = found[name]
            return np.ascontiguousarray(fit(self.tensors[key]))

        return Lazy({new: shape(*place) for new, place in found.items()}, read)

    def copy_tokenizer(self, name: str, target: Path) -> None:
        from transformers import CLIPTokenizer  # takes seconds

        made = CLIPTokenizer.from_pretrained(str(self.tokenizer), pad_token=_PAD[name])
        made.save_pretrained(str(target))


def open_single_file(
    file: Path, tokenizer: str, variant: str = "", pickle: bool = False
) -> SingleFile:
    """The components of a safetensors file, or of a pickle if ``pickle`` allows it."""
    plain = file.suffix == ".safetensors"
    tensors = open_safetensors(str(file)) if plain else open_pickle(file, pickle)
    return parts_of(file, tensors, tokenizer, variant)


def parts_of(file: Path, tensors: Lazy, tokenizer: str, variant: str = "") -> SingleFile:
    """The components of ``file``; ``tokenizer``: folder or hub name of CLIP's tokenizer. Some files
    have two denoisers: ``variant`` selects the last weights (non_ema) or their average (ema).

    Raises:
      UserError: an unknown family, keys that do not belong to it, text encoders that do not fit.
    """
    family = family_of(file, tensors.shapes)
    strange = [
        key
        for key in tensors
        if not key.startswith(tuple(family.prefixes.values())) and not ASIDE.fullmatch(key)
    ]
    if strange:
        names = ", ".join(sorted(strange)[:8])
        raise UserError(f"{file}: {len(strange)} keys do not belong to {family.name}: {names}.")
    averages = averaged_key(PREFIXES["unet"] + "out.2.bias") in tensors
    if averages != (variant in ("ema", "non_ema")) or variant not in ("", "ema", "non_ema"):
        raise UserError(
            f"{file} has two sets of weights; choose one with --variant=ema or --variant=non_ema."
            if averages
            else f"{file} has one set of weights; omit --variant."
        )
    if not tokenizer:
        raise UserError(
            f"{file} contains no tokenizer; name CLIP's with --tokenizer=DIR, a folder or hub "
            "name, such as any pipeline's tokenizer folder."
        )
    folder = find_folder(tokenizer, weights=False)
    read_json(folder / _TOKENIZER)
    source = SingleFile(file, tensors, family, folder, variant == "ema")
    for name in family.text_encoders:
        _check_text(source.where(name), name, source.settings(name), source.weights(name))
    return source


def keys_of(name: str, settings: Mapping[str, Any]) -> Keys:
    """The keys of a component with that config.json. Those of the first text encoder are the same
    in both layouts.
    """
    places = dict(unet=unet_places, vae=autoencoder_places, text_encoder_2=openclip_places)
    return Keys(places[name](settings) if name in places else ())


def averaged_key(key: str) -> str:
    """The key of the running average of a denoiser's tensor."""
    return "model_ema." + key.removeprefix("model.").replace(".", "")


def _check_text(where: str, name: str, settings: Mapping[str, Any], tensors: Lazy) -> None:
    projection = settings["projection_dim"] if name == "text_encoder_2" else None
    found = {tower_key("text", key) or key: shape for key, shape in tensors.shapes.items()}
    try:
        torch_paths(found, text_network(settings, projection).shapes())
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


# Out ---------------------------------------------------------------------------------------------


def write_single_file(pipeline: Pipeline, file: Path) -> None:
    """Writes all components of a pipeline as one file in the original layout. The layout has no
    configs, noise schedule and tokenizers.

    Raises:
      UserError: the pipeline's settings differ from those of the family's published folder, which
        readers of the file use. Nothing is written.
    """
    family = family_for(pipeline.kind)
    encoders = {name: pipeline.encoders[name] for name in family.text_encoders}
    _require_published(pipeline, family)
    parts = []
    for name, prefix in family.prefixes.items():
        if name in encoders:
            tensors = _text_tensors(encoders[name])
            _check_text(str(encoders[name]), name, family.settings[name], tensors)
        else:
            tensors = pipeline.networks[name].tensors
        original = keys_of(name, family.settings[name]).originals(tensors)
        parts.append(renamed(original, partial(str.__add__, prefix)))
    file.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(str(file), watched(together(*parts), file.name), METADATA)


def _text_tensors(folder: Path) -> Lazy:
    """A text encoder's tensors with current keys, without constants that old files contain."""
    tensors = open_weights(folder, TRANSFORMERS)
    names = {name: key for key in tensors if (name := tower_key("text", key))}
    shapes = {name: tensors.shapes[key] for name, key in names.items()}
    return Lazy(shapes, lambda name: tensors[names[name]])


def _require_published(pipeline: Pipeline, family: Family) -> None:
    def vae(config: Mapping[str, Any]) -> dict[str, Any]:
        figures = dict(zip(("shift", "scale"), autoencoder.latent_figures(config), strict=True))
        return autoencoder.arguments(config) | {k: v.tolist() for k, v in figures.items()}

    def compare(component: str, own: Mapping[str, Any], published: Mapping[str, Any]) -> None:
        for key in sorted({*own, *published}):
            value, found = (plain(settings.get(key)) for settings in (published, own))
            if found != value:
                raise UserError(
                    "A single file contains no settings, so its readers use those of "
                    f"{family.name}. There {component} has {key} = {value!r}, in this model "
                    f"{found!r}; export with --format=diffusers."
                )

    networks, published = pipeline.networks, family.settings
    compare("unet", unet.arguments(networks["unet"].config), unet.arguments(published["unet"]))
    compare("vae", vae(networks["vae"].config), vae(published["vae"]))
    compare(
        "scheduler",
        schedulers.process(pipeline.noise),
        schedulers.process(published["scheduler"]),
    )
    zeros = "force_zeros_for_empty_prompt"
    indices = (pipeline.index, published[""])
    compare("pipeline", *({zeros: index.get(zeros)} for index in indices))
    for name in family.text_encoders:
        configs = (text_config(pipeline.encoders[name]), published[name])
        compare(name, *({key: config[key] for key in _TEXT} for config in configs))
