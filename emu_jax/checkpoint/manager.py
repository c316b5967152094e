"""Training checkpoints, saved and restored with orbax.

A checkpoint is one folder ``<directory>/<step>`` with the training state (one path per array) and a
JSON record (config, frozen networks, seed, metrics). Orbax writes it in the background into a
temporary folder and renames that folder at the end, so a folder whose name is a number is complete.

The state is any pytree. It is stored flat: the name of a leaf is the keys that lead to it, joined
by ``/`` (``params/denoiser/conv_in/kernel``, ``opt/denoiser/0/mu/conv_in/kernel``). So the files do
not depend on optax's classes or on the integer keys of lists, two checkpoints can be compared name
by name, and a few arrays can be read alone. The caller's abstract state gives the structure that is
restored.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

from emu_jax.checkpoint.failures import first_line, mend
from emu_jax.checkpoint.paths import refuse_links_below
from emu_jax.errors import UserError

FORMAT = 1
FINISHED = "finished/"
# Each device that holds a copy of an array writes one slice of it, if the slices have at least this
# many bytes. Slicing a thousand small arrays took longer than everything else (2.5 of 4.3 s on
# eight CPU devices).
_PART = 2**20


class Checkpoints:
    """The checkpoints of one run, newest last.

    Args:
      directory: a local or ``gs://`` path; created at the first save.
      keep_last: how many of the newest to keep.
      keep_best: ``(metric, "min" | "max", n)`` also keeps the n best; of equal ones the earlier.
      read_only: nothing is created, cleaned up or deleted.
    """

    def __init__(
        self,
        directory: str,
        *,
        keep_last: int = 3,
        keep_best: tuple[str, str, int] | None = None,
        read_only: bool = False,
    ):
        if keep_best is not None and keep_best[1] not in ("min", "max"):
            raise UserError(f'keep_best says "min" or "max" of a metric, not {keep_best[1]!r}.')
        # Orbax accepts absolute paths only.
        self.directory = epath.Path(directory).expanduser().resolve()
        self._keep_last, self._keep_best, self._read_only = keep_last, keep_best, read_only
        self._open_manager: ocp.CheckpointManager | None = None
        self._scores: dict[int, float] = {}
        self._saving: int | None = None

    # Steps -------------------------------------------------------------------------------------

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints and of the one being saved, in order."""
        if self._open_manager is None and not self.directory.exists():
            return []
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """The step with the best value of ``keep_best``'s metric; None if no step has it."""
        return next(iter(self._ranked(self.steps())), None)

    # Saving ------------------------------------------------------------------------------------

    def save(
        self,
        step: int,
        state: Any,
        meta: Mapping[str, Any],
        metrics: Mapping[str, float] | None,
        finished: Any = None,
    ) -> bool:
        """Starts a save; returns when the arrays are copied to the host and may be donated.

        ``finished`` is a pytree for readers that use this step as a model: :meth:`read_arrays`
        returns it under ``finished/``, :meth:`restore` ignores it.

        Waits for an earlier save first. An existing step is not changed: the result is then False.
        Every process of the run must call this.

        Raises:
          UserError: this save, or the one before it, failed; the earlier checkpoints still load.
        """
        if step == self._saving:
            return False
        self.wait()
        if step in self.steps():
            return False
        metrics = {name: float(value) for name, value in (metrics or {}).items()}
        record = {**meta, "format": FORMAT, "step": step, "metrics": metrics}
        leaves = flatten(state) | {FINISHED + n: leaf for n, leaf in flatten(finished).items()}
        arrays = {name: leaf for name, leaf in leaves.items() if np.size(leaf)}
        self._score(step, metrics)
        self._saving = step
        with self._saving_errors():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(arrays), meta=ocp.args.JsonSave(record)
                ),
                force=True,
            )
        return True

    def wait(self) -> None:
        """Waits until nothing is being saved; raises UserError if the last save failed."""
        if self._open_manager is not None:
            with self._saving_errors():
                self._open_manager.wait_until_finished()
        self._saving = None

    def close(self) -> None:
        """Waits for the last save and stops orbax's threads."""
        try:
            self.wait()
        finally:
            if self._open_manager is not None:
                self._open_manager.close()
                self._open_manager = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Closing waits for the other processes, which may be gone if this one fails.
        if kind is None or jax.process_count() == 1:
            self.close()

    # Restoring ---------------------------------------------------------------------------------

    def restore(self, step: int | None, abstract_state: Any) -> tuple[Any, dict[str, Any]]:
        """The state saved at ``step`` (None: the newest) and its JSON record.

        ``abstract_state`` is the pytree to fill: ShapeDtypeStructs (or arrays) whose shardings
        determine where each leaf goes, on any topology. Python numbers stay Python numbers.

        Raises:
          UserError: no such checkpoint, a damaged one, or one of another model.
        """
        step = self._existing(step)
        target = flatten(abstract_state)
        wanted = {name: leaf for name, leaf in target.items() if np.size(leaf)}
        with self._reading_errors(step, lambda s: self._read(s, wanted)):
            saved = self._saved_shapes(step)
        saved = {n: tuple(x.shape) for n, x in saved.items() if not n.startswith(FINISHED)}
        _same_model(f"{self.directory}@{step}", saved, wanted)
        with self._reading_errors(step, lambda s: self._read(s, wanted)):
            meta = self._read_json(step)
            arrays = self._read(step, wanted)
        leaves = [arrays[name] if np.size(leaf) else _empty(leaf) for name, leaf in target.items()]
        return jax.tree.unflatten(jax.tree.structure(abstract_state), leaves), meta

    def read_meta(self, step: int | None = None) -> dict[str, Any]:
        """The JSON record saved with ``step`` (None: the newest)."""
        step = self._existing(step)
        with self._reading_errors(step, self._read_json):
            return self._read_json(step)

    def read_arrays(
        self, step: int | None = None, keep: Callable[[str], bool] = lambda name: True
    ) -> dict[str, np.ndarray]:
        """The arrays whose stored name ``keep`` accepts, on the host. Others are not read."""
        step = self._existing(step)

        def read(step: int) -> dict[str, np.ndarray]:
            shapes = self._saved_shapes(step)
            return self._read(
                step, {n: np.broadcast_to(0, x.shape) for n, x in shapes.items() if keep(n)}
            )

        with self._reading_errors(step, read):
            return read(step)

    def shapes(self, step: int | None = None) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and dtype of every array by its stored name; reads no array."""
        step = self._existing(step)
        with self._reading_errors(step, self._saved_shapes):
            return self._saved_shapes(step)

    def place_arrays(
        self, step: int | None, wanted: Mapping[str, jax.ShapeDtypeStruct]
    ) -> dict[str, jax.Array]:
        """Reads stored arrays directly into their shards: each process reads what its devices hold.

        ``wanted``: stored name -> shape, dtype (the array is cast to it) and sharding.
        """
        step = self._existing(step)
        with self._reading_errors(step, lambda s: self._read(s, wanted)):
            return self._read(step, wanted)

    # Orbax -------------------------------------------------------------------------------------

    @property
    def _manager(self) -> ocp.CheckpointManager:
        if self._open_manager is None:
            refuse_links_below(self.directory)
            kept: list[policy.PreservationPolicy] = [policy.LatestN(self._keep_last)]
            if self._keep_best is not None:
                kept.append(_Best(self._ranked, self._keep_best[2]))
            writes = not self._read_only
            self._open_manager = manager = ocp.CheckpointManager(
                self.directory,
                item_handlers={
                    "state": ocp.PyTreeCheckpointHandler(type_handler_registry=_handlers()),
                    "meta": ocp.JsonCheckpointHandler(),
                },
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=policy.AnyPreservationPolicy(kept) if writes else None,
                    read_only=self._read_only,
                    save_interval_steps=1 if writes else 0,
                    create=writes,
                    # The next run removes what a killed run left half-written.
                    cleanup_tmp_directories=writes,
                ),
            )
            for step in manager.all_steps() if self._keep_best else ():
                with contextlib.suppress(Exception):  # A damaged checkpoint has no score.
                    self._score(step, self._read_json(step)["metrics"])
        return self._open_manager

    def _score(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._keep_best and _is_number(metrics.get(self._keep_best[0])):
            self._scores[step] = metrics[self._keep_best[0]]

    def _ranked(self, steps: Sequence[int]) -> list[int]:
        """Those of ``steps`` that have a score, the best first; of equal ones the earlier first."""
        sign = -1 if self._keep_best and self._keep_best[1] == "max" else 1
        measured = [(sign * self._scores[step], step) for step in steps if step in self._scores]
        return [step for _, step in sorted(measured)]

    def _read_json(self, step: int) -> dict[str, Any]:
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        return self._manager.restore(step, args=args)["meta"]

    def _saved_shapes(self, step: int) -> dict[str, jax.ShapeDtypeStruct]:
        tree = self._manager.item_metadata(step)["state"].tree
        return {n: jax.ShapeDtypeStruct(tuple(x.shape), x.dtype) for n, x in tree.items()}

    def _read(self, step: int, wanted: Mapping[str, Any]) -> dict[str, Any]:
        if not wanted:
            return {}
        args = ocp.args.PyTreeRestore(
            dict(wanted),
            restore_args={name: _restore_args(leaf) for name, leaf in wanted.items()},
            partial_restore=True,
        )
        arrays = self._manager.restore(step, args=ocp.args.Composite(state=args))["state"]
        return {name: _as_wanted(arrays[name], leaf) for name, leaf in wanted.items()}

    # Errors ------------------------------------------------------------------------------------

    def _existing(self, step: int | None) -> int:
        self.wait()
        steps = self.steps()
        if not steps:
            raise UserError(f"There is no checkpoint in {self.directory}.")
        if step is not None and step not in steps:
            there = ", ".join(map(str, steps))
            raise UserError(
                f"There is no checkpoint of step {step} in {self.directory}: {there} are."
            )
        return steps[-1] if step is None else step

    @contextlib.contextmanager
    def _saving_errors(self):
        try:
            yield
        except Exception as error:
            step, self._saving = self._saving, None
            # The manager now lists checkpoints that do not exist: a new one reads the disk again.
            # Closing the old one also frees what was half-written.
            broken, self._open_manager = self._open_manager, None
            with contextlib.suppress(Exception):
                if broken is not None:
                    broken.close()
            with contextlib.suppress(Exception):
                self._tidy(step)
            words = mend(error)
            if words is None:
                raise
            last = self.latest() if self.directory.exists() else None
            kept = "no earlier one is there" if last is None else f"step {last} still loads"
            raise UserError(
                f"The checkpoint of step {step} could not be saved in {self.directory}: {words} "
                f"({kept})."
            ) from error

    def _tidy(self, step: int | None) -> None:
        if jax.process_index() == 0:
            for path in self.directory.iterdir():
                if path.name.startswith(f"{step}.") and "tmp" in path.name:
                    path.rmtree()

    @contextlib.contextmanager
    def _reading_errors(self, step: int, read: Callable[[int], Any]):
        """Turns errors in reading into one sentence that names a step that still loads."""
        try:
            yield
        except (UserError, jax.errors.JaxRuntimeError, MemoryError):
            raise  # A lack of memory is not a damaged file.
        except Exception as error:
            raise UserError(self._damaged(step, error, read)) from error

    def _damaged(self, step: int, error: Exception, read: Callable[[int], Any]) -> str:
        why = first_line(error)
        folder = self.directory / str(step)
        for earlier in sorted((s for s in self.steps() if s < step), reverse=True):
            with contextlib.suppress(Exception):
                read(earlier)
                return (
                    f"The checkpoint of step {step} in {self.directory} is damaged ({why}); step "
                    f"{earlier} still loads: move {folder} away to go on from there, or name it as "
                    f"{self.directory}@{earlier}."
                )
        return (
            f"The checkpoint of step {step} in {self.directory} is damaged ({why}) and no earlier "
            f"one loads: move {folder} away to start again."
        )


@dataclasses.dataclass(frozen=True)
class _Best:
    """Orbax's policy of keeping the n best, by the metrics in our own records.

    Orbax's BestN knows only the metric that was tracked at the save, but a run may be resumed with
    another one. Of equal checkpoints it keeps the later.
    """

    ranked: Callable[[Sequence[int]], list[int]]
    n: int

    def should_preserve(
        self,
        checkpoints: Sequence[policy.PolicyCheckpointInfo],
        *,
        context: policy.PreservationContext,
    ) -> list[bool]:
        best = self.ranked([checkpoint.step for checkpoint in checkpoints])[: self.n]
        return [checkpoint.step in best for checkpoint in checkpoints]


# A pytree as a flat dict -------------------------------------------------------------------------


def flatten(tree: Any) -> dict[str, Any]:
    """Leaves by path, in the tree's order: ``{"opt/denoiser/0/count": ...}``."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    flat = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    if len(flat) != len(leaves):
        raise ValueError("Two leaves of the state have one name: a dict key contains '/'.")
    return flat


