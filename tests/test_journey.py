"""A user's own folder of images is enough for everything: no emoji set, no other model."""

import json
import shutil

import numpy as np
import pytest
import runs
from PIL import Image, ImageDraw

import emu_jax
from emu_jax.cli.main import main
from emu_jax.data.source import open_source

COLORS = ("red", "green", "blue", "orange", "purple", "gray")
SUFFIXES = ("png", "jpg", "webp", "gif")
MODES = ("RGB", "RGBA", "L", "P")
PROMPTS = ("a red fox", "рыжая лиса")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sixty images of several formats, modes and sizes, each with a caption of its own."""
    folder = tmp_path_factory.mktemp("mine")
    for i in range(60):
        image = Image.new("RGB", (24 + i % 5 * 8, 24 + i % 3 * 16), "white")
        ImageDraw.Draw(image).ellipse([4, 4, 20, 20], fill=COLORS[i % 6])
        suffix = SUFFIXES[i % 4]
        image = image.convert(MODES[i % 3] if suffix in ("png", "webp") else "RGB")
        image.save(folder / f"{i:02d}.{suffix}")
        (folder / f"{i:02d}.txt").write_text(f"number {i}, a {COLORS[i % 6]} disc\n")
    (folder / "damaged.png").write_bytes((folder / "00.png").read_bytes()[:60])
    return folder


def test_a_folder_of_images_is_enough(folder, pictures, autoencoder_run, tmp_path, capsys):
    # Build.
    data_dir = tmp_path / "data"
    place = f"--data_dir={data_dir}"
    assert main(["data", "build", "folder/mine", f"--path={folder}", place]) == 0
    (data_dir / "text_encoder").symlink_to(pictures / "text_encoder")
    manifest = open_source("folder/mine", data_dir).manifest
    assert len(manifest) == 60 and "1 files cannot be read" in capsys.readouterr().err
    captions = [own[0] for own in manifest.column("captions")]
    held_out = {captions[i] for i in manifest.select("part == held_out")}
    assert 0 < len(held_out) < 15

    # Pre-train and tune. Previews show held-out captions, then prompts.
    more = (f"--config.codec.path={autoencoder_run}", "--config.train.steps=4")
    first, tuned = tmp_path / "first", tmp_path / "tuned"
    previews = ("--config.train.preview_every=4", "--config.sampling.previews=3")
    runs.train("latent_diffusion:data=folder/mine", first, data_dir, *more, *previews)
    runs.train(
        "latent_diffusion:data=folder/mine,stage=quality_tune",
        tuned,
        data_dir,
        *more,
        f"--config.init_from={first}",
        "--config.train.preview_every=4",
        f"--config.train.preview_prompts={PROMPTS}",
        "--config.data.cache_text=True",
        f"--config.data.cache_dir={tmp_path}/cache",
    )
    assert any("held_out/loss" in line for line in runs.lines(tuned / "metrics.jsonl"))
    assert [file.name for file in first.glob("images/*")] == ["held_out_samples_00000004.png"]
    assert [file.name for file in tuned.glob("images/*")] == ["prompts_samples_00000004.png"]
    (events,) = (first / "tensorboard").iterdir()
    shown = {text for text in captions if text.encode() in events.read_bytes()}
    assert len(shown) == 3 and shown <= held_out
    (events,) = (tuned / "tensorboard").iterdir()
    assert all(prompt.encode() in events.read_bytes() for prompt in PROMPTS)

    # Sample.
    settings = ["--steps=2", "--batch_size=2"]
    sample = ["sample", *PROMPTS, *settings, "--width=24", f"--checkpoint={tuned}"]
    assert main([*sample, f"--out={tmp_path}/drawn"]) == 0
    drawn = sorted((tmp_path / "drawn").glob("*_0_*.png"))
    assert {Image.open(file).text["prompt"] for file in drawn} == set(PROMPTS)

    # Evaluate and compare: prompts and loss are of the held-out images.
    settings += [f"--out={tmp_path}/report"]
    assert main(["evaluate", str(tuned), *settings, "--count=3"]) == 0
    record = json.loads((tmp_path / "report" / "evaluate.json").read_text())
    assert len(record["prompts"]) == 3 and set(record["prompts"]) <= held_out
    assert np.isfinite(record["models"][str(tuned)]["kept_loss"]) and "judge" not in record
    assert main(["compare", str(first), str(tuned), *settings]) == 0
    record = json.loads((tmp_path / "report" / "compare.json").read_text())
    assert set(record["prompts"]) == held_out and set(record["models"]) == {str(first), str(tuned)}

    # Export, and open elsewhere, where the data set is not.
    assert main(["export", str(tuned), f"--out={tmp_path}/model", "--dtype=float32"]) == 0
    moved = shutil.move(tmp_path / "model", tmp_path / "elsewhere")
    shutil.rmtree(data_dir / "folder")
    shutil.rmtree(tuned)
    generator = emu_jax.load(str(moved), steps=2, batch_size=2)
    images = generator.draw(PROMPTS, seeds=[0, 0], size=(16, 24))
    assert all(image.shape == (16, 24, 3) for image in images)
    before = [np.asarray(Image.open(file)) for file in drawn]
    assert {image.tobytes() for image in images} == {image.tobytes() for image in before}
