"""The training state: one pytree that holds everything a resumed run needs.

``params``, ``ema`` and ``state`` are flat dicts of fp32 masters, ``opt`` holds one optax state a
group. Frozen networks are not in it. ``ema`` has only the paths of groups that keep an average and
starts as a copy of the parameters at step 0 of every stage.
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
    """Group name -> its paths. Groups may overlap (two losses on one network); most do not."""
    return {name: group.paths(params) for name, group in task.groups.items()}


def init_state(task: Task, key: jax.Array) -> TrainState:
    """A fresh state, wherever jax puts it; under ``jax.eval_shape`` its shapes."""
    return with_params(task, *task.init(key))


def fresh_params(task: Task, seed: int, mesh: Mesh) -> tuple[Params, Params]:
    """Fresh parameters and state in their shards on the mesh; every process makes the same.

    Array after array on the host (where JAX_PLATFORMS leaves it to jax), so that no device needs
    room for all of them. As one program SDXL's 500 took XLA 160 s to compile for two CPU cores and
    more than five minutes for an H200.
    """
    try:
        host = jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        host = contextlib.nullcontext()
    with host:
        params, state = task.init(jax.random.key(seed))

    def spread(tree: Params) -> Params:
        return place(((p, np.asarray(x)) for p, x in tree.items()), shard_params(tree, mesh))

    return spread(params), spread(state)


def start_state(task: Task, mesh: Mesh, params: Params, state: Params) -> TrainState:
    """:func:`with_params` in its shards; takes the arrays over."""
    start = jax.jit(
        lambda params, state: with_params(task, params, state),
        out_shardings=jax.tree.map(lambda x: x.sharding, abstract_state(task, mesh)),
        donate_argnums=(0, 1),
    )
    return start(params, state)


def abstract_state(task: Task, mesh: Mesh) -> TrainState:
    """The state's shapes and where they lie; nothing is made."""
    return abstract_params(
        jax.eval_shape(lambda key: init_state(task, key), jax.random.key(0)), mesh
    )


def with_params(task: Task, params: Params, state: Params) -> TrainState:
    """Step 0 from the given parameters: fresh optimiser, EMA equal to the parameters."""
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
    """The parameters to look at, sample with and ship: the EMA where there is one."""
    return {**state["params"], **state["ema"]}
