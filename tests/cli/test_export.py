"""An exported model is the run's averaged weights, without what only training needs."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from emu_jax.checkpoint.export import load_model
from emu_jax.checkpoint.safetensors_io import read_shapes
from emu_jax.cli.main import main


@pytest.fixture(scope="module")
def exported(autoencoder_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "autoencoder"
    assert main(["export", str(autoencoder_run), f"--out={folder}"]) == 0
    return folder


def test_the_weights_are_the_averaged_ones_as_bf16(autoencoder_run, exported):
    run, model = load_model(str(autoencoder_run)), load_model(str(exported))
    assert model.params
    for path, value in model.params.items():
        np.testing.assert_array_equal(value, run.params[path].astype(value.dtype), path)
    assert {str(x.dtype) for x in read_shapes(str(exported)).values()} == {"bfloat16"}
    assert model.meta["step"] == 4
    # Where the data lay is left out.
    lost = {"data_dir", "cache_dir"}
    assert run.config["data"].keys() - model.config["data"].keys() == lost
    assert {k: v for k, v in run.config["data"].items() if k not in lost} == model.config["data"]
    assert run.config | {"data": None} == model.config | {"data": None}


def test_the_critic_goes_and_the_measured_latent_space_stays(autoencoder_run, exported):
    run, model = load_model(str(autoencoder_run)).params, load_model(str(exported)).params
    assert set(run) - set(model) == {path for path in run if path.startswith("discriminator/")}
    assert set(model) < set(run)
    assert np.all(model["latent/scale"].astype(np.float32) > 0)
    assert np.any(model["latent/shift"].astype(np.float32) != 0)


def test_an_earlier_step_and_full_precision_can_be_asked_for(autoencoder_run, tmp_path):
    arguments = ["export", f"{autoencoder_run}@2", f"--out={tmp_path}/m", "--dtype=float32"]
    assert main(arguments) == 0
    model = load_model(f"{tmp_path}/m")
    then = load_model(f"{autoencoder_run}@2").params
    assert model.meta["step"] == 2
    assert all(np.array_equal(value, then[path]) for path, value in model.params.items())


def test_a_model_whose_config_has_no_data_is_exported(exported, tmp_path):
    """Its weights need none."""
    folder = shutil.copytree(exported, tmp_path / "model")
    record = json.loads((folder / "config.json").read_text())
    record["config"]["data"] = None
    (folder / "config.json").write_text(json.dumps(record))
    assert main(["export", str(folder), f"--out={tmp_path}/again"]) == 0
    again = load_model(f"{tmp_path}/again")
    assert again.config == record["config"]
    assert again.fingerprint == load_model(str(folder)).fingerprint


def test_an_export_is_complete_and_can_be_moved(movable_run, tmp_path, capsys):
    """Its codec and text encoder are inside; without the encoder it says what it needs."""

    def drawn(model):
        out = tmp_path / f"drawn_{len(list(tmp_path.iterdir()))}"
        assert main(["sample", "a red disc", f"--checkpoint={model}", f"--out={out}"]) == 0
        (file,) = (file for file in out.glob("*.png") if file.name != "grid.png")
        return np.asarray(Image.open(file))

    expected = drawn(movable_run / "run")
    export = ["export", str(movable_run / "run"), "--dtype=float32"]
    assert main([*export, f"--out={tmp_path}/out"]) == 0
    assert "also needs" not in capsys.readouterr().out
    assert main([*export, f"--out={tmp_path}/part", "--without_text_encoders"]) == 0
    needed = f"it also needs text.minilm.path ({movable_run}/text)"
    assert needed in capsys.readouterr().out

    movable_run.rename(tmp_path / "gone")
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    stored = json.loads((tmp_path / "elsewhere" / "config.json").read_text())["config"]
    assert stored["codec"]["path"] == "codec"
    assert stored["text"]["minilm"]["path"] == "text_encoder_minilm"
    np.testing.assert_array_equal(drawn(tmp_path / "elsewhere"), expected)
    arguments = ["sample", "a red disc", f"--checkpoint={tmp_path}/part", f"--out={tmp_path}/x"]
    assert main(arguments) == 2 and "text" in capsys.readouterr().err
