"""Models by name: their folders, adapters merged into their base, text adapters, ControlNets."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from emu_jax.assembly.adapters import make_adapters
from emu_jax.assembly.encoders import make_encoders
from emu_jax.assembly.schema import completed
from emu_jax.assembly.sections.denoisers import UNet
from emu_jax.assembly.sections.generation import Control
from emu_jax.assembly.sections.runs import drawn_by
from emu_jax.checkpoint.adapters import read_adapter
from emu_jax.checkpoint.export import Model, load_model
from emu_jax.checkpoint.foreign import blaming
from emu_jax.checkpoint.text_adapters import SUFFIXES, read_text_adapter
from emu_jax.errors import UserError
from emu_jax.interop.configs import per_stage
from emu_jax.interop.original_keys import unet_original
from emu_jax.nn.control import PREFIX as CONTROL
from emu_jax.nn.functional import Params
from emu_jax.nn.lora import UP, merge
from emu_jax.nn.stack import unstacked
from emu_jax.nn.text_adapter import PREFIX
from emu_jax.tasks.adapting import BASE
from emu_jax.text.encoder import TextEncoder

WEIGHTS = Path(__file__).parents[1] / "weights"
# How public files name the text encoders of a pipeline.
_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


def locate(path: str) -> str:
    """``builtin:NAME`` as the folder of the shipped weights; any other path as it is."""
    if not path.startswith("builtin:"):
        return path
    shipped = {f"builtin:{folder.name}": folder for folder in WEIGHTS.glob("*/")}
    if path not in shipped:
        names = ", ".join(sorted(shipped))
        raise UserError(f"No weights called {path} come with emu_jax; there are {names or 'none'}.")
    return str(shipped[path])


@blaming("path")
def open_model(path: str, dtype: Any = np.float32, chain: tuple[str, ...] = ()) -> Model:
    """The model that ``path`` names. The adapters of a run are merged into its base, in fp32.

    ``chain``: the adapters whose base this is; one of them again is an error.

    Raises:
      UserError: the base is missing, or is not the one that the adapter was trained on.
    """
    model = load_model(locate(path), dtype=dtype)
    model = replace(model, config=drawn_by(model.config))
    config = ConfigDict(model.config)
    adapters = make_adapters(config)
    if not adapters:
        return model
    if path in chain:
        raise UserError(f"{path} is an adapter of itself: its config was changed, export it again.")
    try:
        base = open_model(config.init_from, chain=(*chain, path))
    except UserError as error:
        raise UserError(f"{path} is an adapter of {config.init_from}. {error}") from error
    if base.fingerprint != model.meta["frozen"][BASE]["fingerprint"]:
        raise UserError(
            f"{path} is an adapter of {config.init_from}, which has changed since: restore the "
            "model that it was trained on."
        )
    whole: Params = dict(unstacked(base.params))
    for adapter in adapters.values():
        whole = adapter.merged(whole, unstacked(model.params))
    if "lora" in adapters:
        config.lora.rank = 0  # merged
    if "text" in adapters:  # merged: a generator whose conditioner has adapters
        with config.unlocked():
            del config.distillation, config.vectors
            config.task = "generation"
    if "control" in adapters:
        config.control.train = False
    return replace(
        model,
        params={name: np.asarray(value) for name, value in whole.items()},
        config=config.to_dict(),
        fingerprint=_together(base.fingerprint, model.fingerprint),
    )


def with_adapter(
    model: Model,
    path: str,
    scale: float = 1.0,
    encoders: Mapping[str, TextEncoder] = MappingProxyType({}),
) -> tuple[Model, dict[str, dict[str, Any]]]:
    """``model`` merged with ``scale`` times the adapter of a file in a public layout, and the
    factors that the file has for text encoders, by their names in the config, likewise scaled.

    ``encoders``: the model's. A public file numbers them in the order of their names.
    """
    params = unstacked(model.params)
    shapes: dict[str, Any] = dict(params)
    names = dict(zip(_ENCODERS, sorted(encoders), strict=False))
    for part, name in names.items():
        shapes |= {f"{part}/{key}": x for key, x in encoders[name].shapes().items()}
    denoiser = [key.split("/")[1:] for key in params if key.startswith("denoiser/")]
    original = unet_original(".".join(parts) for parts in denoiser)
    adapter, fingerprint = read_adapter(path, shapes, original)
    texts: dict[str, dict[str, Any]] = {}
    for key, value in adapter.items():
        part, _, rest = key.partition("/")
        if part in names:
            scaled = value * np.float32(scale) if f"/{UP}/" in key else value
            texts.setdefault(names[part], {})[rest] = scaled
    whole = merge(params, adapter, scale)
    merged = replace(
        model,
        params={name: np.asarray(value) for name, value in whole.items()},
        fingerprint=_together(model.fingerprint, f"{fingerprint} {scale}"),
    )
    return merged, texts


def adapts_text(config: Mapping[str, Any]) -> bool:
    """Whether a model with this config has text adapters."""
    return bool((config.get("adapter") or {}).get("layers"))


def split_text_adapter(name: str) -> tuple[str, str]:
    """(model, file) of ``MODEL@FILE``, a model with a text adapter; file "": there is none."""
    model, _, file = name.rpartition("@")
    return (model, file) if model and file.endswith(SUFFIXES) else (name, "")


def with_text_adapter(model: Model, path: str) -> Model:
    """A generator with the text adapters of a file.

    Raises:
      UserError: it has text adapters already, or its text encoders do not fit the file's.
    """
    if adapts_text(model.config):
        raise UserError(f"{path} cannot be added: the model has text adapters of its own.")
    found, text = read_text_adapter(path), ConfigDict(model.config.get("text", {}))
    encoders = make_encoders(text)
    names = dict(zip(found.params, found.params, strict=True))
    if len(names) == len(encoders) == 1:  # whatever they are called
        names = dict(zip(names, encoders, strict=True))
    for theirs, own in names.items():
        if own not in encoders or len(names) != len(encoders):
            raise UserError(
                f"{path} adapts the text encoders {', '.join(map(repr, names))}; the model has "
                f"{', '.join(map(repr, encoders)) or 'none'}."
            )
        if encoders[own].width != found.widths[theirs]:
            raise UserError(
                f"{path} adapts a text encoder of width {found.widths[theirs]}, but {own!r} of the "
                f"model is {encoders[own].width} wide: take the adapter of this model's encoder."
            )
    own_params = {
        f"{PREFIX}/{names[name]}/{key}": x
        for name, params in found.params.items()
        for key, x in params.items()
    }
    return replace(
        model,
        params={**model.params, **own_params},
        config={**model.config, "adapter": dict(found.options)},
        fingerprint=_together(model.fingerprint, found.fingerprint),
    )


def split_control(name: str) -> tuple[str, float]:
    """(model, strength) of ``MODEL[@strength]``. A strength has a decimal point: ``RUN@2000`` is a
    step.
    """
    model, _, strength = name.rpartition("@")
    if not model or not re.fullmatch(r"\d*\.\d+|\d+\.", strength):
        return name, 1.0
    return model, float(strength)


@blaming("name")
def with_control(model: Model, name: str) -> Model:
    """A generator with the ControlNet of ``MODEL[@strength]``: of a run, an exported folder, an
    import, or builtin:NAME.

    Raises:
      UserError: it has a ControlNet already, or another architecture than that of the ControlNet.
    """
    path, strength = split_control(name)
    if controlled(model.config):
        raise UserError(f"{path} cannot be added: the model has a ControlNet of its own.")
    found = load_model(locate(path), dtype=np.float32)
    own = {key: x for key, x in found.params.items() if key.startswith(f"{CONTROL}/")}
    if not own or not controlled(found.config):
        raise UserError(
            f"{path} has no ControlNet: name a run of configs/control.py, what is exported of it, "
            "or an import of a ControlNetModel."
        )
    section = completed(Control, found.config["control"])
    ours, theirs = (
        _structure(x.get("denoiser", {}), section.attention) for x in (model.config, found.config)
    )
    for key, value in theirs.items():
        if ours.get(key) != value:
            raise UserError(
                f"{path} is a ControlNet for a U-Net with {key} = {value}; the model has "
                f"{ours.get(key)}: take the ControlNet of this model's architecture."
            )
    section.update(dict(train=False, strength=strength))
    return replace(
        model,
        params={**unstacked(model.params), **unstacked(own)},
        config={**model.config, "control": section.to_dict()},
        fingerprint=_together(model.fingerprint, found.fingerprint),
    )


def controlled(config: Mapping[str, Any]) -> bool:
    """Whether a model with this config has a ControlNet."""
    return bool((config.get("control") or {}).get("hint"))


def _structure(denoiser: Mapping[str, Any], attention: bool) -> dict[str, Any]:
    """What a ControlNet has in common with its U-Net, in one spelling."""
    section = completed(UNet, {"widths": (), **denoiser}).to_dict()
    stages = len(section["widths"])
    names, staged = ["kind", "resample", "scale_shift", "act", "groups", "eps", "time_width"], []
    names += ["output_scale_factor"]
    if attention:
        names += ["attention", "mid_depth", "linear_projection"]
        staged += ["transformer_depth", "only_cross_attention"]
    found = {name: section[name] for name in names}
    found |= {name: per_stage(section[name], stages) for name in ("widths", "blocks", *staged)}
    if attention:
        widths, heads = found["widths"], per_stage(section["heads"], stages)
        own = zip(widths, heads, per_stage(section["head_width"], stages), strict=True)
        found["heads"] = [given or width // head_width for width, given, head_width in own]
    return found


def _together(*fingerprints: str) -> str:
    """One fingerprint for several sources. That of the merged weights would depend on the device's
    rounding.
    """
    return hashlib.sha256(" ".join(fingerprints).encode()).hexdigest()
