"""Runs of several processes: each reads its share, together they learn what one learns, they end
together, and go on from each other's checkpoints on any number of devices.

The real command, gloo between the processes, as small a network as has something to shard.
"""

import os
import shutil
import time

import encoders
import numpy as np
import pytest
import runs

from emu_jax.data.cache import stored

STEPS = 12
PICTURES = 24  # in folder/tiny


@pytest.fixture(scope="module")
def command(pictures, tmp_path_factory):
    """``command(name, ...)``: a run in the workdir ``name``, which it also returns."""
    folder = tmp_path_factory.mktemp("hosts")

    def make(name, *more):
        small = (
            "--config.discriminator.enabled=False",
            "--config.autoencoder.widths=(64,)",
            "--config.autoencoder.decoder_widths=(64,)",
            "--config.groups.autoencoder.optimizer.schedule=constant",
            "--config.train.validate_every=6",
            *(f"--config.train.{key}" for key in (f"steps={STEPS}", "keep_last=9")),
        )
        return folder / name, runs.command("autoencoder", folder / name, pictures, *small, *more)

    return make


@pytest.fixture(scope="module")
def single(nursery, command):
    workdir, arguments = command("single")
    nursery.run("single", arguments)
    return workdir


@pytest.fixture(scope="module")
def pair(nursery, command):
    workdir, arguments = command("pair", "--config.mesh.fsdp=2")
    nursery.run("pair", arguments, processes=2)
    return workdir


@pytest.fixture(scope="module")
def eight(nursery, command):
    workdir, arguments = command("eight", "--config.mesh.fsdp=2", "--config.train.steps=4")
    nursery.run("eight", arguments, processes=4, devices=2)
    return workdir


def losses(workdir, after=0):
    lines = runs.lines(workdir / "metrics.jsonl")
    return {
        f"{line['step']} {name}": value
        for line in lines
        if line["step"] > after
        for name, value in line.items()
        if name.startswith(("autoencoder/loss", "autoencoder/grad_norm", "held_out/"))
    }


def assert_close(found, expected):
    assert found.keys() == expected.keys() and len(found) > 2
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=2e-4), name


