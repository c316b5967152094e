"""The training loop: the same for every task, stage and machine.

    restore or start -> [batch n -> step -> log -> validate -> preview -> save] -> finish -> save

The step is one compiled function (``emu_jax.training.step``). The loop feeds it with batches,
fetches its scalars a few steps later so that the device never waits for the host, and writes logs
and checkpoints. Batch n is a function of (seed, n), so the position in the data is the step number
and nothing else must be saved.
"""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from PIL import Image

from emu_jax.checkpoint.agreement import newest
from emu_jax.checkpoint.foreign import entry
from emu_jax.checkpoint.manager import Checkpoints
from emu_jax.errors import UserError
from emu_jax.nn.functional import Params
from emu_jax.parallel.compiler import difference
from emu_jax.parallel.sharding import fetch, put_batch
from emu_jax.progress import Progress, compiling
from emu_jax.tasks.base import Batch, Context, Task
from emu_jax.training.resuming import require_same_config
from emu_jax.training.state import (
    TrainState,
    abstract_state,
    averaged,
    fresh_params,
    start_state,
)
from emu_jax.training.step import jit_step
from emu_jax.training.stopping import EarlyStopping, measured
from emu_jax.training.trackers import Trackers, tile

# How many steps the host may be ahead of the scalars that it has fetched.
LAG = 2
VALIDATION_SEED = 7_919


@dataclass(frozen=True)
class TrainSettings:
    """The ``train`` section of a config. A period of 0 means never.

    With ``stop`` a checkpoint is saved at every validation, and the best by its metric is kept.
    """

    steps: int
    batch_size: int
    seed: int = 0
    accumulate: int = 1
    log_every: int = 50
    validate_every: int = 0
    preview_every: int = 0
    checkpoint_every: int = 1000
    keep_last: int = 3
    keep_best: int = 0
    best_metric: str = ""
    stop: EarlyStopping | None = None
    max_skipped_in_row: int = 5
    profile_start: int = 0
    profile_steps: int = 0
    wandb: bool = False
    preview_prompts: tuple[str, ...] = ()

    def __post_init__(self):
        if self.stop and self.best_metric not in ("", self.stop.metric):
            raise UserError(
                f"train.stop.metric is {self.stop.metric!r}, but train.best_metric is "
                f"{self.best_metric!r}; leave train.best_metric empty, because train.stop.metric "
                "decides which checkpoints are kept."
            )
        if self.keep_best and not (self.stop or self.best_metric):
            raise UserError(
                f"train.keep_best is {self.keep_best}, but train.best_metric is empty; set "
                "train.best_metric to the metric that decides which checkpoints are best."
            )
        if self.best and not self.validate_every:
            raise UserError(
                f"train.validate_every is 0, so {self.best[0]} would never be measured; set "
                "train.validate_every, or leave train.stop.metric and train.keep_best unset."
            )

    @property
    def best(self) -> tuple[str, str, int] | None:
        """Which checkpoints are kept beside the newest: (metric, "min" or "max", how many)."""
        if self.stop:
            return self.stop.metric, self.stop.mode, self.keep_best or 1
        return (self.best_metric, "min", self.keep_best) if self.keep_best else None


@dataclass(frozen=True)
class Preview:
    """What a preview is drawn from: the first of ``batches()``. ``captions()`` are those of its
    images, in order: rows after the last caption are padding and not shown. None: all are shown.
    """

    batches: Callable[[], Generator[Batch]]
    captions: Callable[[], Sequence[str]] | None = None


