"""The step against closed forms: gradient descent on a quadratic, EMA, skipping, accumulation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from emu_jax.errors import UserError
from emu_jax.tasks.base import Group, Loss, RowSpec, Task
from emu_jax.training.state import averaged, init_state
from emu_jax.training.step import ema_update, make_step

RATE = 0.1


class Quadratic(Task):
    """Two groups: ``a`` goes to the mean of the rows, ``b`` to the value ``a`` has just taken."""

    streams = {"train": RowSpec()}  # noqa: RUF012

    def __init__(self, **second):
        sgd = optax.sgd(RATE)
        groups = {
            "first": Group("a", sgd, lambda n: RATE, ema_decay=0.5),
            "second": Group("b", sgd, lambda n: RATE, **second),
        }
        super().__init__(groups=groups, frozen={})

    def init(self, key):
        return {"a": jnp.zeros(3), "b": jnp.zeros(3)}, {"seen": jnp.zeros(())}

    def loss(self, group, context):
        params, state = context.params, context.state
        if group == "first":
            x = context.batch["train"]["x"]
            loss = 0.5 * jnp.mean(jnp.sum((params["a"] - x) ** 2, axis=-1))
            noise = jax.random.normal(context.key, ())
            return Loss(loss, {"seen": state["seen"] + x.shape[0]}, {"noise": noise})
        target = jax.lax.stop_gradient(params["a"])
        return Loss(0.5 * jnp.sum((params["b"] - target) ** 2), state)


def rows(n=8, value=None):
    x = np.random.default_rng(n).normal(size=(n, 3)).astype(np.float32)
    return {"train": {"x": jnp.asarray(x if value is None else np.full_like(x, value))}}


def run(task, batches, accumulate=1, state=None):
    step = jax.jit(make_step(task, seed=3, accumulate=accumulate))
    state = state or init_state(task, jax.random.key(0))
    history = []
    for batch in batches:
        state, metrics = step(state, {}, batch)
        history.append(jax.device_get(metrics))
    return state, history


def test_update_is_gradient_descent_and_the_second_group_sees_it():
    batch = rows()
    state, history = run(Quadratic(), [batch])
    mean = np.mean(batch["train"]["x"], axis=0)
    np.testing.assert_allclose(state["params"]["a"], RATE * mean, rtol=1e-6)
    np.testing.assert_allclose(state["params"]["b"], RATE * RATE * mean, rtol=1e-6)
    np.testing.assert_allclose(history[0]["first/grad_norm"], np.linalg.norm(mean), rtol=1e-6)


def test_ema_moves_and_follows_its_recurrence():
    batches = [rows(4), rows(5), rows(6)]
    task = Quadratic()
    expected, trail = np.zeros(3), []
    state = None
    for n, batch in enumerate(batches, 1):
        state, _ = run(task, [batch], state=state)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * np.asarray(state["params"]["a"])
        trail.append(expected)
    np.testing.assert_allclose(state["ema"]["a"], expected, rtol=1e-6)
    assert not np.allclose(trail[0], trail[-1])
    assert averaged(state)["a"] is state["ema"]["a"]
    assert averaged(state)["b"] is state["params"]["b"]


def test_ema_warm_up_lets_a_short_run_arrive():
    """At a plain 0.9999, 300 steps would leave the average where it began."""
    ema = {"w": jnp.zeros(())}
    for n in range(300):
        ema = ema_update(ema, {"w": jnp.ones(())}, jnp.int32(n), 0.9999)
    assert 0.9 < float(ema["w"]) <= 1.0


def test_accumulated_gradients_equal_the_whole_batch():
    batch = rows(8)
    whole, _ = run(Quadratic(), [batch])
    split, _ = run(Quadratic(), [batch], accumulate=4)
    np.testing.assert_allclose(split["params"]["a"], whole["params"]["a"], rtol=1e-6)
    assert float(split["state"]["seen"]) == 8.0


def test_a_resumed_run_draws_the_same_numbers():
    batches = [rows(4), rows(5), rows(6), rows(7)]
    unbroken, history = run(Quadratic(), batches)
    half, _ = run(Quadratic(), batches[:2])
    resumed, rest = run(Quadratic(), batches[2:], state=jax.device_get(half))
    assert len({float(m["first/noise"]) for m in history}) == 4
    for a, b in zip(jax.tree.leaves(unbroken), jax.tree.leaves(resumed), strict=True):
        assert np.array_equal(a, b)
    assert [m["first/noise"] for m in rest] == [m["first/noise"] for m in history[2:]]


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(poison):
    task = Quadratic()
    before, _ = run(task, [rows(4)])
    after, history = run(task, [rows(4, poison), rows(4, poison)], state=before)
    for name in ("params", "ema", "opt", "state"):
        for a, b in zip(jax.tree.leaves(before[name]), jax.tree.leaves(after[name]), strict=True):
            assert np.array_equal(a, b)
    assert int(after["step"]) == 3 and int(after["skipped"]) == 2
    assert [int(m["skipped_in_row"]) for m in history] == [1, 2]
    healed, history = run(task, [rows(4)], state=after)
    assert int(history[0]["skipped_in_row"]) == 0 and int(healed["skipped"]) == 2
    assert not np.array_equal(healed["params"]["a"], before["params"]["a"])


def test_groups_start_late_and_pause():
    task = Quadratic(first_step=2, every=2)
    state, history = run(task, [rows(4)] * 2)
    assert np.array_equal(state["params"]["b"], np.zeros(3))
    assert np.isnan(history[0]["second/loss"])
    state, _ = run(task, [rows(4)], state=state)
    moved = np.asarray(state["params"]["b"])
    assert np.all(moved != 0)
    state, _ = run(task, [rows(4)], state=state)
    assert np.array_equal(state["params"]["b"], moved)


def test_a_pattern_without_parameters_is_refused():
    group = Group("decoder/", optax.sgd(RATE), lambda n: RATE)
    with pytest.raises(UserError, match="decoder/"):
        group.paths({"a": 0})
