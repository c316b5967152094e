"""Optimizers and learning-rate schedules by name, from optax.

Every optimizer is a chain: clipping by global norm, then AdamW or Adafactor with decoupled weight
decay on matrices and convolutions only (not on biases and norm scales), then the schedule.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import optax

from emu_jax.nn.stack import is_scanned
from emu_jax.registry import look_up
from emu_jax.training.registry import OPTIMIZERS, RATES


def make_schedule(
    name: str, learning_rate: float, *, steps: int, warmup: int = 0, final: float = 0.0
) -> optax.Schedule:
    """A learning-rate schedule: ``constant``, ``rsqrt``, or ``cosine`` or ``linear`` decay to
    ``final`` x ``learning_rate`` at ``steps``.

    All warm up linearly over the first ``warmup`` updates: update n (from 0) uses (n + 1) / warmup
    of the rate. ``rsqrt`` then decays as sqrt(warmup / n).
    """
    make = look_up(RATES, name, "optimizer.schedule")
    body = make(learning_rate, max(steps - warmup, 1), warmup, final)
    if not warmup:
        return body
    # The first update already changes the parameters: its rate is learning_rate / warmup, not 0.
    ramp = optax.linear_schedule(learning_rate / warmup, learning_rate, warmup - 1 or 1)
    return optax.join_schedules([ramp, body], [warmup])


def make_optimizer(
    config: Mapping[str, Any], *, steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """(optimizer, schedule) from a config's ``optimizer`` section."""
    schedule = make_schedule(
        config["schedule"],
        config["learning_rate"],
        steps=steps,
        warmup=config["warmup"],
        final=config["final"],
    )
    body = look_up(OPTIMIZERS, config["name"], "optimizer.name")(config, schedule)
    if config["clip"]:
        return optax.chain(optax.clip_by_global_norm(config["clip"]), body), schedule
    return body, schedule


def make_adamw(config: Mapping[str, Any], schedule: optax.Schedule) -> optax.GradientTransformation:
    """AdamW."""
    return optax.adamw(
        schedule,
        b1=config["b1"],
        b2=config["b2"],
        eps=config["eps"],
        weight_decay=config["weight_decay"],
        mask=_matrices,
    )


def make_adafactor(
    config: Mapping[str, Any], schedule: optax.Schedule
) -> optax.GradientTransformation:
    """Adafactor. Unlike in optax.adafactor, weight decay is multiplied by the learning rate."""
    return optax.chain(
        optax.scale_by_factored_rms(decay_rate=0.8),
        optax.clip_by_block_rms(1.0),
        optax.ema(config["b1"], debias=False) if config["b1"] else optax.identity(),
        optax.add_decayed_weights(config["weight_decay"], mask=_matrices),
        optax.scale_by_learning_rate(schedule),
    )


def constant(learning_rate: float, steps: int, warmup: int, final: float) -> optax.Schedule:
    """The learning rate itself."""
    return optax.constant_schedule(learning_rate)


def cosine(learning_rate: float, steps: int, warmup: int, final: float) -> optax.Schedule:
    """Half a cosine from the learning rate to ``final`` times it, after ``steps`` updates."""
    return optax.cosine_decay_schedule(learning_rate, steps, alpha=final)


def linear(learning_rate: float, steps: int, warmup: int, final: float) -> optax.Schedule:
    """A line from the learning rate to ``final`` times it, after ``steps`` updates."""
    return optax.linear_schedule(learning_rate, learning_rate * final, steps)


def rsqrt(learning_rate: float, steps: int, warmup: int, final: float) -> optax.Schedule:
    """learning_rate x sqrt(warmup / (n + warmup))."""
    ramp = max(warmup, 1)
    # optax.join_schedules also evaluates a schedule at steps before its start.
    return lambda n: learning_rate * (ramp / (jnp.maximum(n, 0) + ramp)) ** 0.5


def _matrices(params: Mapping[str, Any]) -> dict[str, bool]:
    """Whether each path is a matrix or a convolution; the layer axis of a scanned stack does not
    count as a dimension.
    """
    return {path: p.ndim - is_scanned(path) > 1 for path, p in params.items()}
