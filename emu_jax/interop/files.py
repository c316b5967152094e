"""The folders of public pipelines: which file holds a component's weights, keys to parameters.

Weights are named STEM.safetensors or STEM.VARIANT.safetensors (fp16, non_ema), in one file or in
shards with an index; the stem is ``model`` for text encoders, else ``diffusion_pytorch_model``.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from emu_jax.checkpoint.foreign import read_json
from emu_jax.checkpoint.lazy import Lazy, shapes_of
from emu_jax.checkpoint.paths import file_in
from emu_jax.checkpoint.safetensors_io import open_safetensors, write_safetensors
from emu_jax.errors import UserError
from emu_jax.nn.pickles import read_pickle
from emu_jax.nn.torch_layout import (
    from_layout,
    shape_to_layout,
    to_layout,
    torch_key,
    torch_paths,
)
from emu_jax.progress import Progress

CONFIG, DIFFUSERS, TRANSFORMERS = "config.json", "diffusion_pytorch_model", "model"
INDEX, SCHEDULER = "model_index.json", "scheduler_config.json"
_PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth")
# What readers of these files look for to know whose tensors they hold.
METADATA = {"format": "pt"}


def open_weights(folder: Path, stem: str, variant: str = "", pickle: bool = False) -> Lazy:
    """A component's tensors: those of ``variant``; without one the plain ones, else the only ones.

    ``pickle``: a pickle is read where there is no safetensors file, its tensors alone.
    """
    found = _weight_files(folder, stem)
    if variant in found:
        return open_safetensors(str(found[variant]))
    if not variant and len(found) == 1:
        return open_safetensors(str(*found.values()))
    if found:
        names = ", ".join(name or "none" for name in found)
        raise UserError(f"{folder} has no weights of variant {variant or 'none'}, only {names}.")
    pickles = [file for pattern in _PICKLES for file in sorted(folder.glob(pattern))]
    if not pickles:
        raise UserError(f"{folder} has no weights: {stem}.safetensors is not there.")
    return open_pickle(pickles[0], pickle)


def _weight_files(folder: Path, stem: str) -> dict[str, Path]:
    """Variant ("": none) -> the file, or the index of the shards."""
    found = {}
    for file in sorted(folder.glob(f"{stem}*.safetensors")):
        name = file.name.removeprefix(stem).removesuffix(".safetensors")
        if "-of-" not in name:
            found[name.removeprefix(".")] = file
    for file in sorted(folder.glob(f"{stem}*.index*.json")):
        # STEM.safetensors.index.json, STEM.VARIANT.safetensors.index.json or, older,
        # STEM.safetensors.index.VARIANT.json
        parts = file.name.removeprefix(stem).removesuffix(".json").split(".")
        if "safetensors" in parts:
            variants = [part for part in parts if part not in ("", "safetensors", "index")]
            found["".join(variants)] = file
    return found


def open_pickle(file: Path, allowed: bool) -> Lazy:
    """A pickle's tensors. Opening one may run whatever its writer wanted, so only tensors are
    admitted, and those only if asked for.
    """
    if not allowed:
        raise UserError(
            f"{file} is a pickle, which may hold code: take a .safetensors file, or, if you trust "
            "its source, --allow_pickle, which reads the tensors in it and nothing else."
        )
    tensors = read_pickle(file)
    import torch

    names = {torch.bfloat16: jax.numpy.bfloat16}

    def dtype(tensor: Any) -> np.dtype:
        plain = names.get(tensor.dtype)
        return np.dtype(plain) if plain else torch.empty(0, dtype=tensor.dtype).numpy().dtype

    def read(name: str) -> np.ndarray:
        tensor = tensors[name].contiguous()
        if tensor.dtype in names:
            return tensor.view(torch.int16).numpy().view(names[tensor.dtype])
        return tensor.numpy()

    shapes = {k: jax.ShapeDtypeStruct(tuple(v.shape), dtype(v)) for k, v in tensors.items()}
    return Lazy(shapes, read)


# Keys and parameters -----------------------------------------------------------------------------


def to_params(
    tensors: Lazy,
    wanted: Mapping[str, Any],
    source: str,
    rename: Callable[[str], str] = lambda key: key,
) -> Lazy:
    """The parameters ``wanted`` (path -> shape), in the dtypes and the order of the file.

    ``rename`` gives a file's key in today's spelling.

    Raises:
      UserError: at once, where keys of ``source`` are unknown, missing or misshapen, by name.
    """
    keys = {rename(key): key for key in tensors}
    try:
        paths = torch_paths({ours: tensors.shapes[key] for ours, key in keys.items()}, wanted)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    found = {path: keys[ours] for ours, path in paths.items()}
    order = {key: i for i, key in enumerate(tensors)}
    shapes = {
        path: jax.ShapeDtypeStruct(wanted[path].shape, tensors.shapes[key].dtype)
        for path, key in sorted(found.items(), key=lambda item: order[item[1]])
    }
    return Lazy(shapes, lambda path: from_layout(path, tensors[found[path]]))


def to_tensors(params: Mapping[str, Any]) -> Lazy:
    """The inverse of :func:`to_params`: torch's keys and layouts."""
    paths = {torch_key(path): path for path in params}
    shapes = shapes_of(params)
    return Lazy(
        {
            key: jax.ShapeDtypeStruct(
                shape_to_layout(path, tuple(shapes[path].shape)), shapes[path].dtype
            )
            for key, path in paths.items()
        },
        lambda key: to_layout(paths[key], np.asarray(params[paths[key]])),
    )


