"""Mixtures of parts that no config file is about: they train and draw from a config alone."""

import json

import pytest
import runs

from emu_jax.cli.main import main

MIXTURES = {
    "a transformer on the autoencoder's latents": (
        "latent_diffusion:denoiser=transformer",
        ("--config.codec.path={autoencoder}",),
    ),
    "flow matching on pixels": (
        "pixel_diffusion:part=base",
        ("--config.process.schedule=flow", "--config.process.prediction=flow"),
    ),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_they_learn_and_draw(name, pictures, autoencoder_run, tmp_path):
    config, changes = MIXTURES[name]
    workdir = tmp_path / "run"
    changes = [change.format(autoencoder=autoencoder_run) for change in changes]
    runs.train(config, workdir, pictures, *changes, "--config.train.validate_every=0")
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [line["generator/loss"] for line in lines if "generator/loss" in line]
    # A fresh network says 0, whatever it is to say.
    assert len(losses) == 6 and min(losses[1:]) < losses[0]
    assert main(["sample", "a fox", f"--checkpoint={workdir}", f"--out={tmp_path / 'out'}"]) == 0
    assert len(list((tmp_path / "out").glob("*.png"))) >= 1
