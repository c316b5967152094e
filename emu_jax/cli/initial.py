"""``init_from``: the parameters that a stage starts from, another one's where they fit.

Nothing of it is full-size on one host: every stored array is read into its shards, and one compiled
function of those makes the fresh ones beside them, where they are to lie.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from emu_jax.checkpoint.foreign import described_by
from emu_jax.checkpoint.opened import open_model
from emu_jax.checkpoint.transplant import Report, transplant
from emu_jax.cli.models import locate, make_lora
from emu_jax.cli.models import open_model as open_whole
from emu_jax.nn.functional import Params
from emu_jax.nn.stack import relaid
from emu_jax.parallel.sharding import shard_params
from emu_jax.tasks.base import Task


def initial(config: ConfigDict, task: Task, mesh: Mesh) -> tuple[Params, Params]:
    """Parameters and state (a codebook) from ``init_from`` where they fit, fresh ones where they do
    not, in their shards; and a report. All processes must ask.
    """
    key = jax.random.key(config.train.seed)
    model = open_model(locate(config.init_from))
    # An adapter is merged into its base first, on the host.
    with described_by(config.init_from):
        adapter = make_lora(ConfigDict(model.config))
    whole = open_whole(config.init_from).params if adapter else None
    reports: list[Report] = []

    def start(source: Params, key: jax.Array) -> tuple[Params, Params]:
        params, state = task.init(key)
        wanted = {**params, **state}
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


def _as_fp32(x: Any) -> jax.ShapeDtypeStruct:
    dtype = jnp.float32 if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype
    return jax.ShapeDtypeStruct(x.shape, dtype)
