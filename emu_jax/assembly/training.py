"""From a config to a trainer: everything that one run needs."""

import os
from functools import partial

import jax
from ml_collections import ConfigDict

from emu_jax.assembly.initial import initial
from emu_jax.assembly.measure import Samples, measures
from emu_jax.assembly.streams import previews, training_stream, validation_streams
from emu_jax.assembly.tasks import open_task, unused_networks
from emu_jax.evaluation.grids import grid
from emu_jax.parallel.compiler import compiler, set_flags
from emu_jax.parallel.distributed import initialize
from emu_jax.parallel.mesh import make_mesh
from emu_jax.tasks.base import Task, encoders_of
from emu_jax.training.stopping import EarlyStopping
from emu_jax.training.trainer import Trainer, TrainSettings


def prepare(config: ConfigDict, workdir: str = "") -> None:
    """What has to happen before any device is used: compiler flags, connecting the processes."""
    set_flags()  # also where no command has done it
    if config.deterministic:
        flags = "--xla_gpu_exclude_nondeterministic_ops=true"
        given = os.environ.get("XLA_FLAGS", "")
        if flags not in given:
            os.environ["XLA_FLAGS"] = f"{given} {flags}".strip()
    initialize()
    if config.deterministic and workdir and jax.default_backend() == "gpu":
        keep_programs(f"{workdir}/programs")


def keep_programs(folder: str) -> None:
    """Stores every compiled program in ``folder``, or in JAX_COMPILATION_CACHE_DIR, and reads it
    from there the next time.

    For a GPU the compiler times kernels and chooses the fastest, not always the same ones. A
    resumed run is bit-exact only with the kernels that the run began with.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_raise_persistent_cache_errors", True)


def make_trainer(config: ConfigDict, workdir: str) -> Trainer:
    """A trainer of everything in the config. A run that exists in ``workdir`` is resumed."""
    stop = EarlyStopping(**config.train.stop) if config.train.stop.metric else None
    settings = TrainSettings(**{**config.train, "stop": stop})
    mesh = make_mesh(**config.mesh)
    task, frozen = open_task(config, mesh, config.attention, strict=config.deterministic)
    stream = training_stream(config, task, frozen, mesh)
    validation = validation_streams(config, task, frozen, mesh)
    shown = previews(config, task, frozen, mesh, stream, validation)
    measured = measures(config)
    if not measured:  # Caches and null conditioning exist: their encoders leave the devices.
        unused = unused_networks(config, task)
        frozen = {name: params for name, params in frozen.items() if name not in unused}
    return Trainer(
        task=task,
        settings=settings,
        workdir=workdir,
        mesh=mesh,
        frozen=frozen,
        stream=stream,
        validation=validation,
        previews=shown,
        meta={
            "config": config.to_dict(),
            "frozen": _record(task),
            "compiler": compiler(),
        },
        initial=partial(initial, config, task, mesh) if config.init_from or task.starts else None,
        measures=(Samples(config, task, mesh, frozen),) if measured else (),
        draw=grid,
    )


def _record(task: Task) -> dict[str, dict[str, str]]:
    """What a checkpoint says of each frozen network, and of the tokenizer of a text encoder."""
    encoders = encoders_of(task)
    return {
        name: {"source": network.source, "fingerprint": network.fingerprint}
        | ({"tokenizer": encoders[name].tokenizer_fingerprint} if name in encoders else {})
        for name, network in task.frozen.items()
    }
