"""Exported models: a folder with ``config.json`` and ``model.safetensors``.

``load_model`` reads such a folder and the checkpoints of a training run in the same way, so its
callers need not know which of the two they have.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np
from etils import epath

from emu_jax.checkpoint.lazy import Lazy
from emu_jax.checkpoint.opened import CONFIG, WEIGHTS, open_model
from emu_jax.checkpoint.safetensors_io import (
    cast_floats,
    fingerprint_params,
    write_safetensors,
)
from emu_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Model:
    """Parameters by path, the config that they were trained with, and further records.

    ``fingerprint`` is that of the parameters read, before any cast.
    """

    params: dict[str, np.ndarray]
    config: dict[str, Any]
    meta: dict[str, Any]
    fingerprint: str


def save_model(
    directory: str,
    params: Mapping[str, jax.Array | np.ndarray],
    config: Mapping[str, Any],
    meta: Mapping[str, Any],
    dtype: str | None = "bfloat16",
) -> None:
    """Writes ``params`` (floats as ``dtype``; None: as they are), ``config`` and ``meta``.

    For a :class:`Lazy` one tensor at a time is in memory. Each file is written atomically. The
    config is written last and contains the fingerprint of the weights, so a folder with new weights
    and an old config is recognized as incomplete.
    """
    folder = epath.Path(directory)
    if isinstance(params, Lazy):
        host = params if dtype is None else cast_lazily(params, dtype)
    else:
        target = None if dtype is None else _dtype(dtype)
        host = {name: cast_floats(np.asarray(value), target) for name, value in params.items()}
    record = {"config": config, **meta, "weights": fingerprint_params(host)}
    text = json.dumps(record, indent=1)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_safetensors(str(folder / WEIGHTS), host)
        temporary = folder / f"{CONFIG}.tmp"
        temporary.write_text(text)
        temporary.replace(folder / CONFIG)
    except OSError as error:
        raise UserError(f"The model could not be written to {folder}: {error.strerror}.") from error


def cast_lazily(tensors: Lazy, dtype: str) -> Lazy:
    """Floats as ``dtype``, each when it is read."""
    target = _dtype(dtype)
    shapes = {
        name: jax.ShapeDtypeStruct(
            x.shape, target if jax.numpy.issubdtype(x.dtype, np.floating) else x.dtype
        )
        for name, x in tensors.shapes.items()
    }
    return Lazy(shapes, lambda name: cast_floats(tensors[name], target))


def load_model(path: str, *, prefix_filter: str | None = None, dtype: Any = None) -> Model:
    """The model at ``path``, as in :func:`emu_jax.checkpoint.opened.open_model`, with its
    parameters on the host.

    ``prefix_filter`` reads only the paths that start with it; ``dtype`` casts floats.

    Raises:
      UserError: nothing there, not a model, half-written, or nothing under the prefix.
    """
    prefix = prefix_filter or ""
    model = open_model(path)
    names = [name for name in model.shapes if name.startswith(prefix)]
    if not names:
        raise UserError(f"The model at {path} has no parameters under {prefix!r}.")
    params = model.read(names)
    digest = fingerprint_params(params)
    if not prefix:
        model.check(digest)
    params = {name: cast_floats(value, dtype) for name, value in params.items()}
    return Model(params, model.config, model.meta, digest)


def _dtype(name: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
