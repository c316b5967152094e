"""The training state: one pytree that holds everything a resumed run needs.

``params`` and ``ema`` are flat dicts of fp32 master arrays; ``opt`` holds one optax state for each
group. ``state`` is the task's own state (latent statistics, a codebook), also a flat dict. The keys
are those of stored checkpoints. Frozen networks are not included. ``ema`` has only the paths of
groups that keep an average, and starts as a copy of the parameters at step 0 of every stage.
"""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from emu_jax.checkpoint.safetensors_io import place
from emu_jax.nn.functional import Params
from emu_jax.parallel.sharding import abstract_params, shard_params
from emu_jax.tasks.base import Task

TrainState = dict[str, Any]


def group_paths(task: Task, params: Params) -> dict[str, list[str]]:
    """Group name -> its paths. Groups may overlap (two losses for one network)."""
    return {name: group.paths(params) for name, group in task.groups.items()}


def init_state(task: Task, key: jax.Array) -> TrainState:
    """A fresh state on jax's default device; under ``jax.eval_shape`` its shapes."""
    return with_params(task, *task.init(key))


def fresh_params(task: Task, seed: int, mesh: Mesh) -> tuple[Params, Params]:
    """Fresh parameters and state, sharded over the mesh; every process computes the same values.

    The arrays are created one by one on the host (unless JAX_PLATFORMS hides the CPU from jax), so
    that no device needs memory for all of them. Compiled as one program, the initialization of
    SDXL's 500 arrays took XLA 160 s for two CPU cores and more than five minutes for an H200.
    """
    try:
        host = jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        host = contextlib.nullcontext()
    with host:
        params, state = task.init(jax.random.key(seed))

    def shard(tree: Params) -> Params:
        return place(((p, np.asarray(x)) for p, x in tree.items()), shard_params(tree, mesh))

    return shard(params), shard(state)


def start_state(task: Task, mesh: Mesh, params: Params, state: Params) -> TrainState:
    """:func:`with_params`, sharded over the mesh. The given arrays are donated."""
    start = jax.jit(
        lambda params, state: with_params(task, params, state),
        out_shardings=jax.tree.map(lambda x: x.sharding, abstract_state(task, mesh)),
        donate_argnums=(0, 1),
    )
    return start(params, state)


def abstract_state(task: Task, mesh: Mesh) -> TrainState:
    """The shapes and shardings of the state; no array is created."""
    return abstract_params(
        jax.eval_shape(lambda key: init_state(task, key), jax.random.key(0)), mesh
    )


def with_params(task: Task, params: Params, state: Params) -> TrainState:
    """The state of step 0 for these parameters: fresh optimizer, EMA equal to the parameters."""
    paths = group_paths(task, params)
    ema = {
        path: jnp.array(params[path], jnp.float32)
        for name, group in task.groups.items()
        if group.ema_decay is not None
        for path in paths[name]
    }
    opt = {
        name: group.optimizer.init({path: params[path] for path in paths[name]})
        for name, group in task.groups.items()
    }
    zero = jnp.zeros((), jnp.int32)
    return {
        "step": zero,
        "params": params,
        "ema": ema,
        "opt": opt,
        "state": state,
        "skipped": zero,
        "skipped_in_row": zero,
    }


def averaged(state: TrainState) -> Params:
    """The parameters for evaluation, sampling and export: the EMA where there is one."""
    return {**state["params"], **state["ema"]}