def renamed(params: Lazy, name: Callable[[str], str]) -> Lazy:
    """Everything under the name that ``name`` gives to its own."""
    homes = {name(own): own for own in params}
    shapes = {new: params.shapes[own] for new, own in homes.items()}
    return Lazy(shapes, lambda new: params[homes[new]])


def nested(prefix: str, params: Lazy) -> Lazy:
    """Every name under ``prefix/``."""
    return renamed(params, lambda name: f"{prefix}/{name}")


def together(*parts: Mapping[str, Any]) -> Lazy:
    """All of them as one."""
    homes = {name: part for part in parts for name in part}
    shapes = {name: shape for part in parts for name, shape in shapes_of(part).items()}
    return Lazy(shapes, lambda name: np.asarray(homes[name][name]))


def watched(tensors: Lazy, label: str, passes: int = 1) -> Lazy:
    """The same, with the progress of ``passes`` readings of all of it."""
    sizes = {
        name: int(np.prod(x.shape)) * np.dtype(x.dtype).itemsize
        for name, x in tensors.shapes.items()
    }
    total, done = passes * sum(sizes.values()), 0
    progress = Progress(label, total / 1e6, unit="MB")

    def read(name: str) -> np.ndarray:
        nonlocal done
        done += sizes[name]
        progress.update(done / 1e6)
        if done >= total:
            progress.close()
        return tensors[name]

    return Lazy(tensors.shapes, read)


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """A JSON file and the folder that it lies in."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n")


def write_component(
    folder: Path, config: Mapping[str, Any], tensors: Lazy, stem: str = DIFFUSERS
) -> None:
    """A component's config.json and one safetensors file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{stem}.safetensors"
    write_safetensors(str(file), watched(tensors, folder.name), METADATA)
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def copy_encoder(source: Path, target: Path) -> None:
    """A text encoder, its weights under the plain name, every tensor and key as it is."""
    tensors = open_weights(source, TRANSFORMERS)
    config = file_in(epath.Path(source), CONFIG, source)
    write_component(target, read_json(Path(config)), tensors, TRANSFORMERS)


def copy_small(source: Path, target: Path) -> None:
    """A tokenizer's files: whatever is no weights.

    Raises:
      UserError: a symbolic link out of the folder, whose target nobody asked to copy.
    """
    folder = epath.Path(source)
    names = sorted(f.name for f in source.iterdir() if f.suffix in (".json", ".txt", ".model"))
    files = [file_in(folder, name, folder) for name in names]
    target.mkdir(parents=True, exist_ok=True)
    for file in files:
        (target / file.name).write_bytes(file.read_bytes())