@dataclass
class Trainer:
    """Everything that one run needs; :meth:`run` trains to the end, or until it is interrupted.

    ``stream(first_step)`` yields this host's rows of batches first_step, first_step + 1, ...
    ``validation`` maps the name of a validation set to a function that iterates over its batches.
    ``previews`` are what previews show; by default the first batch of every validation set, or of
    the training stream. ``initial`` returns the (parameters, state) to start from instead of
    ``task.init``.
    ``measures`` are functions of (step, state) that add metrics to every validation; the metrics
    must be equal on every host, and a measure must not keep a reference to the state. ``stop`` are
    stopping criteria in addition to the one of the settings: functions of (step, metrics) that
    return None or the reason to stop.
    """

    task: Task
    settings: TrainSettings
    workdir: str
    mesh: Mesh
    frozen: Mapping[str, Params]
    stream: Callable[[int], Generator[Batch]]
    meta: Mapping[str, Any]
    validation: Mapping[str, Callable[[], Generator[Batch]]]
    previews: Mapping[str, Preview] = field(default_factory=dict)
    initial: Callable[[], tuple[Params, Params]] | None = None
    measures: tuple[Callable[[int, TrainState], Mapping[str, float]], ...] = ()
    stop: tuple[Callable[[int, Mapping[str, float]], str | None], ...] = ()
    draw: Callable[..., Image.Image] = tile
    _compiled: dict[str, Callable] = field(default_factory=dict, init=False)
    _history: list[tuple[int, dict[str, float]]] = field(default_factory=list, init=False)
    _profiling: bool = field(default=False, init=False)

    def run(self) -> str:
        """Trains and returns why it ended: "done", "stopped: <reason>" or "interrupted"."""
        settings = self.settings
        with (
            Checkpoints(
                f"{self.workdir}/checkpoints", keep_last=settings.keep_last, keep_best=settings.best
            ) as checkpoints,
            _Interrupt() as interrupt,
        ):
            state, record = self._restore(checkpoints)
            first, ended = int(state["step"]), record["ended"]
            if first >= settings.steps or ended.startswith("stopped"):
                return ended
            self._history = self._restore_history(checkpoints, record)
            self._trackers = Trackers(
                self.workdir,
                restored_step=first or None,
                wandb=settings.wandb,
                draw=self.draw,
            )
            self._progress = Progress(
                *("step", settings.steps),
                unit="img",
                each=settings.batch_size,  # over all hosts
                start=first,
                eager=True,
                visible=jax.process_index() == 0,
            )
            if first:
                self._progress.message(f"resumed from step {first} of {settings.steps}")
                changed = difference(record.get("compiler", {}), self.meta.get("compiler", {}))
                if changed:
                    self._progress.message(
                        f"the results may round differently from here on: {changed}"
                    )
            try:
                with closing(self.stream(first)) as batches:
                    return self._loop(state, first, batches, checkpoints, interrupt)
            finally:
                self._stop_profile()
                self._progress.close()
                self._trackers.close()

    def _restore(self, checkpoints: Checkpoints) -> tuple[TrainState, Mapping[str, Any]]:
        """(state, record) of the workdir's newest checkpoint; without one, the initial ones."""
        if newest(checkpoints) is not None:
            state, meta = checkpoints.restore(None, abstract_state(self.task, self.mesh))
            step = int(state["step"])
            entry(meta, "ended", str, f"The checkpoint of step {step} in {self.workdir}")
            self._check_frozen(meta)
            require_same_config(meta.get("config", {}), self.meta["config"], self.workdir)
            return state, meta
        if self.initial is None:
            params, state = fresh_params(self.task, self.settings.seed, self.mesh)
        else:
            params, state = self.initial()
        return start_state(self.task, self.mesh, params, state), {"ended": "running"}

    def _restore_history(
        self, checkpoints: Checkpoints, record: Mapping[str, Any]
    ) -> list[tuple[int, dict[str, float]]]:
        """The validations before the restored step, for the stopping criterion.

        They come from the checkpoint, not from metrics.jsonl. The record of a checkpoint is saved
        atomically with its state, so it is right even if the run was killed between a validation
        and the next checkpoint. Every host can read it, but only one host writes the log.
        """
        stop = self.settings.stop
        if not stop:
            return []
        history = stop.from_record(record.get("validations", {}))
        if history is None:  # The run did not have this criterion: only saved steps can be chosen.
            saved = [(step, checkpoints.read_meta(step)["metrics"]) for step in checkpoints.steps()]
            history = [(step, metrics) for step, metrics in saved if stop.metric in metrics]
        return history

    def _check_frozen(self, meta: Mapping[str, Any]) -> None:
        """Raises UserError unless frozen networks and tokenizers are those with which the run was
        started. Checkpoints of older versions do not name tokenizers.
        """
        for name, then in meta.get("frozen", {}).items():
            now = self.meta["frozen"].get(name, {})
            wanted = {"tokenizer": now.get("tokenizer")} | then
            for key, what in (("fingerprint", name), ("tokenizer", f"tokenizer of {name}")):
                if now.get(key) != wanted[key]:
                    raise UserError(
                        f"The run in {self.workdir} was started with another {what} "
                        f"({then['source']}); use that one, or start a new workdir with init_from."
                    )

    def _loop(
        self,
        state: TrainState,
        first: int,
        batches: Iterator[Batch],
        checkpoints: Checkpoints,
        interrupt: "_Interrupt",
    ) -> str:
        settings = self.settings
        step = jit_step(
            self.task, state, self.mesh, seed=settings.seed, accumulate=settings.accumulate
        )
        pending: deque[_Pending] = deque()
        results: dict[str, float] = {}
        number, ended = first, "done"
        while number < settings.steps:
            results = {}  # A checkpoint records only the metrics of its own step.
            self._profile(number)
            batch = next(batches)
            with self._compiling("the training step") if number == first else nullcontext():
                state, metrics = step(state, self.frozen, put_batch(batch, self.mesh))
            number += 1
            pending.append(_Pending(number, metrics, batch))
            self._log(pending, leave=LAG)
            if _due(number, settings.validate_every, settings.steps):
                self._log(pending, leave=0)
                results = self._validate(state, number)
                reason = self._reason_to_stop(number, results)
                if reason:
                    ended = f"stopped: {reason}"
                    break
            if _due(number, settings.preview_every, settings.steps):
                self._preview(state, number)
            interrupted = interrupt.agreed(number) and number < settings.steps
            due = _due(number, settings.checkpoint_every) or (settings.stop and results)
            if interrupted or (number < settings.steps and due):
                # The log must be complete up to this step before its checkpoint exists.
                self._log(pending, leave=0)
                self._trackers.flush()
                meta = self._meta(results, "running")
                checkpoints.save(number, state, meta, results, self._chosen_state(state, number))
            if interrupted:
                checkpoints.wait()
                return "interrupted"
        self._log(pending, leave=0)
        self._trackers.flush()
        state = {**state, "state": self._finish(state)}
        checkpoints.save(number, state, self._meta(results, ended), results)
        checkpoints.wait()
        return ended

    def _log(self, pending: deque["_Pending"], leave: int) -> None:
        """Fetches, checks and logs the scalars of all pending steps but the newest ``leave``."""
        settings = self.settings
        while len(pending) > leave:
            number, metrics, batch = pending.popleft()
            in_row = int(metrics["skipped_in_row"])
            if in_row >= settings.max_skipped_in_row:
                records = {name: rows["record"][:8].tolist() for name, rows in batch.items()}
                raise UserError(
                    f"The loss or gradient was not finite in {in_row} steps in a row, up to step "
                    f"{number} (records {records} ...); lower the learning rate or inspect those "
                    f"records, and resume from the last checkpoint in {self.workdir}/checkpoints."
                )
            if _due(number, settings.log_every, settings.steps) or number == 1:
                values = {name: float(value) for name, value in jax.device_get(metrics).items()}
                loss = values[f"{next(iter(self.task.groups))}/loss"]
                self._progress.update(number, f"loss {loss:.4g}")
                # An idle group's metrics are NaN.
                values = {name: value for name, value in values.items() if value == value}
                self._trackers.scalars(number, values)

    def _validate(self, state: TrainState, number: int) -> dict[str, float]:
        """The mean metrics of every validation set, with the averaged parameters and the same noise
        at every validation.
        """
        results: dict[str, float] = {}
        for name, batches in self.validation.items():
            sums: dict[str, np.ndarray] = {}
            for index, batch in enumerate(batches()):
                out = self._apply("validate", state, batch, index)
                for metric, pair in out.items():
                    sums[metric] = sums.get(metric, 0.0) + np.asarray(pair, np.float64)
            for metric, (total, count) in sums.items():
                if count:
                    results[f"{name}/{metric}"] = float(total / count)
        for measure in self.measures:
            results |= {name: float(value) for name, value in measure(number, state).items()}
        self._trackers.scalars(number, results)
        if self.settings.best:
            measured(results, self.settings.best[0])
        return results

    def _reason_to_stop(self, number: int, results: dict[str, float]) -> str | None:
        """The reason of the first stopping criterion that is met, else None."""
        reason = None
        if self.settings.stop:
            self._history.append((number, results))
            _, reason = self.settings.stop(self._history)
        return reason or next((r for stop in self.stop if (r := stop(number, results))), None)

    def _preview(self, state: TrainState, number: int) -> None:
        sets = self.validation or {"train": lambda: self.stream(0)}
        for name, preview in (self.previews or {k: Preview(v) for k, v in sets.items()}).items():
            with closing(preview.batches()) as batches:
                images = self._apply("preview", state, next(batches), 0)
            captions = None if preview.captions is None else preview.captions()
            rows = None if captions is None else len(captions)
            for kind, drawn in images.items():
                shown = drawn[:rows]
                texts = None if captions is None else captions[: len(shown)]
                self._trackers.images(number, {f"{name}/{kind}": shown}, texts)

    def _apply(self, method: str, state: TrainState, batch: Batch, index: int) -> dict[str, Any]:
        """A task's ``validate`` or ``preview`` on one batch, compiled once."""
        key = jax.random.fold_in(jax.random.key(VALIDATION_SEED), index)
        context = self._context(state, put_batch(batch, self.mesh), key)
        if method in self._compiled:
            return fetch(self._compiled[method](context))
        self._compiled[method] = jax.jit(getattr(self.task, method))
        with self._compiling({"validate": "the validation", "preview": "the previews"}[method]):
            return fetch(self._compiled[method](context))

    def _compiling(self, what: str) -> AbstractContextManager[None]:
        return compiling(what, self._progress.message)

    def _context(self, state: TrainState, batch: Batch, key: jax.Array) -> Context:
        """A task's input outside the loss: it holds the averaged parameters."""
        return Context(averaged(state), self.frozen, state["state"], batch, key)

    def _finish(self, state: TrainState) -> Params:
        """The task's final state, measured on the first batches of the training stream and on the
        validation sets, at whatever step the run ends.
        """

        def placed(batches: Iterator[Batch]) -> Iterator[Batch]:
            return (put_batch(batch, self.mesh) for batch in batches)

        with ExitStack() as stack:
            stream = stack.enter_context(closing(self.stream(0)))
            validation = {
                name: placed(stack.enter_context(closing(batches())))
                for name, batches in self.validation.items()
            }
            context = self._context(state, {}, jax.random.key(VALIDATION_SEED))
            task_state = self.task.finish(context, placed(stream), validation)
        shardings = jax.tree.map(lambda x: x.sharding, state["state"])
        return jax.tree.map(jax.device_put, task_state, shardings)

    def _chosen_state(self, state: TrainState, number: int) -> Params | None:
        """The finished task state of ``number`` if that is the best step so far, else None: the
        best step may become the final model.

        Training continues from the unfinished state, so the finished one is saved in addition.
        """
        stop = self.settings.stop
        return self._finish(state) if stop and stop(self._history)[0] == number else None

    def _meta(self, results: Mapping[str, float], ended: str) -> dict[str, Any]:
        settings = self.settings
        meta = {**self.meta, "seed": settings.seed, "metrics": dict(results), "ended": ended}
        if settings.stop:
            meta["validations"] = settings.stop.to_record(self._history)
            chosen = settings.stop.chosen(self._history)
            if chosen and ended != "running":
                meta["chosen"] = chosen
        return meta

    def _profile(self, number: int) -> None:
        settings = self.settings
        if settings.profile_steps and number == settings.profile_start:
            jax.profiler.start_trace(f"{self.workdir}/profile")
            self._profiling = True
        if number == settings.profile_start + settings.profile_steps:
            self._stop_profile()

    def _stop_profile(self) -> None:
        if self._profiling:
            jax.profiler.stop_trace()
            self._profiling = False


class _Pending(NamedTuple):
    """A step that was started on the device and whose scalars are not yet fetched."""

    number: int
    metrics: Any
    batch: Batch


def _due(number: int, every: int, last: int | None = None) -> bool:
    return bool(every) and (number % every == 0 or number == last)


class _Interrupt:
    """The first SIGTERM or SIGINT requests a checkpoint at the next step; the second one ends the
    process.

    On several hosts jax handles SIGTERM itself and informs all other processes, so its handler
    must stay in place. SIGINT is forwarded as SIGTERM.
    """

    def __enter__(self) -> "_Interrupt":
        self._flag = threading.Event()
        self._previous = {}
        own = (signal.SIGINT,) if jax.process_count() > 1 else (signal.SIGINT, signal.SIGTERM)
        if threading.current_thread() is threading.main_thread():
            for number in own:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        self._flag.set()
        signal.signal(number, self._previous[number])
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def agreed(self, step: int) -> bool:
        """Whether to stop after ``step``; on several hosts the result is the same on all."""
        if jax.process_count() > 1:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self._flag.is_set()
