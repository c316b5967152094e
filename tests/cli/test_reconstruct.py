"""``emu-jax reconstruct``: an autoencoder's run and its export, measured on held-out pictures."""

import json

import numpy as np
import pytest

from emu_jax.checkpoint.export import load_model
from emu_jax.cli.main import main


@pytest.fixture(scope="module")
def report(autoencoder_run, judge_run, pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reconstructed")
    model = folder / "model"
    assert main(["export", str(autoencoder_run), f"--out={model}", "--dtype=float32"]) == 0
    models = [str(autoencoder_run), f"{autoencoder_run}@2", str(model)]
    sets = ["--pictures=folder/tiny:height == 64", f"--data_dir={pictures}"]
    out = folder / "report"
    options = [f"--judge={judge_run}", "--batch_size=9", f"--out={out}"]
    assert main(["reconstruct", *models, *sets, *options]) == 0
    return models, out


def test_the_figures_are_those_of_validation(report, autoencoder_run):
    """The run's own log has the PSNR of all pictures, from [-1, 1] floats; here they are uint8."""
    (run, before, exported), out = report
    record = json.loads((out / "reconstruct.json").read_text())
    lines = [json.loads(line) for line in (autoencoder_run / "metrics.jsonl").open()]
    logged = {n["step"]: n["held_out/psnr"] for n in lines if "held_out/psnr" in n}
    assert record[run]["figures"]["psnr"]["value"] == pytest.approx(logged[4], abs=0.05)
    assert record[exported]["figures"] == record[run]["figures"]
    assert record[before]["step"] == 2 and record[before]["figures"] != record[run]["figures"]
    for one in record.values():
        assert one["latents"] == [2, 2, 16]
        assert -1 < one["figures"]["ssim"]["value"] < 1
        assert one["figures"]["frechet"]["value"] > 0
    size = sum(
        np.size(value)
        for path, value in load_model(run).params.items()
        if path.startswith("autoencoder/")
    )
    assert record[run]["parameters"] == size


def test_the_report_shows_the_pictures_side_by_side_and_the_table(report):
    models, out = report
    text = (out / "index.html").read_text()
    assert text.count("<img") == 24 * (1 + len(models))
    table = (out / "figures.md").read_text().splitlines()
    assert len(table) == 2 + len(models)
    assert all(line.count("|") == table[0].count("|") for line in table)


def test_only_autoencoders_are_taken(generator_run, pictures, tmp_path, capsys):
    arguments = ["--pictures=folder/tiny", f"--data_dir={pictures}", f"--out={tmp_path}"]
    assert main(["reconstruct", str(generator_run), "--judge=", *arguments]) == 2
    assert "is not an autoencoder" in capsys.readouterr().err
