"""The whole training step as one function of (state, frozen networks, batch).

For each group in order: loss and gradient (accumulated over micro-batches), optimiser update, EMA.
All randomness is ``fold_in(seed, step)``, so a resumed run draws what the unbroken one would have
drawn.

A group whose loss or gradient is not finite is left as it was, with its optimiser, EMA and the
state, and so are the groups after it; the step is counted as skipped.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from emu_jax.nn.functional import Params
from emu_jax.parallel.sharding import replicated
from emu_jax.tasks.base import Batch, Group, Metrics, Task
from emu_jax.training.state import TrainState

# Scopes that a profile finds these parts of the step by.
OPTIMIZER, EMA = "optimizer", "ema"
Step = Callable[[TrainState, Mapping[str, Params], Batch], tuple[TrainState, Metrics]]


def jit_step(
    task: Task, state: TrainState, mesh: Mesh, *, seed: int, accumulate: int = 1
) -> Callable[..., Any]:
    """:func:`make_step` under ``jax.jit``: the state donated, and lying afterwards as it did.

    ``state`` may be abstract (:func:`emu_jax.training.state.abstract_state`).
    """
    return jax.jit(
        make_step(task, seed=seed, accumulate=accumulate),
        donate_argnums=0,
        out_shardings=(jax.tree.map(lambda x: x.sharding, state), replicated(mesh)),
    )


def make_step(task: Task, *, seed: int, accumulate: int = 1) -> Step:
    """``step(state, frozen, batch) -> (state, metrics)``, to be compiled by :func:`jit_step`.

    ``accumulate`` splits every batch into that many micro-batches and averages their gradients.
    """

    def step(
        state: TrainState, frozen: Mapping[str, Params], batch: Batch
    ) -> tuple[TrainState, Metrics]:
        number = state["step"]
        key = jax.random.fold_in(jax.random.key(seed), number)
        params, ema, opt = dict(state["params"]), dict(state["ema"]), dict(state["opt"])
        extra, metrics, finite = state["state"], {}, jnp.bool_(True)

        for index, (name, group) in enumerate(task.groups.items()):
            paths = group.paths(params)
            group_key = jax.random.fold_in(key, index)

            def gradients(trained: Params, extra: Params, batch: Batch, key: jax.Array, name=name):
                def loss(trained: Params):
                    return task.loss(name, {**params, **trained}, frozen, extra, batch, key, number)

                (value, (new_extra, scalars)), grads = jax.value_and_grad(loss, has_aux=True)(
                    trained
                )
                return grads, new_extra, {"loss": value, **scalars}

            def update(operand: tuple, finite: jax.Array, group: Group = group, key=group_key):
                trained, extra, opt_state, average = operand
                grads, new_extra, scalars = _accumulated(
                    gradients, accumulate, trained, extra, batch, key
                )
                # Both before the update: XLA then sums the weights as it casts them, in one pass.
                param_norm, grad_norm = jax.lax.optimization_barrier(
                    (optax.tree.norm(trained), optax.tree.norm(grads))
                )
                ok = finite & jnp.isfinite(scalars["loss"]) & jnp.isfinite(grad_norm)
                with jax.named_scope(OPTIMIZER):
                    updates, new_opt = group.optimizer.update(grads, opt_state, trained)
                    new = optax.apply_updates(trained, updates)
                with jax.named_scope(EMA):
                    average = ema_update(average, new, number, group.ema_decay)
                scalars |= {
                    "grad_norm": grad_norm,
                    "param_norm": param_norm,
                    # The schedule counts the group's own updates, not steps.
                    "learning_rate": group.learning_rate(
                        (number - group.first_step) // group.every
                    ),
                }
                kept = _select(ok, (new, new_extra, new_opt, average), (*operand[:3], operand[3]))
                return kept, scalars, ok

            trained = {path: params[path] for path in paths}
            average = {path: ema[path] for path in paths if path in ema}
            operand = (trained, extra, opt[name], average)
            if group.first_step or group.every > 1:
                active = (number >= group.first_step) & (number % group.every == 0)
                kept, scalars, finite = _maybe(active, update, operand, finite)
            else:
                kept, scalars, finite = update(operand, finite)
            trained, extra, opt[name], average = kept
            params.update(trained)
            ema.update(average)
            metrics |= {f"{name}/{key}": value for key, value in scalars.items()}

        skipped = jnp.where(finite, 0, 1)
        new_state = {
            "step": number + 1,
            "params": params,
            "ema": ema,
            "opt": opt,
            "state": extra,
            "skipped": state["skipped"] + skipped,
            "skipped_in_row": jnp.where(finite, 0, state["skipped_in_row"] + 1),
        }
        metrics["skipped"] = new_state["skipped"]
        metrics["skipped_in_row"] = new_state["skipped_in_row"]
        return new_state, {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}

    return step


def ema_update(ema: Params, params: Params, step: jax.Array, decay: float | None) -> Params:
    """Exponential moving average with warm-up: decay min(d, (1 + n) / (10 + n)) at the n-th update.

    A plain 0.9999 over a few hundred tuning steps would ship the untuned model.
    """
    if decay is None:
        return ema
    n = step.astype(jnp.float32) + 1.0
    rate = 1.0 - jnp.minimum(decay, (1.0 + n) / (10.0 + n))
    return {path: value + rate * (params[path] - value) for path, value in ema.items()}


def _accumulated(
    gradients: Callable, accumulate: int, trained: Params, extra: Params, batch: Batch, key: Any
):
    """(mean gradient, last state, mean metrics) over ``accumulate`` micro-batches."""
    if accumulate == 1:
        return gradients(trained, extra, batch, key)

    def split(x: jax.Array) -> jax.Array:
        # Row r goes to micro-batch r mod n: every device keeps the rows it already holds.
        rows = x.reshape(x.shape[0] // accumulate, accumulate, *x.shape[1:])
        return rows.swapaxes(0, 1)

    def body(carry, micro):
        total, extra = carry
        index, part = micro
        grads, extra, scalars = gradients(trained, extra, part, jax.random.fold_in(key, index))
        return (jax.tree.map(jnp.add, total, grads), extra), scalars

    zeros = jax.tree.map(jnp.zeros_like, trained)
    parts = (jnp.arange(accumulate), jax.tree.map(split, batch))
    (total, extra), scalars = jax.lax.scan(body, (zeros, extra), parts)
    mean = jax.tree.map(lambda x: x / accumulate, total)
    return mean, extra, jax.tree.map(lambda x: jnp.mean(x, axis=0), scalars)


def _maybe(active: jax.Array, update: Callable, operand: tuple, finite: jax.Array):
    """The update where the group is active; an idle group's metrics are NaN and are not logged."""
    shapes = jax.eval_shape(update, operand, finite)[1]

    def idle(operand: tuple, finite: jax.Array):
        return operand, jax.tree.map(lambda s: jnp.full(s.shape, jnp.nan, s.dtype), shapes), finite

    return jax.lax.cond(active, update, idle, operand, finite)


def _select(ok: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, old)
