"""Judged samples in the middle of training, and a run that is stopped by them."""

import json
import shutil

import pytest
import runs

from emu_jax.checkpoint.export import load_model
from emu_jax.cli.main import main


def lines_with(workdir, name):
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in found if name in line}


SCENES = "scenes/openmoji_tiny:kind != person"


@pytest.fixture(scope="module")
def data(pictures, scenes, tmp_path_factory):
    """A data_dir with both data sets."""
    folder = tmp_path_factory.mktemp("data")
    for name in (pictures / "folder", pictures / "text_encoder", scenes / "scenes"):
        shutil.copytree(name, folder / name.name)
    return folder


@pytest.fixture(scope="module")
def measured(data, autoencoder_run, judge_run, parser_run, tmp_path_factory):
    """A run that is judged and read at steps 1, 2, ..., two images of each prompt, and stops when
    its samples no longer improve.
    """
    workdir = tmp_path_factory.mktemp("measured") / "run"
    sets = [f"--config.measure.{name}=folder/tiny" for name in ("captions", "needles", "haystack")]
    runs.train(
        "latent_diffusion",
        workdir,
        data,
        *sets,
        f"--config.codec.path={autoencoder_run}",
        f"--config.measure.judge={judge_run}",
        f"--config.measure.parser={parser_run}",
        f"--config.measure.prompts={SCENES}",
        "--config.measure.count=4",
        "--config.measure.images_per_prompt=2",
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
    assert all(value % (1 / 8) == 0 for value in faithful.values())
    assert all(0 < x < 1 for x in lines_with(measured, "samples/variety").values())
    best = max(faithful, key=faithful.get)
    assert load_model(str(measured)).meta["chosen"]["step"] == best


def test_the_figures_are_those_that_evaluate_gives(measured, judge_run, parser_run, data, tmp_path):
    """And its report draws the chosen step into the curves and says why it was chosen."""
    sets = [f"--{name}=folder/tiny" for name in ("captions", "needles", "haystack", "kept")]
    model = f"{measured}@3"
    shared = [f"--data_dir={data}", "--count=4", "--images_per_prompt=2", f"--out={tmp_path}"]
    read = ["--judge=", f"--parser={parser_run}", f"--prompts={SCENES}", "--prompt_column=complex"]
    assert main(["evaluate", model, *shared, *read]) == 0
    record = json.loads((tmp_path / "evaluate.json").read_text())["contents"]
    for name, value in record["figures"][model]["all"].items():
        assert lines_with(measured, f"contents/{name}")[3] == pytest.approx(value["value"])
    assert main(["evaluate", model, f"--judge={judge_run}", *shared, *sets]) == 0
    found = json.loads((tmp_path / "evaluate.json").read_text())["figures"][model]
    for name in ("faithful", "finish", "both", "copied", "contrast"):
        assert lines_with(measured, f"samples/{name}")[3] == pytest.approx(found[name]["value"])
    text = (tmp_path / "index.html").read_text()
    chosen = load_model(str(measured)).meta["chosen"]
    assert f"step {chosen['step']} was chosen; {chosen['reason']}." in text
    assert "samples/faithful" in text and text.count('class="mark"') >= 4
