"""Model folders from strangers: whatever command opens one, nothing in it is executed."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import runs
from encoders import clip_text

from emu_jax.assembly.codecs import make_codec
from emu_jax.assembly.config import read
from emu_jax.assembly.models import WEIGHTS, locate, open_model
from emu_jax.checkpoint.export import load_model, save_model
from emu_jax.cli.main import main
from emu_jax.errors import UserError
from emu_jax.text.encoder import make_encoder


@pytest.fixture
def hostile(tmp_path):
    """Makes a copy of shipped weights whose config says a Python file; (folder, marker).

    The file would leave the marker when it is executed.
    """
    marker = tmp_path / "executed"
    code = tmp_path / "hostile" / "weights.py"

    def make(name: str, key: str) -> tuple[Path, Path]:
        folder = shutil.copytree(WEIGHTS / name, tmp_path / "hostile")
        code.write_text(f"open({str(marker)!r}, 'w')\ndef get_config(argument=None): return None\n")
        record = json.loads((folder / "config.json").read_text())
        section = record["config"]
        *sections, last = key.split(".")
        for part in sections:
            section = section.setdefault(part, {})
        section[last] = str(code)
        (folder / "config.json").write_text(json.dumps(record))
        return folder, marker

    return make


COMMANDS = {
    "sample": ("sample", "a fox", "--checkpoint={model}", "--out={out}"),
    "cascade": ("sample", "a fox", "--checkpoint=builtin:pixel_diffusion_32+{model}"),
    "upsample": ("upsample", __file__, "--checkpoint={model}", "--out={out}"),
    "compare": ("compare", "{model}", "--judge=", "--out={out}"),
    "evaluate": ("evaluate", "builtin:masked_64", "--judge={model}", "--out={out}"),
    "reconstruct": ("reconstruct", "{model}", "--judge=", "--out={out}"),
    "export": ("export", "{model}", "--out={out}"),
    "diffusers": ("export", "{model}", "--out={out}", "--format=diffusers"),
    "adapter": ("export", "{model}", "--out={out}", "--adapter"),
    "imported": ("train", f"--config={runs.ROOT}/configs/imported.py:{{model}}", "--workdir={out}"),
}
KEYS = ("codec.path", "low_codec.path", "text.minilm.path", "init_from", "loss.perceptual_path")


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_runs_what_a_model_folder_names(hostile, command, tmp_path, capsys):
    folder, marker = hostile("latent_diffusion_64", "codec.path")
    places = dict(model=folder, out=tmp_path / "out")
    assert main([argument.format(**places) for argument in COMMANDS[command]]) == 2
    assert "codec.path in " in capsys.readouterr().err
    assert not marker.exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--config.codec.path={model}"],
        ["--config.codec.path=builtin:autoencoder_64", "--config.init_from={model}"],
        [
            *("--config.codec.path=builtin:autoencoder_64", "--config.init_from={model}"),
            "--config.lora.rank=2",
        ],
    ],
    ids=["codec", "init_from", "base"],
)
def test_training_runs_nothing_of_a_model_folder(hostile, options, pictures, tmp_path, capsys):
    folder, marker = hostile("latent_diffusion_64", "codec.path")
    options = [option.format(model=folder) for option in options]
    command = runs.command("latent_diffusion", tmp_path / "run", pictures, *options)
    assert main(command) == 2
    assert "codec.path in " in capsys.readouterr().err
    assert not marker.exists()


@pytest.mark.parametrize("key", KEYS)
def test_no_key_of_a_model_folder_is_executed(hostile, key, capsys):
    folder, marker = hostile("latent_diffusion_64", key)
    assert main(["sample", "a fox", f"--checkpoint={folder}"]) == 2
    assert f"{key} in " in capsys.readouterr().err
    assert not marker.exists()


def test_the_user_may_name_a_config_file_to_plan_with(tmp_path):
    config = read(f"{runs.ROOT}/configs/latent_diffusion.py:size=test")
    config.codec.path = f"{runs.ROOT}/configs/autoencoder.py:size=test"
    codec, _ = make_codec(config.codec)
    assert codec.channels == 16


@pytest.mark.parametrize(
    "name", ["builtin:../nn", "builtin:", "builtin:/tmp", "builtin:a/../masked_64"]
)
def test_builtin_names_the_shipped_weights_only(name):
    with pytest.raises(UserError, match=r"No weights called .*builtin:masked_64"):
        locate(name)


def test_an_adapter_of_itself_is_refused(tmp_path):
    config = {"lora": {"rank": 2, "alpha": 2.0, "pattern": ".*"}, "init_from": str(tmp_path / "b")}
    other = {**config, "init_from": str(tmp_path / "a")}
    for name, content in (("a", config), ("b", other)):
        save_model(str(tmp_path / name), {"x": np.zeros(1)}, content, {"step": 1, "frozen": {}})
    with pytest.raises(UserError, match="is an adapter of itself"):
        open_model(str(tmp_path / "a"))


def test_a_tokenizer_runs_no_code_and_reads_its_own_folder(tmp_path):
    """``auto_map`` names a class that transformers would fetch and run for AutoTokenizer."""
    folder = tmp_path / "clip"
    clip_text(folder)
    expected = make_encoder("clip", 12, path=folder).tokenize(["a red fox"])["ids"]
    marker = tmp_path / "executed"
    (folder / "custom.py").write_text(f"open({str(marker)!r}, 'w')\nclass Custom: pass\n")
    elsewhere = {
        key: i for i, key in enumerate(reversed(json.loads((folder / "vocab.json").read_text())))
    }
    (tmp_path / "vocab.json").write_text(json.dumps(elsewhere))
    file = folder / "tokenizer_config.json"
    hostile = {
        "auto_map": {"AutoTokenizer": ["custom.Custom", "custom.Custom"]},
        "trust_remote_code": True,
        "tokenizer_class": "Custom",
        "vocab_file": str(tmp_path / "vocab.json"),
    }
    file.write_text(json.dumps(json.loads(file.read_text()) | hostile))
    found = make_encoder("clip", 12, path=folder).tokenize(["a red fox"])["ids"]
    np.testing.assert_array_equal(found, expected)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("codec", "x", "codec in .* is 'x'; it must be a section"),
        ("compute_dtype", None, "compute_dtype is None; use float32 or bfloat16"),
        ("denoiser.widths", "x", "UNet.widths is 'x'; it must be a list"),
        ("denoiser.groups", 0, r"does not describe a model .*ZeroDivisionError|norm groups"),
        ("denoiser.novel", 1, "UNet: .*novel"),
        ("text.minilm.length", [16], r"text\.minilm\.length is \[16\]; it must be a whole number"),
        ("sampling.steps", "x", r"sampling\.steps is 'x'; it must be a whole number"),
        ("process.gamma", {}, r"process\.gamma is \{\}; it must be a number"),
        ("conditioner.size_features", 0.5, r"Conditioner\.size_features is 0\.5"),
        ("data", None, "does not describe a model that can be built: .*None"),
    ],
)
def test_a_wrong_entry_of_a_config_is_named(tmp_path, capsys, key, value, words):
    folder = shutil.copytree(WEIGHTS / "latent_diffusion_64", tmp_path / "model")
    record = json.loads((folder / "config.json").read_text())
    section = record["config"]
    *sections, last = key.split(".")
    for name in sections:
        section = section[name]
    section[last] = value
    (folder / "config.json").write_text(json.dumps(record))
    assert main(["sample", "a fox", f"--checkpoint={folder}", f"--out={tmp_path}/out"]) == 2
    error = capsys.readouterr().err
    assert str(folder) in error and error.count("\n") == 1
    assert re.search(words, error), error


@pytest.mark.parametrize("key", ["config", "task", "denoiser", "data", "text", "process"])
def test_a_missing_entry_of_a_config_is_named(tmp_path, capsys, key):
    folder = shutil.copytree(WEIGHTS / "latent_diffusion_64", tmp_path / "model")
    record = json.loads((folder / "config.json").read_text())
    del (record if key == "config" else record["config"])[key]
    (folder / "config.json").write_text(json.dumps(record))
    assert main(["sample", "a fox", f"--checkpoint={folder}", f"--out={tmp_path}/out"]) == 2
    error = capsys.readouterr().err
    assert str(folder) in error and error.count("\n") == 1
    assert key in error


def test_weights_that_would_broadcast_are_refused(tmp_path, capsys):
    folder = tmp_path / "model"
    model = load_model(str(WEIGHTS / "latent_diffusion_64"))
    path = "denoiser/conv_in/bias"
    params = {**model.params, path: model.params[path][:1]}
    save_model(str(folder), params, model.config, model.meta, dtype=None)
    assert main(["sample", "a fox", f"--checkpoint={folder}", f"--out={tmp_path}/out"]) == 2
    assert f"the parameter {path} is [1]" in capsys.readouterr().err