def test_each_process_reads_its_share_and_no_more(nursery, single, pair):
    whole = nursery.reads("single", 0)
    shares = [nursery.reads("pair", index) for index in range(2)]
    batches = [(False, n) for n in range(STEPS)] + [(True, n) for n in range(PICTURES // 8)]
    for batch in batches:
        parts = [share[batch] for share in shares]
        assert [len(part["record"]) for part in parts] == [4, 4]
        assert [*parts[0]["record"], *parts[1]["record"]] == whole[batch]["record"]
        for part in parts:
            assert part["read"] == [record % PICTURES for record in part["record"]]


def test_two_processes_learn_what_one_learns(single, pair):
    assert_close(losses(pair), losses(single))


def test_four_processes_learn_what_one_learns(single, eight):
    found = {n: value for n, value in losses(eight).items() if " autoencoder/" in n}
    assert {name.split()[0] for name in found} == {"1", "2", "3", "4"}
    assert_close(found, {name: losses(single)[name] for name in found})


def test_a_killed_process_ends_the_others_and_the_run_goes_on_exactly(nursery, command, pair):
    """The second time it is told to end, in one process, and all save and end."""
    workdir, arguments = command("broken", "--config.mesh.fsdp=2")
    pids = nursery.start("broken", arguments, processes=2)
    wait_until(runs.reached(workdir, 3))
    os.kill(pids[1], runs.KILL)
    killed = time.monotonic()
    assert nursery.wait(pids, 60) == [75, -9], nursery.log("broken", 0).read_text()
    assert time.monotonic() - killed < 60
    said = [line for line in nursery.log("broken", 0).read_text().splitlines() if "emu-jax" in line]
    assert len(said) == 1
    assert said[0].startswith("emu-jax: Another process of this run is gone")

    pids = nursery.start("resumed", arguments, processes=2)
    wait_until(runs.reached(workdir, 7))
    os.kill(pids[1], runs.TERMINATE)
    assert nursery.wait(pids) == [143, 143], nursery.log("resumed", 0).read_text()
    assert 7 <= int(runs.arrays(workdir)["step"]) < STEPS
    nursery.run("resumed_again", arguments, processes=2)

    expected, found = runs.arrays(pair), runs.arrays(workdir)
    assert expected.keys() == found.keys()
    assert int(found["step"]) == STEPS
    different = [name for name in expected if not np.array_equal(expected[name], found[name])]
    assert not different
    assert runs.lines(workdir / "metrics.jsonl") == runs.lines(pair / "metrics.jsonl")


@pytest.mark.parametrize(("processes", "devices", "fsdp"), [(1, 8, 4), (2, 1, 2)])
def test_a_checkpoint_goes_on_where_there_are_other_devices(
    processes, devices, fsdp, nursery, command, eight
):
    name = f"on_{processes}x{devices}"
    settings = f"--config.mesh.fsdp={fsdp}", "--config.train.steps=4"
    workdir, arguments = command(name, *settings)
    shutil.copytree(eight, workdir)
    shutil.rmtree(workdir / "checkpoints" / "4")
    nursery.run(name, arguments, processes, devices)
    lines = runs.lines(workdir / "metrics.jsonl")
    assert sorted({line["step"] for line in lines}) == [1, 2, 3, 4]
    assert_close(losses(workdir, after=2), losses(eight, after=2))


def wait_until(done, seconds=600):
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_two_processes_compute_the_vectors_of_one(nursery, pictures, tmp_path):
    """Each holds half of the larger matrices; the first writes."""
    sizes = dict(hidden_size=64, intermediate_size=256, num_key_value_heads=4)
    encoders.llama(tmp_path / "llama", **sizes)
    found = []
    for processes in (1, 2):
        cache = tmp_path / str(processes)
        arguments = ["data", "vectors", "folder/tiny", f"--model={tmp_path}/llama", "--layers=0,2"]
        arguments += [f"--data_dir={pictures}", f"--cache_dir={cache}", "--batch_size=4"]
        nursery.run(f"vectors_{processes}", arguments, processes)
        (folder,) = cache.glob("vectors_*")
        found.append(stored(folder, "text")["vectors"])
    assert found[0].shape == (13, 2, 64) and np.abs(found[0][1:]).max((1, 2)).min() > 0
    # Sums over halves of a matrix are rounded otherwise in fp32.
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4, atol=1e-4)


def test_two_processes_cache_their_shares_and_draw_together(
    nursery, pictures, autoencoder_run, judge_run, tmp_path
):
    """What they cached is whole for one process, whose figures are the same."""
    sets = [f"--config.measure.{name}=folder/tiny" for name in ("captions", "needles", "haystack")]
    settings = (
        *("train.steps=1", "train.validate_every=1", "measure.count=3", "data.cache_text=True"),
        *("data.cache_latents=True", f"data.cache_dir={tmp_path}/cache"),
        *(f"codec.path={autoencoder_run}", f"measure.judge={judge_run}"),
    )
    more = [*sets, *(f"--config.{setting}" for setting in settings)]

    def run(name, processes, *others):
        arguments = runs.command("latent_diffusion", tmp_path / name, pictures, *more, *others)
        nursery.run(name, arguments, processes)
        files = {path: path.stat().st_size for path in (tmp_path / "cache").rglob("*.rows")}
        lines = runs.lines(tmp_path / name / "metrics.jsonl")
        found = {key: value for line in lines for key, value in line.items() if "/" in key}
        return {key: value for key, value in found.items() if "time" not in key}, files

    pair, files = run("pair", 2, "--config.mesh.fsdp=2")
    groups = {path.parent for path in files}
    assert len(groups) == 2
    for group in groups:
        keys = [np.fromfile(path, "S32") for path in group.glob("*.keys")]
        assert len(keys) == 2 and min(map(len, keys)) > 0
        assert len(np.unique(np.concatenate(keys))) == sum(map(len, keys))
    single, same_files = run("single", 1)
    assert same_files == files
    names = [name for name in single if name.startswith(("samples/", "held_out/", "kept/"))]
    assert len(names) > 4
    for name in names:
        assert pair[name] == pytest.approx(single[name], rel=1e-3, abs=1e-5), name
