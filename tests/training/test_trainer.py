"""Whole runs in this process of a task whose every number is known in closed form."""

import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh

from emu_jax.checkpoint.export import load_model
from emu_jax.checkpoint.manager import Checkpoints
from emu_jax.errors import UserError
from emu_jax.parallel.mesh import AXES
from emu_jax.tasks.base import Group
from emu_jax.training.state import averaged
from emu_jax.training.stopping import EarlyStopping
from emu_jax.training.trainer import Trainer, TrainSettings

RATE, DECAY = 0.5, 0.5
FROZEN = {"text": {"source": "weights/text", "fingerprint": "abc"}}


class Mean:
    """``a`` follows the rows' mean: a += RATE (mean - a). Validation measures valid rows' x - a."""

    def __init__(self):
        self.frozen = {}
        self.groups = {"mean": Group("a", optax.sgd(RATE), lambda n: RATE, ema_decay=DECAY)}

    def init(self, key):
        return {"a": jnp.zeros(())}, {"measured": jnp.zeros(())}

    def loss(self, group, params, frozen, state, batch, key, step):
        x = batch["train"]["x"]
        return 0.5 * jnp.mean((params["a"] - x) ** 2), (state, {})

    def validate(self, params, frozen, state, batch, key):
        (rows,) = batch.values()
        valid = rows["valid"].astype(jnp.float32)
        return {"gap": (jnp.sum((rows["x"] - params["a"]) * valid), jnp.sum(valid))}

    def preview(self, params, frozen, state, batch, key):
        (rows,) = batch.values()
        shade = jnp.round(params["a"] * 100).astype(jnp.uint8)
        return {"shade": jnp.broadcast_to(shade, (len(rows["x"]), 4, 4, 3))}

    def finish(self, params, frozen, state, batches):
        first = next(iter(batches))
        return {"measured": jnp.mean(first["train"]["x"]) + params["a"]}


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
        yield {"held_out": {"x": np.array(x, np.float32), "valid": np.array(valid)}}


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


def test_a_run_to_the_end_leaves_metrics_pictures_and_checkpoints(tmp_path):
    run = trainer(tmp_path, preview_every=4, checkpoint_every=3, keep_last=2)
    assert run.run() == "done"
    steps, arrays, record = saved(tmp_path)
    a, average = expected(8)
    assert steps == [6, 8] and int(arrays["step"]) == 8
    np.testing.assert_allclose(arrays["params/a"], a, rtol=1e-6)
    np.testing.assert_allclose(arrays["ema/a"], average, rtol=1e-6)
    # Finishing sees the run's first batch, and the averaged parameters.
    np.testing.assert_allclose(arrays["state/measured"], value(0) + average, rtol=1e-6)
    assert record["ended"] == "done" and record["config"] == {"task": "mean"}
    assert record["frozen"] == FROZEN and record["seed"] == 0

    found = lines(tmp_path)
    assert [line["step"] for line in found] == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8]
    losses = [line["mean/loss"] for line in found if "mean/loss" in line]
    gaps = [value(n) - expected(n)[0] for n in range(8)]
    np.testing.assert_allclose(losses, [gap**2 / 2 for gap in gaps], rtol=1e-5)
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == [
        "held_out_shade_00000004.png",
        "held_out_shade_00000008.png",
    ]
    assert run.run() == "done", "a finished run says so and does no more"
    assert lines(tmp_path) == found


def test_validation_is_the_mean_over_all_valid_rows_with_averaged_weights(tmp_path):
    """Not the mean of the batches' means (3.75 - a), nor that of the last parameters."""
    trainer(tmp_path).run()
    found = {line["step"]: line for line in lines(tmp_path) if "held_out/gap" in line}
    assert found.keys() == {4, 8}
    for step, line in found.items():
        a, average = expected(step)
        np.testing.assert_allclose(line["held_out/gap"], (1 + 2 + 6) / 3 - average, rtol=1e-5)
        assert abs(a - average) > 0.1
    record = saved(tmp_path)[2]
    assert record["metrics"] == {"held_out/gap": found[8]["held_out/gap"]}


def test_a_criterion_ends_the_run_for_good(tmp_path):
    asked = []

    def stop(step, metrics):
        asked.append((step, *metrics))
        return "the gap has closed" if step == 4 else None

    ended = "stopped: the gap has closed"
    assert trainer(tmp_path, criteria=[lambda *_: None, stop], validate_every=2).run() == ended
    assert asked == [(2, "held_out/gap"), (4, "held_out/gap")]
    steps, arrays, record = saved(tmp_path)
    assert steps == [4] and record["ended"] == ended
    np.testing.assert_allclose(arrays["state/measured"], value(0) + expected(4)[1], rtol=1e-6)

    def untouched(first):
        raise AssertionError("a stopped run asks for no more data")

    assert trainer(tmp_path, data=untouched, steps=100).run() == ended
    assert len(asked) == 2 and saved(tmp_path)[0] == [4]


def nan_at(*steps):
    return lambda n: np.nan if n in steps else value(n)


@pytest.mark.parametrize("log_every", [1, 3])
def test_an_isolated_step_that_is_not_finite_is_skipped_and_counted(tmp_path, log_every):
    values = nan_at(2, 5)  # The third and the sixth step: both logged ones.
    data = lambda first: stream(first, values)  # noqa: E731
    assert trainer(tmp_path, data=data, log_every=log_every, max_skipped_in_row=2).run() == "done"
    _, arrays, _ = saved(tmp_path)
    np.testing.assert_allclose(arrays["params/a"], expected(8, values)[0], rtol=1e-6)
    assert int(arrays["skipped"]) == 2 and int(arrays["skipped_in_row"]) == 0
    counted = {line["step"]: line["skipped"] for line in lines(tmp_path) if "skipped" in line}
    assert counted[3] == 1 and counted[6] == 2 and counted[8] == 2


