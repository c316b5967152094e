"""A config's training step and sampler, timed on the devices of this machine.

Batches and the weights of frozen networks are made up: no data set and no checkpoint is needed.
"""

from collections.abc import Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from emu_jax.assembly.cost import model_flops, step_batch
from emu_jax.assembly.tasks import make_task, unused_networks
from emu_jax.errors import UserError
from emu_jax.parallel.mesh import make_mesh
from emu_jax.parallel.placement import placement
from emu_jax.planning.bench import Speed, bench_sampler, bench_step
from emu_jax.planning.inputs import abstract_frozen, synthetic
from emu_jax.planning.profile import gpu_of
from emu_jax.tasks.base import cast
from emu_jax.training.state import abstract_state, averaged, fresh_params


def bench(
    config: ConfigDict,
    measure: Sequence[str],
    *,
    images: int,
    warmup: int,
    repeats: int,
    profile: bool = False,
) -> dict[str, Speed]:
    """The speed of each of ``measure``: "train", the step of ``emu-jax train``, and "sample",
    drawing ``images`` at once. ``profile``: with the times of kernels by kind.
    """
    mesh = make_mesh(**config.mesh)
    gpu = gpu_of(mesh.devices.flat[0].device_kind) if profile else None
    task = make_task(config, placement(mesh, config.attention)).prepare(None)
    if "sample" in measure and task.generator is None:
        raise UserError(f"The task {config.task} draws no images: use --measure=train.")
    unused = unused_networks(config, task)
    frozen = synthetic(abstract_frozen(task, mesh, unused), jax.random.key(0), 0.02)
    counts: dict[str, Any] = dict(warmup=warmup, repeats=repeats, gpu=gpu)
    speeds, params = {}, None
    if "train" in measure:
        state, batch = abstract_state(task, mesh), step_batch(config, task, frozen, mesh)
        flops = model_flops(config, state, frozen, batch)
        train = config.train
        speeds["train"], state = bench_step(
            *(task, mesh, state, frozen, batch, flops),
            seed=train.seed,
            accumulate=train.accumulate,
            **counts,
        )
        params = averaged(state)
        del state  # the optimiser's part of it
    if "sample" in measure:
        if params is None:
            params, _ = fresh_params(task, config.train.seed, mesh)
        params = cast(params, task.sampling_dtype) if task.sampling_dtype else params
        side = config.data.image_size
        speeds["sample"] = bench_sampler(task, mesh, params, frozen, side, images, **counts)
    return speeds
