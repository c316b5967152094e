"""Groups within one step: when each is updated, what a later one reads of an earlier one, streams
of several batch sizes. The numbers are closed forms.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from emu_jax.tasks.base import Group, Loss, RowSpec, Task
from emu_jax.training.state import init_state
from emu_jax.training.step import make_step

RATE = 0.5


def group(path, **changes):
    return Group(path, optax.sgd(RATE), lambda n: RATE * n, **changes)


class Pair(Task):
    """``teacher`` goes to the mean of ``train``; ``student`` goes to a value that ``read`` takes
    from the context.
    """

    streams = {"train": RowSpec(), "reference": RowSpec()}  # noqa: RUF012

    def __init__(self, read, **groups):
        plain = {"teacher": group("teacher", ema_decay=0.9), "student": group("student")}
        super().__init__(groups=groups or plain, frozen={})
        vars(self)["read"] = read

    def init(self, key):
        return {"teacher": jnp.zeros(()), "student": jnp.zeros(())}, {}

    def loss(self, group, context):
        if group == "teacher":
            x = context.batch["train"]["x"]
            handed = {"mean": jnp.mean(x) + 0.0 * context.params["teacher"]}
            return Loss(0.5 * jnp.mean((context.params["teacher"] - x) ** 2), {}, {}, handed)
        target = self.read(context)
        return Loss(0.5 * jnp.mean((context.params["student"] - target) ** 2), {})


BATCH = {
    "train": {"x": jnp.arange(8.0)},  # mean 3.5
    "reference": {"y": jnp.array([10.0, 20.0])},  # another batch size
}


def run(task, steps=1, accumulate=1, batch=BATCH):
    step = jax.jit(make_step(task, seed=0, accumulate=accumulate))
    state, history = init_state(task, jax.random.key(0)), []
    for _ in range(steps):
        state, metrics = step(state, {}, batch)
        history.append({name: float(value) for name, value in metrics.items()})
    return state, history


def test_a_group_hands_values_to_the_next_and_they_are_no_state():
    state, history = run(Pair(lambda c: c.handed["teacher"]["mean"]))
    assert float(state["params"]["student"]) == RATE * 3.5
    assert "mean" not in str(jax.tree.structure(state)) and "teacher/mean" not in history[0]


def test_handed_values_belong_to_their_micro_batch():
    """Row r is in micro-batch r mod 2: the teacher's means are 3 and 4, the student's targets 10
    times 3 and 20 times 4.
    """
    read = lambda c: c.handed["teacher"]["mean"] * c.batch["reference"]["y"]  # noqa: E731
    state, _ = run(Pair(read), accumulate=2)
    assert float(state["params"]["student"]) == RATE * (10 * 3 + 20 * 4) / 2


def test_an_idle_group_hands_on_zeros():
    groups = {"teacher": group("teacher", first_step=1), "student": group("student")}
    state, history = run(Pair(lambda c: c.handed["teacher"]["mean"] + 1, **groups))
    assert float(state["params"]["student"]) == RATE * 1.0
    assert np.isnan(history[0]["teacher/loss"])


def test_a_loss_reads_the_averages_that_the_step_has_so_far():
    """After one update the teacher is 1.75 and its average moved by 1 - 2/11 of that."""
    state, _ = run(Pair(lambda c: c.averaged()["teacher"]))
    average = 1.75 * (1 - 2 / 11)
    np.testing.assert_allclose(state["ema"]["teacher"], average, rtol=1e-6)
    np.testing.assert_allclose(state["params"]["student"], RATE * average, rtol=1e-6)


def test_groups_are_updated_in_the_order_given():
    read = lambda c: c.params["teacher"]  # noqa: E731
    later = {"z": group("teacher"), "a": group("student")}

    class Renamed(Pair):
        def loss(self, group, context):
            return super().loss({"z": "teacher", "a": "student"}[group], context)

    assert float(run(Renamed(read, **later))[0]["params"]["student"]) == RATE * 1.75
    first = dict(reversed(later.items()))
    assert float(run(Renamed(read, **first))[0]["params"]["student"]) == 0.0


@pytest.mark.parametrize(
    ("first_step", "every", "phase", "steps"),
    [(0, 1, 0, [0, 1, 2, 3, 4, 5, 6]), (0, 3, 0, [0, 3, 6]), (0, 3, 1, [1, 4]), (3, 3, 2, [5])],
)
def test_a_group_is_updated_in_its_phase(first_step, every, phase, steps):
    groups = {
        "teacher": group("teacher", first_step=first_step, every=every, phase=phase, ema_decay=0.9),
        "student": group("student"),
    }
    state, history = run(Pair(lambda c: 0.0, **groups), steps=7)
    active = [n for n, metrics in enumerate(history) if np.isfinite(metrics["teacher/loss"])]
    assert active == steps
    # Learning rate and average count the group's own updates.
    rates = [history[n]["teacher/learning_rate"] for n in active]
    assert rates == [RATE * i for i in range(len(active))]
    value = average = 0.0
    for n in range(1, len(active) + 1):
        value += RATE * (3.5 - value)
        average += (1 - min(0.9, (1 + n) / (10 + n))) * (value - average)
    np.testing.assert_allclose(state["ema"]["teacher"], average, rtol=1e-6)
