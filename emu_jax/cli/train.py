"""``emu-jax train``: one config, one run.

The run lives in its workdir. Given again, the same command resumes it, or, where it is done, says
so.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from emu_jax.assembly import parts
from emu_jax.assembly.caches import open_caches
from emu_jax.assembly.config import load
from emu_jax.assembly.generator import open_task, unread
from emu_jax.assembly.initial import initial
from emu_jax.assembly.measure import Samples
from emu_jax.cli.main import report
from emu_jax.data.pipeline import Selection, StreamSpec, make_stream
from emu_jax.evaluation.grids import grid
from emu_jax.nn.functional import Params
from emu_jax.parallel.distributed import ending_together, initialize
from emu_jax.parallel.mesh import make_mesh
from emu_jax.parallel.sharding import process_rows
from emu_jax.tasks.adapting import AdaptedGeneration
from emu_jax.tasks.base import Batch, Task
from emu_jax.training.stopping import EarlyStopping
from emu_jax.training.trainer import Trainer, TrainSettings

INTERRUPTED = 128 + 15  # what a shell says of a process that SIGTERM ended


def main(argv: Sequence[str]) -> int:
    """Trains; 0 when the run has ended by itself, 143 when it was told to stop and can go on, 75
    when another of its processes was lost."""
    config, workdir = load(argv, "emu-jax train")
    prepare(config, workdir)
    with ending_together(report):
        reason = build(config, workdir).run()
    if jax.process_index() == 0:
        print(f"{reason}: {workdir}", flush=True)
    return INTERRUPTED if reason == "interrupted" else 0


def prepare(config: ConfigDict, workdir: str = "") -> None:
    """What must be said before any device is used: the compiler's flags, the other processes."""
    if config.deterministic:
        flags = "--xla_gpu_exclude_nondeterministic_ops=true"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
    initialize()
    if config.deterministic and workdir and jax.default_backend() == "gpu":
        keep_programs(f"{workdir}/programs")


def keep_programs(folder: str) -> None:
    """Keeps every compiled program in ``folder``, or where JAX_COMPILATION_CACHE_DIR says, and
    takes it from there the next time.

    For a GPU the compiler times kernels and takes the fastest, not always the same ones: a resumed
    run computes what it did before only by the kernels that it was begun with.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_raise_persistent_cache_errors", True)


def build(config: ConfigDict, workdir: str) -> Trainer:
    """A trainer of everything in the config."""
    stop = EarlyStopping(**config.train.stop) if config.train.stop.metric else None
    settings = TrainSettings(**{**config.train, "stop": stop})
    mesh = make_mesh(**config.mesh)
    data = config.data
    streams = {"train": (parts.open_selections(config, data.train), parts.stream_spec(config))}
    validation = {
        name: (
            parts.open_selections(config, sources),
            parts.stream_spec(config, sequential=True, flip=False, crop="centre"),
        )
        for name, sources in data.validation.items()
    }
    task, frozen = open_task(config, mesh, config.attention)
    adapted = isinstance(task, AdaptedGeneration)
    open_stream = partial(_open, config, task, frozen, mesh)
    stream = _together({n: open_stream(*pair) for n, pair in streams.items()})
    held_out = {n: _restarted(n, open_stream(*pair)) for n, pair in validation.items()}
    judged = "measure" in config and config.measure.judge
    if not judged:  # Caches and null conditions are made: what stood for them leaves the devices.
        frozen = {n: params for n, params in frozen.items() if n not in unread(config, task)}
    return Trainer(
        task=task,
        settings=settings,
        workdir=workdir,
        mesh=mesh,
        frozen=frozen,
        stream=stream,
        validation=held_out,
        meta={
            "config": config.to_dict(),
            "frozen": {
                name: {"source": network.source, "fingerprint": network.fingerprint}
                for name, network in task.frozen.items()
            },
        },
        # An adapter starts by itself: its base is a frozen network.
        initial=partial(initial, config, task, mesh) if config.init_from and not adapted else None,
        measures=(Samples(config, task, mesh, frozen),) if judged else (),
        draw=grid,
    )


def _open(
    config: ConfigDict,
    task: Task,
    frozen: dict[str, Params],
    mesh: Mesh,
    sources: list[Selection],
    spec: StreamSpec,
) -> Callable[[int], Iterator[dict[str, Any]]]:
    """first step -> this host's rows of one stream, through the caches the config asks for."""
    encoders = getattr(task, "encoders", {})
    caches = open_caches(config, task, frozen, sources, spec)
    tokenize = {name: encoder.tokenize for name, encoder in encoders.items()}
    rows = process_rows(spec.batch_size, mesh)
    return lambda first: make_stream(spec, sources, tokenize, first, caches, rows)


def _together(streams: dict[str, Callable]) -> Callable[[int], Iterator[Batch]]:
    """Named streams side by side: step n reads batch n of each."""

    def start(first: int) -> Iterator[Batch]:
        opened = {name: stream(first) for name, stream in streams.items()}
        while True:
            yield {name: next(rows) for name, rows in opened.items()}

    return start


def _restarted(name: str, stream: Callable) -> Callable[[], Iterator[Batch]]:
    """A validation set from its first batch."""
    return lambda: ({name: rows} for rows in stream(0))
