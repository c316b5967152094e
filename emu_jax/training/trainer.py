"""The training loop: the same for every task, stage and machine.

    restore or start -> [batch n -> step -> log -> validate -> preview -> save] -> finish -> save

The step is one compiled function (``emu_jax.training.step``). The loop only feeds it, reads its
scalars a few steps late so that the device never waits for the host, and writes down what happens.
Batch n is a function of (seed, n), so the position in the data is the step number and nothing else
need be saved.
"""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from PIL import Image

from emu_jax.checkpoint.agreement import newest
from emu_jax.checkpoint.manager import Checkpoints
from emu_jax.errors import UserError
from emu_jax.nn.functional import Params
from emu_jax.parallel.sharding import fetch, put_batch
from emu_jax.tasks.base import Batch, Task
from emu_jax.training.state import (
    TrainState,
    abstract_state,
    averaged,
    fresh_params,
    start_state,
)
from emu_jax.training.step import jit_step
from emu_jax.training.stopping import EarlyStopping, measured
from emu_jax.training.trackers import Progress, Trackers, tile

# Steps the host may run ahead of the scalars it has read.
LAG = 2
VALIDATION_SEED = 7_919


@dataclass(frozen=True)
class TrainSettings:
    """The ``train`` section of a config. A period of 0 means never.

    With ``stop`` there is a checkpoint of every validation, and the best by its metric is kept.
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
                f"train.stop.metric is {self.stop.metric!r} and train.best_metric "
                f"{self.best_metric!r}: the best by the first are kept, so leave the second empty."
            )
        if self.keep_best and not (self.stop or self.best_metric):
            raise UserError("train.keep_best needs train.best_metric: the best by what?")
        if self.best and not self.validate_every:
            raise UserError(
                f"train.validate_every is 0, so {self.best[0]} would never be measured: say how "
                f"often, or leave train.stop.metric and train.keep_best unset."
            )

    @property
    def best(self) -> tuple[str, str, int] | None:
        """Which checkpoints are kept beside the newest: (metric, "min" or "max", how many)."""
        if self.stop:
            return self.stop.metric, self.stop.mode, self.keep_best or 1
        return (self.best_metric, "min", self.keep_best) if self.keep_best else None


@dataclass
class Trainer:
    """Everything one run needs; :meth:`run` trains to the end, or until told to stop.

    ``stream(first_step)`` yields this host's rows of batches first_step, first_step + 1, ...;
    ``validation`` maps a name to a function that iterates over that set's batches; ``initial``
    gives the (parameters, state) to start from instead of ``task.init``; ``measures`` join every
    validation with what they say of (step, state), the same on every host, and keep nothing of the
    state; ``stop`` are criteria asked after it, beside the one of the settings: each sees (step,
    metrics) and answers None or the reason to stop.
    """

    task: Task
    settings: TrainSettings
    workdir: str
    mesh: Mesh
    frozen: Mapping[str, Params]
    stream: Callable[[int], Iterator[Batch]]
    meta: Mapping[str, Any]
    validation: Mapping[str, Callable[[], Iterable[Batch]]]
    initial: Callable[[], tuple[Params, Params]] | None = None
    measures: tuple[Callable[[int, TrainState], Mapping[str, float]], ...] = ()
    stop: tuple[Callable[[int, Mapping[str, float]], str | None], ...] = ()
    draw: Callable[..., Image.Image] = tile
    _compiled: dict[str, Callable] = field(default_factory=dict, init=False)
    _history: list[tuple[int, dict[str, float]]] = field(default_factory=list, init=False)
    _profiling: bool = field(default=False, init=False)

    def run(self) -> str:
        """Trains; returns why it ended: "done", "stopped: <reason>" or "interrupted"."""
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
            self._history = self._past(checkpoints, record)
            self._trackers = Trackers(
                self.workdir,
                restored_step=first or None,
                wandb=settings.wandb,
                draw=self.draw,
            )
            self._progress = Progress(settings.steps, settings.batch_size, start=first)
            try:
                return self._loop(state, first, checkpoints, interrupt)
            finally:
                self._stop_profile()
                self._progress.close()
                self._trackers.close()

    def _restore(self, checkpoints: Checkpoints) -> tuple[TrainState, Mapping[str, Any]]:
        """(state, record) of the workdir's newest checkpoint, else the initial ones."""
        if newest(checkpoints) is not None:
            state, meta = checkpoints.restore(None, abstract_state(self.task, self.mesh))
            self._same_frozen(meta)
            return state, meta
        if self.initial is None:
            params, state = fresh_params(self.task, self.settings.seed, self.mesh)
        else:
            params, state = self.initial()
        return start_state(self.task, self.mesh, params, state), {"ended": "running"}

    def _past(
        self, checkpoints: Checkpoints, record: Mapping[str, Any]
    ) -> list[tuple[int, dict[str, float]]]:
        """The validations before the restored step, as the criterion is to see them.

        From the checkpoint, not from metrics.jsonl: the record appears in one piece with the very
        state it speaks of, wherever a kill falls between a validation and the next checkpoint, and
        every host reads it, while one alone writes the log.
        """
        stop = self.settings.stop
        if not stop:
            return []
        past = stop.from_record(record.get("validations", {}))
        if past is None:  # A criterion that is new to the run: it can choose what still exists.
            saved = [(step, checkpoints.read_meta(step)["metrics"]) for step in checkpoints.steps()]
            past = [(step, metrics) for step, metrics in saved if stop.metric in metrics]
        return past

    def _same_frozen(self, meta: Mapping[str, Any]) -> None:
        """A run is only resumed with the frozen networks it was begun with."""
        for name, then in meta.get("frozen", {}).items():
            now = self.meta["frozen"].get(name, {})
            if now.get("fingerprint") != then["fingerprint"]:
                raise UserError(
                    f"The run in {self.workdir} was begun with another {name} ({then['source']}); "
                    f"give that one again, or start in a new workdir with init_from."
                )

    def _loop(
        self, state: TrainState, first: int, checkpoints: Checkpoints, interrupt: "_Interrupt"
    ) -> str:
        settings = self.settings
        step = jit_step(
            self.task, state, self.mesh, seed=settings.seed, accumulate=settings.accumulate
        )
        pending: deque[_Pending] = deque()
        batches = self.stream(first)
        results: dict[str, float] = {}
        number, ended = first, "done"
        while number < settings.steps:
            results = {}  # A checkpoint records only what was measured at its own step.
            self._profile(number)
            batch = next(batches)
            state, metrics = step(state, self.frozen, put_batch(batch, self.mesh))
            number += 1
            pending.append(_Pending(number, metrics, batch))
            self._read(pending, leave=LAG)
            if _due(number, settings.validate_every, settings.steps):
                self._read(pending, leave=0)
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
                # The log is written up to this step before a checkpoint says that it was reached.
                self._read(pending, leave=0)
                self._trackers.flush()
                meta = self._meta(results, "running")
                checkpoints.save(number, state, meta, results, self._chosen_state(state, number))
            if interrupted:
                checkpoints.wait()
                return "interrupted"
        self._read(pending, leave=0)
        self._trackers.flush()
        state = {**state, "state": self._finish(state)}
        checkpoints.save(number, state, self._meta(results, ended), results)
        checkpoints.wait()
        return ended

    def _read(self, pending: deque["_Pending"], leave: int) -> None:
        """Looks at the scalars of finished steps, all but the newest ``leave``."""
        settings = self.settings
        while len(pending) > leave:
            number, metrics, batch = pending.popleft()
            in_row = int(metrics["skipped_in_row"])
            if in_row >= settings.max_skipped_in_row:
                records = {name: rows["record"][:8].tolist() for name, rows in batch.items()}
                raise UserError(
                    f"Loss or gradient was not finite in {in_row} steps in a row, up to step "
                    f"{number} (records {records} ...): lower the learning rate or look at those "
                    f"records; {self.workdir}/checkpoints holds the run from before."
                )
            if _due(number, settings.log_every, settings.steps) or number == 1:
                values = {name: float(value) for name, value in jax.device_get(metrics).items()}
                self._progress.update(number, values[f"{next(iter(self.task.groups))}/loss"])
                # An idle group's metrics are NaN.
                values = {name: value for name, value in values.items() if value == value}
                self._trackers.scalars(number, values)

    def _validate(self, state: TrainState, number: int) -> dict[str, float]:
        """Every validation set's means, with the averaged weights and the same noise each time."""
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
        """What the first criterion that wants to stop says."""
        reason = None
        if self.settings.stop:
            self._history.append((number, results))
            _, reason = self.settings.stop(self._history)
        return reason or next((r for ask in self.stop if (r := ask(number, results))), None)

    def _preview(self, state: TrainState, number: int) -> None:
        for name, batches in self.validation.items():
            images = self._apply("preview", state, next(iter(batches())), 0)
            self._trackers.images(number, {f"{name}/{k}": v for k, v in images.items()})

    def _apply(self, method: str, state: TrainState, batch: Batch, index: int) -> dict[str, Any]:
        """A task's ``validate`` or ``preview`` on one batch, compiled once."""
        if method not in self._compiled:
            self._compiled[method] = jax.jit(getattr(self.task, method))
        key = jax.random.fold_in(jax.random.key(VALIDATION_SEED), index)
        return fetch(
            self._compiled[method](
                averaged(state), self.frozen, state["state"], put_batch(batch, self.mesh), key
            )
        )

    def _finish(self, state: TrainState) -> Params:
        """Measured on the first batches of the training stream, whatever step the run ended at."""
        batches = (put_batch(batch, self.mesh) for batch in self.stream(0))
        extra = self.task.finish(averaged(state), self.frozen, state["state"], batches)
        like = jax.tree.map(lambda x: x.sharding, state["state"])
        return jax.tree.map(jax.device_put, extra, like)

    def _chosen_state(self, state: TrainState, number: int) -> Params | None:
        """The finished state of a step that is the best so far: it may be the one that is used.

        Training goes on from the unfinished one, so it is saved beside that.
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
    """A step handed to the device, its scalars not yet read."""

    number: int
    metrics: Any
    batch: Batch


def _due(number: int, every: int, last: int | None = None) -> bool:
    return bool(every) and (number % every == 0 or number == last)


class _Interrupt:
    """SIGTERM and SIGINT ask for a save at the next step; a second one ends the process.

    On several hosts jax itself listens for SIGTERM, which tells every other process, and its
    handler must stay in place; SIGINT is passed on to it.
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
        """Whether to stop after ``step``; on several hosts all give the same answer."""
        if jax.process_count() > 1:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self._flag.is_set()
