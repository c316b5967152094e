"""Whole runs in this process of a task whose every number is known in closed form."""

import json
import os
import signal
from dataclasses import replace

import jax
import numpy as np
import pytest
from toys import FROZEN, RATE, expected, lines, saved, stream, trainer, value

from emu_jax.errors import UserError
from emu_jax.training.trackers import tile
from emu_jax.training.trainer import Preview


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


def test_a_run_says_what_it_compiles_and_from_which_step_it_resumes(tmp_path, capsys):
    trainer(tmp_path, steps=2, validate_every=1).run()
    said = [line.partition(" in ")[0] for line in capsys.readouterr().err.splitlines()]
    assert said[:2] == ["compiling the training step", "compiled the training step"]
    assert said.count("compiling the validation") == said.count("compiled the validation") == 1
    assert any(line.startswith("step 1/2: loss ") for line in said)
    assert any(line.startswith("step 2/2: ") and line.endswith("0:00 left") for line in said)
    trainer(tmp_path, steps=4).run()
    assert capsys.readouterr().err.startswith(
        "resumed from step 2 of 4\ncompiling the training step\n"
    )


def test_a_run_that_another_compiler_resumes_says_so(tmp_path, capsys):
    def run(steps, jaxlib):
        one = trainer(tmp_path, steps=steps)
        replace(one, meta={**one.meta, "compiler": {"jaxlib": jaxlib}}).run()
        return capsys.readouterr().err

    run(2, "0.10.1")
    assert "round differently" not in run(3, "0.10.1")
    said = "the results may round differently from here on: jaxlib was '0.10.1' and is '0.10.2'"
    assert said in run(4, "0.10.2")


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


def test_a_record_that_does_not_say_how_the_run_ended_is_refused(tmp_path):
    trainer(tmp_path, steps=2).run()
    for record in tmp_path.glob("checkpoints/*/meta/metadata"):
        meta = json.loads(record.read_text())
        del meta["ended"]
        record.write_text(json.dumps(meta))
    with pytest.raises(UserError, match=r"checkpoint of step 2 in .* has no entry 'ended'"):
        trainer(tmp_path, steps=4).run()


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


def test_previews_show_what_they_are_given_with_captions_and_without_padding(tmp_path):
    shown = []

    def draw(images, captions):
        shown.append((len(images), captions))
        return tile(images)

    run = trainer(tmp_path, preview_every=8)
    run.draw = draw
    batch = {"train": {"x": np.ones(8, np.float32)}}
    run.previews = {"prompts": Preview(lambda: (b for b in [batch]), lambda: ["a fox", "a cat"])}
    run.run()
    assert shown == [(2, ["a fox", "a cat"])]
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["prompts_shade_00000008.png"]


def test_previews_without_validation_sets_show_training_images(tmp_path):
    run = trainer(tmp_path, preview_every=8, validate_every=0)
    run.validation = {}
    run.run()
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["train_shade_00000008.png"]
