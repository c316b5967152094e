"""Low-rank adapters as people pass them on: ``pytorch_lora_weights.safetensors``.

The layout that diffusers' ``load_lora_weights`` and peft read. Beside every adapted module lie its
two factors, ``unet.<module>.lora_A.weight`` [rank, in] and ``lora_B.weight`` [out, rank]; of
transformers ``transformer.<module>``. There W' = W + (alpha / rank) B A. Files are written with
alpha = rank, which every reader takes for granted where nothing is said.

What is read says its alpha otherwise and its modules without the network's name, too:

    <file's header>         unet.lora_alpha       diffusers' ``save_lora_weights``
    <file's header>         lora_alpha            diffusers' ``save_lora_adapter``
    unet.<module>.alpha                           beside the factors
    adapter_config.json     lora_alpha            peft's ``save_pretrained``, as ``_PEFT``
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from emu_jax.checkpoint.foreign import entry, parse_json, read_json
from emu_jax.checkpoint.safetensors_io import (
    fingerprint_params,
    iter_safetensors,
    read_metadata,
    write_safetensors,
)
from emu_jax.errors import UserError
from emu_jax.nn.lora import DOWN, UP, factor
from emu_jax.nn.stack import unstacked
from emu_jax.nn.torch_layout import from_layout, to_torch

FILE = "pytorch_lora_weights.safetensors"
_PEFT, _PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
# What precedes a module's name in a file -> the network that it is of.
_NETWORKS = {"unet": "denoiser", "transformer": "denoiser", "conditioner": "conditioner"}
# How peft spells a factor, and diffusers did over the years.
_SPELLINGS = (
    (r"^base_model\.model\.", ""),
    (r"\.processor\.", "."),
    (r"\.to_out_lora\.", ".to_out.0.lora."),
    (r"\.(\w+)_lora\.(?=down|up)", r".\1.lora."),
    (r"\.lora\.down\.weight$", f".{DOWN}.weight"),
    (r"\.lora\.up\.weight$", f".{UP}.weight"),
)
_METADATA = "lora_adapter_metadata"


def write_adapter(
    folder: str, adapter: Mapping[str, Any], scale: float, *, prefix: str, dtype: Any
) -> None:
    """``adapter`` (as :class:`emu_jax.nn.lora.Lora` trains it) with ``scale`` multiplied into B.

    ``prefix`` stands for the denoiser: "unet" or "transformer".
    """
    scaled = {}
    for path, value in unstacked(adapter).items():
        host = np.asarray(value, np.float32)
        head, _, rest = path.partition("/")
        named = f"{prefix if head == 'denoiser' else head}/{rest}"
        scaled[named] = (host * scale if f"/{UP}/" in path else host).astype(dtype)
    target = epath.Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    write_safetensors(str(target / FILE), to_torch(scaled))


def read_adapter(path: str, shapes: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], str]:
    """(factors for a model of these ``shapes``, fingerprint); to be merged with a scale of 1.

    ``path``: a file, or a folder with one, peft's too. ``shapes``: path -> anything with a shape,
    every layer under its own number.

    Raises:
      UserError: it is of another model, or damaged.
    """
    place = epath.Path(path).expanduser()
    if place.is_dir():
        place /= FILE if (place / FILE).exists() or not (place / _PEFT).exists() else _PEFT
    file = str(place)
    tensors = {_current(name): value for name, value in iter_safetensors(file)}
    if not any(name.endswith(f".{DOWN}.weight") for name in tensors):
        raise UserError(f"{file} is no adapter: it has no {DOWN}.weight.")
    said = _said(place)
    kernels = {_module(p): p for p in shapes if p.endswith("/kernel")}
    adapter, unknown = {}, []
    for module, (down, up, alpha) in _modules(file, tensors):
        network, _, name = module.partition(".")
        if network not in _NETWORKS:  # a lone network's file need not name it
            network, name = "", module
        kernel = kernels.get(f"{_NETWORKS.get(network, 'denoiser')}.{name}")
        if kernel is None:
            unknown.append(module)
            continue
        rank = down.shape[0]
        if alpha is None:
            alpha = said.get(network, rank)
        a, b = factor(kernel, DOWN), factor(kernel, UP)
        adapter[a] = from_layout(a, down.astype(np.float32))
        adapter[b] = from_layout(b, up.astype(np.float32)) * np.float32(alpha / rank)
        _same_shape(file, module, adapter[a], adapter[b], tuple(shapes[kernel].shape))
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise UserError(
            f"{file} adapts modules that this model does not have: {', '.join(unknown[:3])}{more}."
        )
    return adapter, fingerprint_params(tensors)


def _modules(file: str, tensors: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Any]]:
    """Each module's name and its (A, B, alpha or None), in torch's layout."""
    ends = (f".{DOWN}.weight", f".{UP}.weight", ".alpha")
    modules: dict[str, dict[str, np.ndarray]] = {}
    for name, value in tensors.items():
        end = next((end for end in ends if name.endswith(end)), None)
        if end is None:
            raise UserError(f"{file} holds {name}, which is no factor of an adapter.")
        modules.setdefault(name.removesuffix(end), {})[end] = value
    for module, found in modules.items():
        if len(found.keys() & set(ends[:2])) < 2:
            raise UserError(f"{file} lacks one of the two factors of {module}.")
        alpha, (down, up) = found.get(".alpha"), (found[end] for end in ends[:2])
        if alpha is not None and alpha.size != 1:
            raise UserError(f"{file}: {module}.alpha is {list(alpha.shape)}, not one number.")
        if down.ndim not in (2, 4) or down.ndim != up.ndim or not down.size:
            raise UserError(
                f"{file}: the factors of {module} are {list(down.shape)} and {list(up.shape)}, "
                "which are not two matrices."
            )
        yield module, (down, up, None if alpha is None else float(alpha.reshape(())))


def _said(file: epath.Path) -> dict[str, float]:
    """Network ("": the only one) -> its alpha, where there is one said."""
    if file.name == _PEFT:
        beside = file.parent / _PEFT_CONFIG
        if not beside.exists():
            raise UserError(f"{file} counts what {_PEFT_CONFIG} says, which is not beside it.")
        settings, source = read_json(beside), str(beside)
    else:
        text = read_metadata(str(file)).get(_METADATA, "{}")
        settings, source = parse_json(text.encode(), f"{_METADATA} in {file}"), str(file)
    said = {}
    for name, value in settings.items():
        network, _, key = name.rpartition(".")
        if key == "lora_alpha":
            said[network] = float(entry(settings, name, (int, float), source))
        elif key in ("alpha_pattern", "use_rslora", "use_dora") and value:
            raise UserError(f"{file} says {name}, which is not supported: merge it where it is.")
    return said


def _same_shape(file: str, module: str, a: np.ndarray, b: np.ndarray, wanted: tuple) -> None:
    fits = a.ndim == b.ndim == len(wanted) and a.shape[-1] == b.shape[-2]
    if not fits or (*a.shape[:-1], b.shape[-1]) != wanted:
        raise UserError(
            f"{file}: the factors of {module} are of another size than this model's kernel "
            f"{list(wanted)}."
        )


def _module(path: str) -> str:
    return path.removesuffix("/kernel").replace("/", ".")


def _current(name: str) -> str:
    for old, new in _SPELLINGS:
        name = re.sub(old, new, name)
    return name
