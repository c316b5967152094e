"""A ControlNet as a whole program: trained, opened, exported, drawn with, compared."""

import json

import numpy as np
import runs
from diffusers import ControlNetModel
from PIL import Image

from emu_jax.assembly.models import WEIGHTS, open_model, with_control
from emu_jax.checkpoint.export import load_model
from emu_jax.cli.main import main


def test_a_control_network_from_training_to_a_comparison(
    pictures, generator_run, control_run, tmp_path, capsys
):
    run = control_run
    expected = runs.arrays(run)
    own = {path for path in expected if path.startswith("params/")}
    assert own and all(path.startswith("params/control/") for path in own)
    copy = "params/control/conv_in/kernel"
    base, fresh = load_model(str(generator_run)), expected[copy]
    start = base.params["denoiser/conv_in/kernel"]
    assert np.abs(fresh - start).max() < 0.5 and np.std(start) > 0.05  # four steps at most of 0.1

    # Opened, it is its base as it was, and the ControlNet.
    whole = open_model(str(run))
    assert {path for path in whole.params if not path.startswith("control/")} == {*base.params}
    assert all(np.array_equal(whole.params[path], x) for path, x in base.params.items())

    alone, theirs = tmp_path / "alone", tmp_path / "diffusers"
    assert main(["export", str(run), "--adapter", f"--out={alone}", "--dtype=float32"]) == 0
    more = ["--adapter", "--format=diffusers", f"--out={theirs}"]
    assert main(["export", str(run), *more]) == 0
    tensors = ControlNetModel.from_pretrained(theirs).state_dict()
    assert sum(x.numel() for x in tensors.values()) == sum(expected[path].size for path in own)
    assert main(["import", str(theirs), f"--out={tmp_path}/imported"]) == 0

    edges = np.zeros((16, 16, 3), np.uint8)
    edges[4:12, 4] = edges[4:12, 11] = edges[4, 4:12] = edges[11, 4:12] = 255
    Image.fromarray(edges).save(tmp_path / "edges.png")
    place = tmp_path / "images"

    def drawn(*more):
        before = {*place.glob("*_*.png")}
        assert main(["sample", "a red disc", f"--out={place}", "--steps=2", *more]) == 0
        (image,) = {*place.glob("*_*.png")} - before
        return np.asarray(Image.open(image))

    def refused(*more):
        assert main(["sample", "a red disc", f"--out={place}", *more]) == 2
        return capsys.readouterr().err

    base, hint = f"--checkpoint={generator_run}", f"--control_image=hint:{tmp_path}/edges.png"
    plain, used = drawn(base), drawn(f"--checkpoint={run}", hint)
    assert np.any(plain != used)
    np.testing.assert_array_equal(drawn(base, f"--control={tmp_path}/imported", hint), used)
    np.testing.assert_array_equal(drawn(base, f"--control={alone}@0.0", hint), plain)
    assert "--control_image=FILE" in refused(f"--checkpoint={run}")
    assert "add --control" in refused(base, hint)
    assert "has no ControlNet" in refused(base, f"--control={generator_run}", hint)

    # From a start image, whose edges are followed unless a file says otherwise.
    photo, out = str(pictures / "source" / "00.png"), tmp_path / "restyled"
    own = (base, f"--control={alone}", f"--image={photo}", "--strength=1")
    followed = drawn(*own)
    assert np.any(drawn(*own, hint) != followed)
    files = {*place.iterdir()}
    again = ["sample", "a red disc", f"--out={place}", "--steps=2", f"--control_image={photo}"]
    assert main([*again, *own]) == 0 and {*place.iterdir()} == files  # the same hint and name
    restyle = ["restyle", photo, "a red disc", base, f"--control={alone}", "--strength=1"]
    assert main([*restyle, "--steps=2", f"--out={out}"]) == 0
    restyled = Image.open(out / "00_a_red_disc_0.png")
    np.testing.assert_array_equal(np.asarray(restyled), followed)
    assert restyled.text["control"] == "canny"

    # With a LoRA over two models in one command: the prompts' own images give the edges.
    lora = tmp_path / "lora"
    runs.write_lora(generator_run, lora)
    report, models = tmp_path / "report", [str(generator_run), f"{generator_run}@2"]
    command = ["compare", *models, f"--adapter={lora}", f"--control={alone}@0.8", "--kept="]
    command += ["--prompts=folder/tiny:part != none", f"--data_dir={pictures}", "--count=2"]
    command += ["--judge=", "--steps=2", "--batch_size=2", "--metrics=edge_f1", f"--out={report}"]
    assert main(command) == 0
    record = json.loads((report / "compare.json").read_text())
    assert record["metrics"]["edge_f1"]["figures"].keys() >= {*models}


def test_the_shipped_one_fits_the_shipped_generator():
    model = with_control(open_model("builtin:latent_diffusion_64"), "builtin:control_64@0.5")
    assert model.config["control"]["hint"] == "canny" and model.config["control"]["strength"] == 0.5
    own = {path: x for path, x in model.params.items() if path.startswith("control/")}
    assert sum(x.size for x in own.values()) == 1_964_976
    # Trained: its convolutions to the U-Net started at zero.
    assert np.abs(own["control/controlnet_down_blocks/0/kernel"]).max() > 0.01
    assert (WEIGHTS / "control_64" / "model.safetensors").stat().st_size < 4e6
