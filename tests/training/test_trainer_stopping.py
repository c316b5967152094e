"""Whole runs in this process that are stopped by what is held out."""

import os
import signal

import jax.numpy as jnp
import numpy as np
import pytest
from toys import Mean, expected, lines, saved, stream, trainer, value

from emu_jax.checkpoint.export import load_model
from emu_jax.checkpoint.manager import Checkpoints
from emu_jax.errors import UserError
from emu_jax.training.state import averaged
from emu_jax.training.stopping import EarlyStopping


class Overfitting(Mean):
    """``a`` follows the rows, which drift past what is held out: the loss there is least inside."""

    def validate(self, context):
        rows = context.batch["train"]
        valid = rows["valid"].astype(jnp.float32)
        square = (rows["x"] - context.params["a"]) ** 2
        return {"loss": (jnp.sum(square * valid), jnp.sum(valid))}


METRIC = "held_out/loss"
BEST, STOPPED = 10, 16  # steps; see the first test


def stopping(workdir, **changes):
    """A run validated every other step that would go on to step 40."""
    settings = dict(steps=40, validate_every=2, keep_last=2, stop=EarlyStopping(METRIC))
    return trainer(workdir, task=Overfitting(), **{**settings, **changes})


def held_out_loss(step):
    return np.mean([(x - expected(step)[1]) ** 2 for x in (1.0, 2.0, 6.0)])


def test_a_run_stops_when_what_is_held_out_gets_worse_and_the_best_step_is_the_model(tmp_path):
    losses = {step: held_out_loss(step) for step in range(2, 41, 2)}
    assert min(losses, key=losses.__getitem__) == BEST, "the closed form's optimum"
    ended = stopping(tmp_path).run()
    reason = (
        f"{METRIC} was best at step 10 ({losses[10]:.4g}) and has not improved in 3 validations"
    )
    assert ended == f"stopped: {reason}"
    steps, _, record = saved(tmp_path)
    assert steps == [BEST, STOPPED - 2, STOPPED], "the best, the last"
    value = record["chosen"].pop("value")
    assert record["chosen"] == {"step": BEST, "metric": METRIC, "reason": reason}
    np.testing.assert_allclose(value, losses[10], rtol=1e-5)
    assert record["ended"] == ended

    for path, step in (("", 10), ("@best", 10), ("@10", 10), ("@14", 14), ("@last", 16)):
        model = load_model(f"{tmp_path}{path}")
        average = expected(step)[1]
        assert model.meta["step"] == step
        np.testing.assert_allclose(model.params["a"], average, rtol=1e-6)
        if step != 14:  # The chosen step is finished as the last one is.
            np.testing.assert_allclose(model.params["measured"], value_of_finish(step), rtol=1e-6)
    assert load_model(str(tmp_path)).meta["chosen"] == {**record["chosen"], "value": value}
    assert load_model(f"{tmp_path}@last").meta["chosen"]["step"] == BEST

    def untouched(first):
        raise AssertionError("a stopped run asks for no more data")

    assert stopping(tmp_path, data=untouched).run() == ended


def value_of_finish(step):
    return value(0) + expected(step)[1]


def test_a_run_that_ends_before_the_criterion_chooses_too(tmp_path):
    assert stopping(tmp_path, steps=14).run() == "done"
    record = saved(tmp_path)[2]
    assert record["chosen"]["reason"] == f"{METRIC} was best at step 10 ({held_out_loss(10):.4g})"
    assert load_model(str(tmp_path)).meta["step"] == 10


def test_without_a_criterion_the_newest_is_the_model(tmp_path):
    stopping(tmp_path, steps=16, stop=None, checkpoint_every=6).run()
    assert "chosen" not in saved(tmp_path)[2]
    assert (
        load_model(str(tmp_path)).meta["step"] == load_model(f"{tmp_path}@last").meta["step"] == 16
    )
    with pytest.raises(UserError, match=r"has chosen no best step.*@last"):
        load_model(f"{tmp_path}@best")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("unbroken")
    stopping(workdir).run()
    return workdir


def assert_same_run(broken, whole):
    (steps, ours, record), (their_steps, theirs, their_record) = saved(broken), saved(whole)
    assert record == their_record
    assert (steps[0], steps[-1]) == (their_steps[0], their_steps[-1]) == (BEST, STOPPED)
    assert load_model(str(broken)).fingerprint == load_model(str(whole)).fingerprint
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    untimed = [[{**line, "time": 0} for line in lines(folder)] for folder in (broken, whole)]
    assert untimed[0] == untimed[1]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("kills", [(2,), (10, 12), (14, 16, 16)])
def test_a_run_killed_between_a_validation_and_its_checkpoint_chooses_the_same(
    kills, unbroken, tmp_path, monkeypatch
):
    save = Checkpoints.save
    for kill in kills:

        def die(self, step, *arguments, kill=kill):
            if step == kill:
                raise Killed
            return save(self, step, *arguments)

        monkeypatch.setattr(Checkpoints, "save", die)
        with pytest.raises(Killed):
            stopping(tmp_path).run()
        assert lines(tmp_path)[-1]["step"] == kill and METRIC in lines(tmp_path)[-1]
    monkeypatch.setattr(Checkpoints, "save", save)
    assert stopping(tmp_path).run().startswith("stopped")
    assert_same_run(tmp_path, unbroken)


