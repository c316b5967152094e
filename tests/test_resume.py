"""A run that is killed and started again ends in the very bits of the run that was left alone.

Real processes, real signals: SIGTERM and SIGKILL at random steps, SIGKILL while a checkpoint is
written, on one device and on eight, for one group of parameters and for the autoencoder's two.
"""

import random

import numpy as np
import pytest
import runs

STEPS = 16


# A process that is killed at a random step leaves no more behind than one that is killed while it
# saves: once on one device and once on eight are enough.
@pytest.mark.parametrize(
    ("config", "devices", "killed_at_random"),
    [
        ("autoencoder", 1, True),
        ("autoencoder", 8, False),
        ("latent_diffusion", 1, False),
        ("latent_diffusion", 8, True),
        ("pixel_diffusion:part=super", 1, False),
    ],
)
def test_a_killed_run_equals_the_unbroken_one(
    config, devices, killed_at_random, pictures, autoencoder_run, nursery, tmp_path
):
    more = [f"--config.train.steps={STEPS}", "--config.train.validate_every=8"]
    more.append("--config.train.checkpoint_every=4")
    if devices > 1:
        more.append(f"--config.mesh.fsdp={devices // 2}")
    if config == "latent_diffusion":
        more.append(f"--config.codec.path={autoencoder_run}")
    name = f"{config}_{devices}"
    whole, broken = tmp_path / "whole", tmp_path / "broken"

    nursery.run(f"{name}_whole", runs.command(config, whole, pictures, *more), devices=devices)

    command = runs.command(config, broken, pictures, *more)
    seed = random.SystemRandom().randrange(10**6)
    draw = random.Random(seed)
    codes = []
    for number, low in ((runs.TERMINATE, 1), *[(runs.KILL, 5)] * killed_at_random):
        when = runs.reached(broken, low + draw.randrange(4))
        codes.append(nursery.interrupt(f"{name}_broken", command, number, when, devices))
    when = runs.saving(broken)
    codes.append(nursery.interrupt(f"{name}_broken", command, runs.KILL, when, devices))
    # SIGTERM is answered by a save and 143; a process killed outright says -9.
    assert codes == [143, *[-9] * killed_at_random, -9], (
        codes,
        seed,
        nursery.log(f"{name}_broken").read_text(),
    )
    nursery.run(f"{name}_resumed", command, devices=devices)

    expected, found = runs.arrays(whole), runs.arrays(broken)
    assert expected.keys() == found.keys()
    assert int(found["step"]) == STEPS
    different = [name for name in expected if not np.array_equal(expected[name], found[name])]
    assert not different, (different[:5], len(different), seed)
    assert runs.lines(broken / "metrics.jsonl") == runs.lines(whole / "metrics.jsonl"), seed


def test_eight_devices_learn_what_one_learns(pictures, autoencoder_run, nursery, tmp_path):
    """Same data and random numbers on any topology; sums differ by rounding alone."""
    losses = {}
    for devices in (1, 8):
        more = ["--config.train.steps=4", f"--config.codec.path={autoencoder_run}"]
        if devices > 1:
            more.append("--config.mesh.fsdp=4")
        workdir = tmp_path / str(devices)
        command = runs.command("latent_diffusion", workdir, pictures, *more)
        nursery.run(f"learn_{devices}", command, devices=devices)
        losses[devices] = [
            line["generator/loss"]
            for line in runs.lines(workdir / "metrics.jsonl")
            if "generator/loss" in line
        ]
    assert len(losses[1]) == 4 and len(set(losses[1])) == 4
    np.testing.assert_allclose(losses[8], losses[1], rtol=1e-4)
