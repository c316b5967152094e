"""A run that is killed and started again ends in the very bits of the run that was left alone.

Real processes, real signals: SIGTERM and SIGKILL at random steps, SIGKILL while a checkpoint is
written, on one device and on eight, for one group of parameters and for the autoencoder's two.
"""

import random
import re

import numpy as np
import pytest
import runs

STEPS = 16


@pytest.fixture
def unbroken(shared, nursery, pictures, autoencoder_run):
    """``unbroken(config, devices)``: the workdir of a run that is left alone, and a function from
    another workdir to the command of the same run.
    """

    def make(config, devices):
        more = [f"--config.train.steps={STEPS}", "--config.train.validate_every=8"]
        more.append("--config.train.checkpoint_every=4")
        if devices > 1:
            more.append(f"--config.mesh.fsdp={devices // 2}")
        if config == "latent_diffusion":
            more.append(f"--config.codec.path={autoencoder_run}")

        def command(workdir):
            return runs.command(config, workdir, pictures, *more)

        name = f"unbroken_{re.sub(r'[^a-z]', '_', config)}_{devices}"
        whole = shared(name, lambda path: nursery.run(name, command(path), devices=devices))
        return whole, command

    return make


# A process that is killed at a random step leaves no more behind than one that is killed while it
# saves: once on one device and once on eight are enough. Two groups on one device have no code of
# their own.
@pytest.mark.parametrize(
    ("config", "devices", "killed_at_random"),
    [
        ("autoencoder", 8, False),
        ("latent_diffusion", 1, True),
        ("latent_diffusion", 8, True),
        ("pixel_diffusion:part=super", 1, False),
    ],
)
def test_a_killed_run_equals_the_unbroken_one(
    config, devices, killed_at_random, unbroken, nursery, tmp_path
):
    whole, command = unbroken(config, devices)
    name, broken = f"{config}_{devices}", tmp_path / "broken"
    arguments = command(broken)
    seed = random.SystemRandom().randrange(10**6)
    draw = random.Random(seed)
    codes = []
    for number, low in ((runs.TERMINATE, 1), *[(runs.KILL, 5)] * killed_at_random):
        when = runs.reached(broken, low + draw.randrange(4))
        codes.append(nursery.interrupt(f"{name}_broken", arguments, number, when, devices))
    when = runs.saving(broken)
    codes.append(nursery.interrupt(f"{name}_broken", arguments, runs.KILL, when, devices))
    # SIGTERM is answered by a save and 143; a process killed outright says -9.
    assert codes == [143, *[-9] * killed_at_random, -9], (
        codes,
        seed,
        nursery.log(f"{name}_broken").read_text(),
    )
    nursery.run(f"{name}_resumed", arguments, devices=devices)

    expected, found = runs.arrays(whole), runs.arrays(broken)
    assert expected.keys() == found.keys()
    assert int(found["step"]) == STEPS
    different = [name for name in expected if not np.array_equal(expected[name], found[name])]
    assert not different, (different[:5], len(different), seed)
    assert runs.lines(broken / "metrics.jsonl") == runs.lines(whole / "metrics.jsonl"), seed


def test_eight_devices_learn_what_one_learns(unbroken):
    """Same data and random numbers on any topology; sums differ by rounding alone."""
    losses = {}
    for devices in (1, 8):
        whole, _ = unbroken("latent_diffusion", devices)
        losses[devices] = [
            line["generator/loss"]
            for line in runs.lines(whole / "metrics.jsonl")
            if "generator/loss" in line
        ][:4]
    assert len(losses[1]) == 4 and len(set(losses[1])) == 4
    np.testing.assert_allclose(losses[8], losses[1], rtol=1e-4)
