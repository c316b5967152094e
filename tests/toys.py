"""A task whose every number is known in closed form, and runs of it. A helper, not a test."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh

from emu_jax.checkpoint.manager import Checkpoints
from emu_jax.parallel.mesh import AXES
from emu_jax.tasks.base import Group, Loss, RowSpec, Task
from emu_jax.training.trainer import Trainer, TrainSettings

RATE, DECAY = 0.5, 0.5
FROZEN = {"text": {"source": "weights/text", "fingerprint": "abc"}}


class Mean(Task):
    """``a`` follows the rows' mean: a += RATE (mean - a). Validation measures valid rows' x - a."""

    streams = {"train": RowSpec()}  # noqa: RUF012

    def __init__(self):
        group = Group("a", optax.sgd(RATE), lambda n: RATE, ema_decay=DECAY)
        super().__init__(groups={"mean": group}, frozen={})

    def init(self, key):
        return {"a": jnp.zeros(())}, {"measured": jnp.zeros(())}

    def loss(self, group, context):
        x = context.batch["train"]["x"]
        return Loss(0.5 * jnp.mean((context.params["a"] - x) ** 2), context.state)

    def validate(self, context):
        rows = context.batch["train"]
        valid = rows["valid"].astype(jnp.float32)
        gap = rows["x"] - context.params["a"]
        return {"gap": (jnp.sum(gap * valid), jnp.sum(valid))}

    def preview(self, context):
        shade = jnp.round(context.params["a"] * 100).astype(jnp.uint8)
        return {"shade": jnp.broadcast_to(shade, (len(context.batch["train"]["x"]), 4, 4, 3))}

    def finish(self, context, batches, validation):
        first = next(iter(batches))
        return {"measured": jnp.mean(first["train"]["x"]) + context.params["a"]}


def value(n):
    """What every row of batch n says."""
    return 1.0 + 0.25 * n


def stream(first, values=value, at=None):
    """Batches ``first``, ``first`` + 1, ...; ``at(n)`` is called when batch n is asked for."""
    n = first
    while True:
        if at:
            at(n)
        x = np.full(4, values(n), np.float32)
        yield {"train": {"x": x, "record": np.arange(4) + 10 * n}}
        n += 1


def held_out():
    """Two batches, the second of one row and a padded one."""
    for x, valid in (([1.0, 2.0], [True, True]), ([6.0, 99.0], [True, False])):
        yield {"train": {"x": np.array(x, np.float32), "valid": np.array(valid)}}


def trainer(
    workdir, *, task=None, frozen=FROZEN, measures=(), criteria=(), data=stream, **settings
):
    devices = np.array(jax.devices()[:1]).reshape(1, 1)
    defaults = dict(steps=8, batch_size=4, log_every=1, validate_every=4, checkpoint_every=0)
    return Trainer(
        task=task or Mean(),
        settings=TrainSettings(**{**defaults, **settings}),
        workdir=str(workdir),
        mesh=Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES)),
        frozen={},
        stream=data,
        meta={"config": {"task": "mean"}, "frozen": frozen},
        validation={"held_out": held_out},
        measures=tuple(measures),
        stop=tuple(criteria),
    )


def expected(steps, values=value):
    """(a, its average) after so many steps."""
    a = average = 0.0
    for n in range(steps):
        if np.isfinite(values(n)):
            a += RATE * (values(n) - a)
            rate = 1 - min(DECAY, (2 + n) / (11 + n))
            average += rate * (a - average)
    return a, average


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def saved(workdir, step=None):
    """(steps, arrays, record) of the checkpoints."""
    with Checkpoints(str(workdir / "checkpoints"), read_only=True) as checkpoints:
        steps = checkpoints.steps()
        return steps, checkpoints.read_arrays(step), checkpoints.read_meta(step)
