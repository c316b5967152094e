"""Judged samples in the middle of training, and a run that is stopped by them."""

import json

import pytest
import runs

from emu_jax.checkpoint.export import load_model
from emu_jax.cli.main import main


def lines_with(workdir, name):
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in found if name in line}


@pytest.fixture(scope="module")
def measured(pictures, autoencoder_run, judge_run, tmp_path_factory):
    """A run that is judged at steps 1, 2, ... and stops when its samples no longer improve."""
    workdir = tmp_path_factory.mktemp("measured") / "run"
    sets = [f"--config.measure.{name}=folder/tiny" for name in ("captions", "needles", "haystack")]
    runs.train(
        "latent_diffusion",
        workdir,
        pictures,
        *sets,
        f"--config.codec.path={autoencoder_run}",
        f"--config.measure.judge={judge_run}",
        "--config.measure.count=4",
        "--config.measure.metrics=('contrast',)",
        "--config.train.steps=8",
        "--config.train.validate_every=1",
        "--config.train.stop.metric=samples/faithful",
        "--config.train.stop.mode=max",
        "--config.train.stop.patience=2",
        "--config.train.stop.min_delta=0.9",  # nothing improves by so much
    )
    return workdir


def test_every_validation_has_judged_samples_and_the_run_stops_by_them(measured):
    faithful = lines_with(measured, "samples/faithful")
    assert list(faithful) == [1, 2, 3]
    assert all(value in (0, 0.25, 0.5, 0.75, 1) for value in faithful.values())
    best = max(faithful, key=faithful.get)
    assert load_model(str(measured)).meta["chosen"]["step"] == best


def test_the_figures_are_those_that_evaluate_gives(measured, judge_run, pictures, tmp_path):
    """And its report draws the chosen step into the curves and says why it was chosen."""
    sets = [f"--{name}=folder/tiny" for name in ("captions", "needles", "haystack", "kept")]
    model = f"{measured}@3"
    options = [f"--judge={judge_run}", f"--data_dir={pictures}", "--count=4", f"--out={tmp_path}"]
    assert main(["evaluate", model, *sets, *options]) == 0
    found = json.loads((tmp_path / "evaluate.json").read_text())["figures"][model]
    for name in ("faithful", "finish", "both", "contrast"):
        assert lines_with(measured, f"samples/{name}")[3] == pytest.approx(found[name]["value"])
    text = (tmp_path / "index.html").read_text()
    chosen = load_model(str(measured)).meta["chosen"]
    assert f"step {chosen['step']} was chosen; {chosen['reason']}." in text
    assert "samples/faithful" in text and text.count('class="mark"') >= 4