def _handlers() -> ocp.type_handlers.TypeHandlerRegistry:
    """How leaves are written. Shardings are not stored: the reader gives its own."""
    handlers = ocp.type_handlers
    arrays = handlers.ArrayHandler(
        min_slice_bytes_for_replica_parallel=_PART, enable_write_sharding_file=False
    )
    scalars, numpy = handlers.ScalarHandler(), handlers.NumpyHandler()
    return handlers.create_type_handler_registry(
        (int, scalars),
        (float, scalars),
        (np.number, scalars),
        (np.ndarray, numpy),
        (jax.Array, arrays),
    )


def _restore_args(leaf: Any) -> ocp.RestoreArgs:
    if isinstance(leaf, jax.ShapeDtypeStruct | jax.Array):
        sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=leaf.shape, dtype=leaf.dtype)
    return ocp.RestoreArgs(restore_type=np.ndarray)


def _as_wanted(value: Any, leaf: Any) -> Any:
    if isinstance(leaf, bool | int | float):
        return type(leaf)(value)
    return value


def _empty(leaf: Any) -> Any:
    """An array without elements; orbax stores none."""
    return jax.device_put(np.zeros(leaf.shape, leaf.dtype), getattr(leaf, "sharding", None))


def _same_model(
    where: str, saved: Mapping[str, tuple[int, ...]], wanted: Mapping[str, Any]
) -> None:
    differ = [f"{n} is not in the checkpoint" for n in wanted if n not in saved]
    differ += [f"{n} is only in the checkpoint" for n in saved if n not in wanted]
    differ += [
        f"{n} is {list(saved[n])} there and {list(np.shape(leaf))} here"
        for n, leaf in wanted.items()
        if n in saved and saved[n] != tuple(np.shape(leaf))
    ]
    if differ:
        # Parameters identify a model better than the moments of its optimizer.
        differ.sort(key=lambda text: not text.startswith("params/"))
        more = f"; and {len(differ) - 3} more" if len(differ) > 3 else ""
        raise UserError(
            f"{where} is a checkpoint of another model or optimiser: {'; '.join(differ[:3])}"
            f"{more}. Take the config it was trained with, another workdir, or init_from, which "
            "reuses what fits."
        )


def _is_number(value: Any) -> bool:
    return value is not None and math.isfinite(value)
