"""A model on disk, opened: what it consists of is known, and no parameter is read yet.

What reads it takes it to the host (``read``), or lays each array straight into its shards
(``place``), so that a model larger than any host starts the next stage of a run.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from emu_jax.checkpoint.foreign import entry, read_json
from emu_jax.checkpoint.manager import FINISHED, Checkpoints
from emu_jax.checkpoint.paths import checked_config, file_in
from emu_jax.checkpoint.safetensors_io import Digest, iter_safetensors, place, read_shapes
from emu_jax.errors import UserError

CONFIG, WEIGHTS = "config.json", "model.safetensors"
# What an exported folder's config.json may say beside the config, and of which type it is.
_RECORDED: dict[str, Any] = dict(
    weights=(str, type(None)),
    step=int,
    seed=int,
    frozen=dict,
    chosen=(dict, type(None)),
    source=dict,
)


class Opened(ABC):
    """``shapes`` by path, as stored; the config it was trained with; what else was recorded."""

    shapes: Mapping[str, jax.ShapeDtypeStruct]
    config: dict[str, Any]
    meta: dict[str, Any]

    @abstractmethod
    def read(self, names: Collection[str]) -> dict[str, np.ndarray]:
        """Some of the parameters, on the host."""

    @abstractmethod
    def place(
        self, shardings: Mapping[str, jax.sharding.Sharding], dtype: Any
    ) -> dict[str, jax.Array]:
        """All of them in their shards, floats as ``dtype``; no host holds more than it must. All
        processes must ask."""

    @abstractmethod
    def check(self, digest: str) -> None:
        """Raises UserError where another fingerprint was recorded of all the parameters."""


def open_model(path: str) -> Opened:
    """The model at ``path``.

    ``path`` is an exported folder, a folder of checkpoints or the run's folder above it, or one of
    these two with ``@step``, ``@last`` (the newest) or ``@best`` (the step that the run chose when
    it ended). A run's folder alone is ``@best`` where the run has chosen, else ``@last``; the
    choice is ``meta["chosen"]``. From a checkpoint the EMA's weights are laid over the parameters
    where there are any, unless ``-raw`` follows the step (``@last-raw``); the task's state (a
    latent space's measured shift and scale) comes along.

    Raises:
      UserError: nothing there, not a model, or half-written.
    """
    location, step, raw = _split_step(path)
    folder = epath.Path(location).expanduser()
    if not folder.exists():
        raise UserError(f"There is no model at {folder}: no such folder.")
    exported = [name for name in (CONFIG, WEIGHTS) if (folder / name).exists()]
    if exported and step is None:
        if len(exported) == 1:
            lacking = CONFIG if exported == [WEIGHTS] else WEIGHTS
            raise UserError(f"The model in {folder} is half-written: {lacking} is not there.")
        return _Exported(folder)
    for directory in (folder, folder / "checkpoints"):
        with Checkpoints(str(directory), read_only=True) as checkpoints:
            if checkpoints.steps():
                return _Saved(directory, checkpoints, _choose(folder, checkpoints, step), raw)
    if step:
        raise UserError(f"There are no checkpoints in {folder}, so there is no @{step}.")
    raise UserError(
        f"{folder} is neither an exported model ({CONFIG} and {WEIGHTS}) nor a folder of "
        "checkpoints."
    )


class _Exported(Opened):
    """A folder to pass on."""

    def __init__(self, folder: epath.Path):
        file = file_in(folder, CONFIG, folder)
        self._weights_file = str(file_in(folder, WEIGHTS, folder))
        self.meta = read_json(file)
        if "config" not in self.meta:
            raise UserError(f"{file} is not the config of a model of emu_jax: it has no 'config'.")
        for name in self.meta.keys() & _RECORDED.keys():
            entry(self.meta, name, _RECORDED[name], file)
        self.config = checked_config(self.meta.pop("config"), str(file), folder)
        self._folder, self._weights = folder, self.meta.pop("weights", None)
        self.shapes = read_shapes(self._weights_file)

    def read(self, names: Collection[str]) -> dict[str, np.ndarray]:
        return dict(iter_safetensors(self._weights_file, set(names).__contains__))

    def place(
        self, shardings: Mapping[str, jax.sharding.Sharding], dtype: Any
    ) -> dict[str, jax.Array]:
        """Read once, one tensor at a time, and checked on the way."""
        digest = Digest()

        def checked(item: tuple[str, np.ndarray]) -> tuple[str, np.ndarray]:
            digest.add(*item)
            return item

        # A map keeps no tensor once it is handed over; a loop's variable would.
        tensors = map(checked, iter_safetensors(self._weights_file, by_name=True))
        placed = place(tensors, shardings, dtype)
        self.check(digest.hexdigest())
        return placed

    def check(self, digest: str) -> None:
        if self._weights not in (None, digest):
            raise UserError(
                f"The model in {self._folder} is half-written or changed: {WEIGHTS} is not the one "
                f"that {CONFIG} was written for; export it again."
            )


class _Saved(Opened):
    """A step of a training run."""

    def __init__(
        self, directory: epath.Path, checkpoints: Checkpoints, record: dict[str, Any], raw: bool
    ):
        self._directory, self._step = str(directory), record["step"]
        self.config = checked_config(record.pop("config"), f"{directory}@{record['step']}")
        self.meta = record
        stored = checkpoints.shapes(self._step)
        self._names: dict[str, str] = {}
        # Later kinds are laid over earlier ones.
        for kind in ("params/", *(() if raw else ("ema/",)), "state/", FINISHED):
            found = (name for name in stored if name.startswith(kind))
            self._names |= {name.removeprefix(kind): name for name in found}
        self.shapes = {path: stored[name] for path, name in self._names.items()}

    def read(self, names: Collection[str]) -> dict[str, np.ndarray]:
        wanted = {self._names[path]: path for path in names}
        with Checkpoints(self._directory, read_only=True) as checkpoints:
            arrays = checkpoints.read_arrays(self._step, wanted.__contains__)
        return {path: arrays[name] for name, path in wanted.items()}

    def place(
        self, shardings: Mapping[str, jax.sharding.Sharding], dtype: Any
    ) -> dict[str, jax.Array]:
        wanted = {}
        for path, sharding in shardings.items():
            x = self.shapes[path]
            kept = dtype if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype
            wanted[self._names[path]] = jax.ShapeDtypeStruct(x.shape, kept, sharding=sharding)
        with Checkpoints(self._directory, read_only=True) as checkpoints:
            arrays = checkpoints.place_arrays(self._step, wanted)
        return {path: arrays[self._names[path]] for path in shardings}

    def check(self, digest: str) -> None:
        """A checkpoint records none."""


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


def _split_step(path: str) -> tuple[str, str | None, bool]:
    """(place, step or "last" or "best" where one is named, whether without the average)."""
    match = re.fullmatch(r"(.+)@(\d+|last|best)(-raw)?", str(path))
    return (match[1], match[2], bool(match[3])) if match else (str(path), None, False)
