"""Models as people pass them on: a folder with ``config.json`` and ``model.safetensors``.

``load_model`` reads such a folder and a training run's checkpoints alike, so that whoever samples,
compares or starts another stage need not know which it was given.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np
from etils import epath

from emu_jax.checkpoint.lazy import Lazy
from emu_jax.checkpoint.manager import FINISHED, Checkpoints
from emu_jax.checkpoint.safetensors_io import (
    cast_floats,
    fingerprint_params,
    iter_safetensors,
    write_safetensors,
)
from emu_jax.errors import UserError

CONFIG, WEIGHTS = "config.json", "model.safetensors"


@dataclasses.dataclass(frozen=True)
class Model:
    """Parameters by path, the config they were trained with, and what else was recorded.

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

    Of a :class:`Lazy` one tensor at a time is in memory. Each file appears whole.
    The config, written last, carries the weights' fingerprint: a folder
    with new weights and the config of old ones is told from a complete one.
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
    """The model at ``path``, on the host.

    ``path`` is an exported folder, a folder of checkpoints or the run's folder above it, or one of
    these two with ``@step``, ``@last`` (the newest) or ``@best`` (the step that the run chose when
    it ended). A run's folder alone is ``@best`` where the run has chosen, else ``@last``; the
    choice is ``meta["chosen"]``. From a checkpoint the EMA's weights are laid over the parameters
    where there are any, unless ``-raw`` follows the step (``@last-raw``); the task's state (a
    latent space's measured shift and scale) comes along. ``prefix_filter`` reads only the paths
    that start with it; ``dtype`` casts floats.

    Raises:
      UserError: nothing there, not a model, half-written, or nothing under the prefix.
    """
    location, step, raw = _split_step(path)
    folder = epath.Path(location).expanduser()
    if not folder.exists():
        raise UserError(f"There is no model at {folder}: no such folder.")
    exported = [name for name in (CONFIG, WEIGHTS) if (folder / name).exists()]
    prefix = prefix_filter or ""
    if exported and step is None:
        if len(exported) == 1:
            lacking = CONFIG if exported == [WEIGHTS] else WEIGHTS
            raise UserError(f"The model in {folder} is half-written: {lacking} is not there.")
        params, config, meta = _load_exported(folder, prefix)
    else:
        params, config, meta = _load_checkpoint(folder, step, raw, prefix)
    if not params:
        raise UserError(f"The model at {path} has no parameters under {prefix!r}.")
    digest = fingerprint_params(params)
    if meta.pop("weights", digest) != digest and not prefix:
        raise UserError(
            f"The model in {folder} is half-written or changed: {WEIGHTS} is not the one that "
            f"{CONFIG} was written for; export it again."
        )
    params = {name: cast_floats(value, dtype) for name, value in params.items()}
    return Model(params, config, meta, digest)


def _load_exported(folder: epath.Path, prefix: str):
    try:
        meta = json.loads((folder / CONFIG).read_text())
        config = meta.pop("config")
    except (ValueError, KeyError, AttributeError):
        raise UserError(f"{folder / CONFIG} is not the config of a model of this system.") from None
    weights = iter_safetensors(str(folder / WEIGHTS), lambda name: name.startswith(prefix))
    return dict(weights), config, meta


def _load_checkpoint(folder: epath.Path, step: str | None, raw: bool, prefix: str):
    # Later kinds are laid over earlier ones.
    kinds = ("params/", *(() if raw else ("ema/",)), "state/", FINISHED)
    heads = tuple(kind + prefix for kind in kinds)
    for directory in (folder, folder / "checkpoints"):
        with Checkpoints(str(directory), read_only=True) as checkpoints:
            if checkpoints.steps():
                meta = _choose(folder, checkpoints, step)
                arrays = checkpoints.read_arrays(meta["step"], lambda name: name.startswith(heads))
                params = {}
                for kind in kinds:
                    params |= _under(kind, arrays)
                return params, meta.pop("config"), meta
    if step:
        raise UserError(f"There are no checkpoints in {folder}, so there is no @{step}.")
    raise UserError(
        f"{folder} is neither an exported model ({CONFIG} and {WEIGHTS}) nor a folder of "
        "checkpoints."
    )


def _choose(folder: epath.Path, checkpoints: Checkpoints, step: str | None) -> dict[str, Any]:
    """The record of the step that is meant, with the run's choice."""
    if step and step.isdigit():  # The newest, which may be damaged, is none of its business.
        return checkpoints.read_meta(int(step))
    newest = checkpoints.read_meta()
    chosen = newest.get("chosen")
    if step == "last" or (step is None and chosen is None):
        return newest
    if chosen is None:
        raise UserError(
            f"The run in {folder} has chosen no best step: it has not ended, or train.stop.metric "
            f"was not set; take {folder}@last or name a step."
        )
    return {**checkpoints.read_meta(chosen["step"]), "chosen": chosen}


def _under(head: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name[len(head) :]: value for name, value in arrays.items() if name.startswith(head)}


def _split_step(path: str) -> tuple[str, str | None, bool]:
    """(place, step or "last" or "best" where one is named, whether without the average)."""
    match = re.fullmatch(r"(.+)@(\d+|last|best)(-raw)?", str(path))
    return (match[1], match[2], bool(match[3])) if match else (str(path), None, False)


def _dtype(name: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