@pytest.mark.parametrize("batches", [(8, 14), (9, 13)])
def test_a_terminated_run_goes_on_from_its_newest_step_and_chooses_the_same(
    batches, unbroken, tmp_path
):
    """Terminated in steps that are validated (10, 14), and in others (9, 15)."""
    at = iter(batches)
    due = next(at)

    def terminate(n):
        nonlocal due
        if n == due:
            due = next(at, None)
            os.kill(os.getpid(), signal.SIGTERM)

    firsts = []

    def data(first):
        firsts.append(first)
        return stream(first, at=terminate)

    ended = [stopping(tmp_path, data=data).run() for _ in range(3)]
    assert ended[:2] == ["interrupted"] * 2 and ended[2].startswith("stopped")
    # What is finished reads from the first batch on; training, from where it was.
    assert [first for first in firsts if first] == [batch + 1 for batch in batches]
    assert_same_run(tmp_path, unbroken)


def test_a_longer_run_goes_on_from_the_newest_not_from_the_chosen(tmp_path):
    assert stopping(tmp_path, steps=14).run() == "done"
    assert load_model(str(tmp_path)).meta["step"] == BEST
    firsts = []

    def data(first):
        firsts.append(first)
        return stream(first)

    assert stopping(tmp_path, data=data).run().startswith("stopped")
    assert firsts[0] == 14
    _, arrays, record = saved(tmp_path)
    assert record["step"] == STOPPED and record["chosen"]["step"] == BEST
    np.testing.assert_allclose(arrays["params/a"], expected(STOPPED)[0], rtol=1e-6)


def test_a_criterion_that_is_new_to_a_run_chooses_among_what_exists(tmp_path):
    """What the criterion before kept, and what was saved last, is all that there is to choose."""
    farther = [lambda step, state: {"x": -abs(step - 6)}]
    settings = dict(measures=farther, keep_last=1)
    first = EarlyStopping("x", "max", patience=9)
    assert stopping(tmp_path, steps=8, stop=first, **settings).run() == "done"
    assert saved(tmp_path)[0] == [6, 8]
    again = EarlyStopping("x", "min", patience=9)
    assert stopping(tmp_path, steps=10, stop=again, **settings).run() == "done"
    steps, _, record = saved(tmp_path)
    assert [step for step, _ in record["validations"]["values"]] == [6, 8, 10]
    assert steps == [10] and record["chosen"]["step"] == 10
    third = EarlyStopping(METRIC, patience=9)
    assert stopping(tmp_path, steps=14, stop=third, **settings).run() == "done"
    steps, _, record = saved(tmp_path)
    assert [step for step, _ in record["validations"]["values"]] == [10, 12, 14]
    assert steps == [10, 14] and record["chosen"]["step"] == 10


def test_measures_join_the_validation_and_can_be_stopped_on(tmp_path):
    def nearness(step, state):
        return {"kept/nearness": -jnp.abs(averaged(state)["a"] - 3.0), "kept/step": step}

    criterion = EarlyStopping("kept/nearness", "max", patience=2)
    ended = trainer(tmp_path, steps=40, validate_every=2, measures=[nearness], stop=criterion).run()
    near = {step: -abs(expected(step)[1] - 3.0) for step in range(2, 41, 2)}
    best = max(near, key=near.__getitem__)
    assert ended.startswith(f"stopped: kept/nearness was best at step {best} ")
    logged = {ln["step"]: ln for ln in lines(tmp_path) if "kept/nearness" in ln}
    assert list(logged) == list(range(2, best + 5, 2))
    for step, line in logged.items():
        np.testing.assert_allclose(line["kept/nearness"], near[step], rtol=1e-5, atol=1e-6)
        assert line["kept/step"] == step and "held_out/gap" in line
    assert load_model(str(tmp_path)).meta["step"] == best


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(best_metric="held_out/gap"), "'held_out/loss', but train.best_metric is 'held_out/g"),
        (dict(validate_every=0), "validate_every is 0, so held_out/loss would never be measured"),
        (dict(stop=None, keep_best=2), "keep_best is 2, but train.best_metric is empty"),
        (dict(stop=None, keep_best=2, best_metric="x", validate_every=0), "x would never be"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, words, tmp_path):
    with pytest.raises(UserError, match=words) as error:
        stopping(tmp_path, **settings)
    assert "\n" not in str(error.value)


def test_the_best_metric_may_be_named_twice_and_more_of_them_kept(tmp_path):
    stopping(tmp_path, best_metric=METRIC, keep_best=2, keep_last=1).run()
    losses = {step: held_out_loss(step) for step in range(2, STOPPED + 1, 2)}
    best = sorted(losses, key=losses.__getitem__)[:2]
    assert saved(tmp_path)[0] == sorted({*best, STOPPED})


def test_a_criterion_that_is_not_measured_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"'held_out/lost'.*metrics are held_out/loss\."):
        stopping(tmp_path, stop=EarlyStopping("held_out/lost")).run()
