"""The whole training step as one function of (state, frozen networks, batch).

For each group in order: loss and gradient (accumulated over micro-batches), optimizer update, EMA.
All randomness comes from ``fold_in(seed, step)``, so a resumed run draws the same random numbers as
an uninterrupted run.

A group whose loss or gradient is not finite keeps its parameters, optimizer state, EMA and the
task's state, and so do the groups after it; the step is counted as skipped.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from emu_jax.nn.functional import Params
from emu_jax.parallel.sharding import replicated
from emu_jax.tasks.base import Batch, Context, Group, Loss, Metrics, Task
from emu_jax.training.state import TrainState

# Named scopes that identify these parts of the step in a profile.
OPTIMIZER, EMA = "optimizer", "ema"
Step = Callable[[TrainState, Mapping[str, Params], Batch], tuple[TrainState, Metrics]]


def jit_step(
    task: Task, state: TrainState, mesh: Mesh, *, seed: int, accumulate: int = 1
) -> Callable[..., Any]:
    """:func:`make_step` under ``jax.jit``. The state is donated and keeps its shardings.

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
        task_state, metrics, finite = state["state"], {}, jnp.bool_(True)
        handed: dict[str, Any] = {}

        for index, (name, group) in enumerate(task.groups.items()):
            averages = {**params, **ema}
            context = Context(
                params=dict(params),
                frozen=frozen,
                state=task_state,
                batch=batch,
                key=jax.random.fold_in(key, index),
                step=number,
                averaged=lambda averages=averages: averages,
                handed=dict(handed),
            )
            update = partial(_update, task, name, group, context, accumulate)
            trained = {path: params[path] for path in group.paths(params)}
            average = {path: ema[path] for path in trained if path in ema}
            operand = (trained, task_state, opt[name], average)
            if group.always:
                kept, (scalars, values), finite = update(operand, finite)
            else:
                active = group.active(number)
                kept, (scalars, values), finite = _maybe(active, update, operand, finite)
            trained, task_state, opt[name], average = kept
            params.update(trained)
            ema.update(average)
            handed[name] = values
            metrics |= {f"{name}/{key}": value for key, value in scalars.items()}

        skipped = jnp.where(finite, 0, 1)
        new_state = {
            "step": number + 1,
            "params": params,
            "ema": ema,
            "opt": opt,
            "state": task_state,
            "skipped": state["skipped"] + skipped,
            "skipped_in_row": jnp.where(finite, 0, state["skipped_in_row"] + 1),
        }
        metrics["skipped"] = new_state["skipped"]
        metrics["skipped_in_row"] = new_state["skipped_in_row"]
        return new_state, {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}

    return step


def ema_update(ema: Params, params: Params, updates: jax.Array, decay: float | None) -> Params:
    """Exponential moving average with warm-up: decay min(d, (1 + n) / (10 + n)) at the n-th update
    of the group, after ``updates`` = n - 1 earlier ones.

    A plain 0.9999 over a few hundred tuning steps would ship the untuned model.
    """
    if decay is None:
        return ema
    n = updates.astype(jnp.float32) + 1.0
    rate = 1.0 - jnp.minimum(decay, (1.0 + n) / (10.0 + n))
    return {path: value + rate * (params[path] - value) for path, value in ema.items()}


def _update(
    task: Task,
    name: str,
    group: Group,
    context: Context,
    accumulate: int,
    operand: tuple[Params, Params, Any, Params],
    finite: jax.Array,
) -> tuple[tuple, tuple[Metrics, Any], jax.Array]:
    """The group's (parameters, task state, optimizer state, averages) after one update, its
    (scalars to log, values for later groups), and whether everything so far was finite.
    """
    trained, task_state, opt_state, average = operand
    grads, found = _accumulated(task, name, context, accumulate, trained, task_state)
    # Both before the update: XLA then computes the parameter norm in the same pass as the cast of
    # the parameters.
    param_norm, grad_norm = jax.lax.optimization_barrier(
        (optax.tree.norm(trained), optax.tree.norm(grads))
    )
    finite &= jnp.isfinite(found.value) & jnp.isfinite(grad_norm)
    count = group.updates(context.step)
    with jax.named_scope(OPTIMIZER):
        updates, new_opt = group.optimizer.update(grads, opt_state, trained)
        new = optax.apply_updates(trained, updates)
    with jax.named_scope(EMA):
        average = ema_update(average, new, count, group.ema_decay)
    scalars = {
        "loss": found.value,
        **found.metrics,
        "grad_norm": grad_norm,
        "param_norm": param_norm,
        # The schedule counts the group's own updates, not steps.
        "learning_rate": group.learning_rate(count),
    }
    kept = _select(finite, (new, found.state, new_opt, average), operand)
    return kept, (scalars, found.handed), finite


def _accumulated(
    task: Task, name: str, context: Context, accumulate: int, trained: Params, task_state: Params
) -> tuple[Params, Loss]:
    """Gradient, loss and metrics as means over ``accumulate`` micro-batches, and the last state.

    Values that groups hand on have an axis of micro-batches in front.
    """

    def gradients(context: Context) -> tuple[Params, Loss]:
        def loss(trained: Params) -> tuple[jax.Array, Loss]:
            found = task.loss(name, context._replace(params={**context.params, **trained}))
            return found.value, found

        return jax.grad(loss, has_aux=True)(trained)

    if accumulate == 1:
        return gradients(context._replace(state=task_state))

    def split(x: jax.Array) -> jax.Array:
        # Row r goes to micro-batch r mod n: every device keeps the rows it already holds.
        rows = x.reshape(x.shape[0] // accumulate, accumulate, *x.shape[1:])
        return rows.swapaxes(0, 1)

    def body(carry, micro):
        total, task_state = carry
        index, batch, handed = micro
        key = jax.random.fold_in(context.key, index)
        own = context._replace(state=task_state, batch=batch, handed=handed, key=key)
        grads, found = gradients(own)
        scalars = found.value, dict(found.metrics)
        return (jax.tree.map(jnp.add, total, grads), found.state), (scalars, found.handed)

    zeros = jax.tree.map(jnp.zeros_like, trained)
    micros = (jnp.arange(accumulate), jax.tree.map(split, context.batch), context.handed)
    (total, task_state), (scalars, values) = jax.lax.scan(body, (zeros, task_state), micros)
    value, metrics = jax.tree.map(lambda x: jnp.mean(x, axis=0), scalars)
    return jax.tree.map(lambda x: x / accumulate, total), Loss(value, task_state, metrics, values)


def _maybe(active: jax.Array, update: Callable, operand: tuple, finite: jax.Array):
    """The update where the group is active. An idle group hands on zeros; its metrics are NaN and
    are not logged.
    """
    scalars, values = jax.eval_shape(update, operand, finite)[1]

    def idle(operand: tuple, finite: jax.Array):
        nothing = jax.tree.map(lambda s: jnp.full(s.shape, jnp.nan, s.dtype), scalars)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), values)
        return operand, (nothing, zeros), finite

    return jax.lax.cond(active, update, idle, operand, finite)


def _select(ok: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, old)
