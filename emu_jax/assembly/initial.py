"""``init_from``: the parameters that a stage starts from, another one's where they fit. Parts may
start from a further model (:attr:`emu_jax.tasks.base.Task.starts`).

Nothing of it is full-size on one host: every stored array is read into its shards, and one compiled
function of those makes the fresh ones beside them, where they are to lie.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from emu_jax.assembly.adapters import make_adapters
from emu_jax.assembly.models import locate
from emu_jax.assembly.models import open_model as open_whole
from emu_jax.checkpoint.foreign import described_by
from emu_jax.checkpoint.opened import open_model
from emu_jax.checkpoint.safetensors_io import place
from emu_jax.checkpoint.transplant import Report, transplant
from emu_jax.errors import UserError
from emu_jax.nn.functional import Params
from emu_jax.nn.stack import relaid
from emu_jax.parallel.sharding import shard_params
from emu_jax.tasks.base import Task
from emu_jax.training.state import fresh_params

_CONV_IN = "denoiser/conv_in/kernel"


def initial(config: ConfigDict, task: Task, mesh: Mesh) -> tuple[Params, Params]:
    """Parameters and state (a codebook) from ``init_from`` where they fit, fresh ones where they do
    not, in their shards; prints a report. All processes must call it.

    Adapters start fresh: ``init_from`` is their base, a frozen network. The state is the base's.
    """
    if config.init_from:
        params, state = _from_another(config, task, mesh)
    else:
        params, state = fresh_params(task, config.train.seed, mesh)
    for prefix, source in task.starts.items():
        names = {f"{prefix}/{path}" for path in source.shapes}
        own = {path: x for path, x in params.items() if path in names}
        named = ((f"{prefix}/{path}", x) for path, x in source.tensors())
        known = ((path, x) for path, x in named if path in own)  # its state is not trained
        params = {**params, **place(known, shard_params(own, mesh), np.float32)}
        if jax.process_index() == 0:
            print(f"{prefix}/ starts from {source.source}", flush=True)
    return params, state


def _from_another(config: ConfigDict, task: Task, mesh: Mesh) -> tuple[Params, Params]:
    key = jax.random.key(config.train.seed)
    if make_adapters(config):
        params, state = fresh_params(task, config.train.seed, mesh)
        return params, _state_of_base(config, state, mesh) if state else state
    model = open_model(locate(config.init_from))
    # An adapter is merged into its base first, on the host.
    with described_by(config.init_from):
        adapted = make_adapters(ConfigDict(model.config))
    whole = open_whole(config.init_from).params if adapted else None
    reports: list[Report] = []

    def start(source: Params, key: jax.Array) -> tuple[Params, Params]:
        params, state = task.init(key)
        wanted = {**params, **state}
        if (config.get("spatial") or {}).get("kind"):
            source = _widened(source, wanted)
        reused, report = transplant(wanted, relaid(source, wanted), skip=config.init_skip or None)
        reports.append(report)
        return (
            {path: reused.get(path, value) for path, value in params.items()},
            {path: reused.get(path, value) for path, value in state.items()},
        )

    found = model.shapes if whole is None else whole
    stored = {path: _as_fp32(x) for path, x in found.items()}
    shapes = jax.eval_shape(start, stored, key)  # What does not fit is said before it is read.
    if jax.process_index() == 0:
        print(f"init_from {config.init_from}:\n{reports[0]}", flush=True)
    places = shard_params(stored, mesh)
    source = model.place(places, np.float32) if whole is None else jax.device_put(whole, places)
    return jax.jit(start, out_shardings=shard_params(shapes, mesh))(source, key)


def _widened(source: Params, wanted: Params) -> Params:
    """``source`` with zeros for the input channels of an image beside the denoiser's input, which
    it lacks: the network starts as without that image.
    """
    own, target = source.get(_CONV_IN), wanted.get(_CONV_IN)
    if own is None or target is None or own.ndim != target.ndim:
        return source
    more = target.shape[-2] - own.shape[-2]
    if more <= 0 or own.shape[:-2] != target.shape[:-2]:
        return source
    pad = [(0, 0)] * (own.ndim - 2) + [(0, more), (0, 0)]
    return {**source, _CONV_IN: jnp.pad(own, pad)}


def _state_of_base(config: ConfigDict, state: Params, mesh: Mesh) -> Params:
    """The base's state, in the shards of ``state``."""
    found = open_whole(config.init_from).params
    missing = sorted(state.keys() - found.keys())
    if missing:
        raise UserError(
            f"init_from {config.init_from} has no {missing[0]}, which the adapted task needs: name "
            "a run of the same task."
        )
    return place(((path, found[path]) for path in state), shard_params(state, mesh))


def _as_fp32(x: Any) -> jax.ShapeDtypeStruct:
    dtype = jnp.float32 if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype
    return jax.ShapeDtypeStruct(x.shape, dtype)
