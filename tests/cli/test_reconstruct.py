"""``emu-jax reconstruct``: an autoencoder's run and its export, measured on held-out pictures."""

import json

import numpy as np
import pytest

from emu_jax.checkpoint.export import load_model
from emu_jax.cli.main import main
from emu_jax.data.source import open_source


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


def test_a_parser_reads_scenes_before_and_after(
    autoencoder_run, parser_run, scenes, tmp_path, capsys
):
    chosen = "scenes/openmoji_tiny:kind != single"
    sets = [f"--pictures={chosen}", f"--data_dir={scenes}", f"--parser={parser_run}"]
    command = ["reconstruct", str(autoencoder_run), "--judge=", *sets, f"--out={tmp_path}"]
    assert main([*command, "--image_size=20"]) == 2
    assert "divides images by 8, and these have 20 pixels" in capsys.readouterr().err
    assert main([*command, "--image_size=24"]) == 0
    record = json.loads((tmp_path / "reconstruct.json").read_text())
    assert record[str(autoencoder_run)]["latents"] == [3, 3, 16]  # trained on 16 x 16 pixels
    record = record["contents"]
    manifest = open_source("scenes/openmoji_tiny", scenes).manifest
    rows = manifest.select("kind != single")
    read = [i for i, row in enumerate(rows) if manifest.column("kind")[row] != "person"]
    assert len(read) == len(rows) - 3  # without the persons
    for name in ("originals", str(autoencoder_run)):
        images = record["images"][name]
        assert [one["image"] for one in images] == read
        counts = [
            len(one["seen"]) == manifest.column("count")[rows[one["image"]]] for one in images
        ]
        assert [one["count"] for one in images] == counts
        assert record["figures"][name]["all"]["count"]["value"] == pytest.approx(np.mean(counts))
    page = (tmp_path / "index.html").read_text()
    assert "Contents" in page and "3 prompts name no things" in page
    first, second = (tmp_path / "figures.md").read_text().split("\n\n")
    assert [line.split(" | ")[0] for line in second.splitlines()[2:]] == [
        "| originals",
        f"| {autoencoder_run.name}",
    ]
    assert "right: action" in second and len(first.splitlines()) == 3


def test_a_parser_needs_images_whose_contents_are_known(
    autoencoder_run, parser_run, pictures, tmp_path, capsys
):
    arguments = ["--judge=", f"--data_dir={pictures}", f"--out={tmp_path}"]
    command = ["reconstruct", str(autoencoder_run), "--pictures=folder/tiny", *arguments]
    assert main([*command, f"--parser={parser_run}"]) == 2
    assert "the images have no columns kind and things" in capsys.readouterr().err
    assert main([*command, f"--parser={autoencoder_run}"]) == 2
    assert "is not a parser: its task is 'autoencoding'" in capsys.readouterr().err