def test_too_many_such_steps_in_a_row_end_the_run_naming_step_and_records(tmp_path):
    data = lambda first: stream(first, nan_at(1, 4, 5, 6))  # noqa: E731
    run = trainer(tmp_path, data=data, max_skipped_in_row=3, checkpoint_every=2, log_every=50)
    with pytest.raises(UserError, match=r"3 steps in a row, up to step 7 .*60, 61, 62, 63.*"):
        run.run()
    steps, arrays, record = saved(tmp_path)
    assert max(steps) < 7 and record["ended"] == "running"
    assert np.isfinite(arrays["params/a"])


def test_other_frozen_networks_are_refused(tmp_path):
    trainer(tmp_path, steps=2).run()
    other = {"text": {"source": "weights/other", "fingerprint": "xyz"}}
    with pytest.raises(UserError, match=r"another text \(weights/text\)"):
        trainer(tmp_path, steps=4, frozen=other).run()
    assert trainer(tmp_path, steps=4).run() == "done"
    assert int(saved(tmp_path)[1]["step"]) == 4


def test_a_terminated_run_saves_where_it_is_and_goes_on_from_there(tmp_path):
    before = signal.getsignal(signal.SIGTERM)

    def at(n):
        if n == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    broken, whole = tmp_path / "broken", tmp_path / "whole"
    assert trainer(broken, data=lambda first: stream(first, at=at)).run() == "interrupted"
    assert signal.getsignal(signal.SIGTERM) is before
    steps, arrays, record = saved(broken)
    assert steps == [5] and record["ended"] == "running" and record["metrics"] == {}
    np.testing.assert_allclose(arrays["params/a"], expected(5)[0], rtol=1e-6)
    assert lines(broken)[-1]["step"] == 5

    firsts = []

    def data(first):
        firsts.append(first)
        return stream(first)

    assert trainer(broken, data=data).run() == "done"
    assert firsts == [5, 0], "training goes on at its own batch; finishing begins at the first"
    assert trainer(whole).run() == "done"
    ours, theirs = saved(broken)[1], saved(whole)[1]
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    untimed = [[{**line, "time": 0} for line in lines(folder)] for folder in (broken, whole)]
    assert untimed[0] == untimed[1]


def test_the_best_checkpoint_is_kept_by_what_was_measured_at_its_own_step(tmp_path):
    """The gap is least at step 4; 5 is saved next, unmeasured, and must not pass for as good."""
    settings = dict(validate_every=4, checkpoint_every=1, keep_last=1, keep_best=1, steps=11)
    falling = lambda n: 6.0 if n < 4 else 0.0  # noqa: E731
    run = trainer(
        tmp_path, data=lambda first: stream(first, falling), best_metric="held_out/gap", **settings
    )
    assert run.run() == "done"
    gaps = {ln["step"]: ln["held_out/gap"] for ln in lines(tmp_path) if "held_out/gap" in ln}
    assert min(gaps, key=gaps.__getitem__) == 4 and gaps.keys() == {4, 8, 11}
    steps, _, record = saved(tmp_path, step=4)
    assert steps == [4, 11] and record["metrics"] == {"held_out/gap": gaps[4]}


def test_a_best_metric_that_is_not_measured_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"'held_out/gab'.*held_out/gap"):
        trainer(tmp_path, keep_best=1, best_metric="held_out/gab").run()


def test_given_parameters_are_where_the_run_begins(tmp_path):
    run = trainer(tmp_path, steps=1)
    run.initial = lambda: ({"a": np.float32(3.0)}, {"measured": np.float32(0.0)})
    run.run()
    _, arrays, _ = saved(tmp_path)
    a = 3 + RATE * (value(0) - 3)
    np.testing.assert_allclose(arrays["params/a"], a, rtol=1e-6)
    np.testing.assert_allclose(arrays["ema/a"], 3 + (1 - 2 / 11) * (a - 3), rtol=1e-6)


def test_profiling_ends_with_a_run_that_ends_before_it(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda path: calls.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    trainer(tmp_path, steps=4, profile_start=2, profile_steps=9).run()
    assert calls == ["start", "stop"]
    # Resumed behind the start of the trace: there is none to stop.
    trainer(tmp_path, steps=12, profile_start=2, profile_steps=9).run()
    assert calls == ["start", "stop"]


# Early stopping ----------------------------------------------------------------------------------


class Overfitting(Mean):
    """``a`` follows the rows, which drift past what is held out: the loss there is least inside."""

    def validate(self, params, frozen, state, batch, key):
        (rows,) = batch.values()
        valid = rows["valid"].astype(jnp.float32)
        return {"loss": (jnp.sum((rows["x"] - params["a"]) ** 2 * valid), jnp.sum(valid))}


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
        (dict(best_metric="held_out/gap"), "'held_out/loss' and train.best_metric 'held_out/gap'"),
        (dict(validate_every=0), "validate_every is 0, so held_out/loss would never be measured"),
        (dict(stop=None, keep_best=2), "keep_best needs train.best_metric"),
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
    with pytest.raises(UserError, match=r"'held_out/lost'.*there are held_out/loss\."):
        stopping(tmp_path, stop=EarlyStopping("held_out/lost")).run()
