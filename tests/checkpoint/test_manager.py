"""Saving, restoring, and everything a disk can do to a checkpoint."""

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import runs

from emu_jax.checkpoint.manager import Checkpoints, flatten
from emu_jax.errors import UserError


def make_state(seed: int) -> dict:
    """A training state in small: paths with slashes and dots, NamedTuples, bf16, Python numbers."""
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "denoiser/conv_in/kernel": jax.random.normal(keys[0], (64, 16)),
        "denoiser/blocks.0/resnets/1/bias": jax.random.normal(keys[1], (8,), jnp.bfloat16),
        "codec/scale": jax.random.normal(keys[2], ()),
    }
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    factored = optax.adafactor(1e-3, min_dim_size_to_factor=4)
    grads = jax.tree.map(lambda x: x * 0.1, params)
    return {
        "step": jnp.int32(seed),
        "params": params,
        "ema": {name: value * 0.5 for name, value in params.items()},
        "opt": {
            "denoiser": adam.update(grads, adam.init(params), params)[1],
            "codec": factored.update(grads, factored.init(params), params)[1],
        },
        "state": {"codebook/empty": jnp.zeros((0, 4))},
        "skipped": seed + 100,
    }


def abstract(state):
    def shape(leaf):
        if isinstance(leaf, jax.Array):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        return leaf

    return jax.tree.map(shape, state)


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(flatten(a).items(), jax.tree.leaves(b), strict=True):
        assert type(x) is type(y) or isinstance(x, jax.Array), path
        assert np.asarray(x).dtype == np.asarray(y).dtype, path
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), path


def saved_run(directory: Path, steps=(1, 2), **kwargs) -> Checkpoints:
    checkpoints = Checkpoints(str(directory), **kwargs)
    for step in steps:
        checkpoints.save(step, make_state(step), {"config": {"size": "tiny"}, "seed": 3}, None)
    checkpoints.wait()
    return checkpoints


def test_round_trip_is_bit_exact_with_its_metadata(tmp_path):
    state = make_state(7)
    meta = {"config": {"size": "tiny"}, "frozen": {"text": {"source": "a", "fingerprint": "b"}}}
    with Checkpoints(str(tmp_path)) as checkpoints:
        assert checkpoints.latest() is None
        assert checkpoints.save(7, state, meta, {"loss": np.float32(0.5)})
    with Checkpoints(str(tmp_path), read_only=True) as checkpoints:
        restored, record = checkpoints.restore(None, abstract(state))
        assert checkpoints.read_meta() == record
        arrays = checkpoints.read_arrays(7, lambda name: name.startswith("ema/"))
    assert_same_bits(restored, state)
    assert record == {**meta, "metrics": {"loss": 0.5}, "step": 7, "format": 1}
    assert arrays.keys() == {f"ema/{name}" for name in state["params"]}
    assert all(isinstance(value, np.ndarray) for value in arrays.values())


@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "meta/metadata", "state"])
def test_a_link_out_of_the_folder_is_refused(tmp_path, name):
    saved_run(tmp_path / "run").close()
    part, secret = tmp_path / "run/2" / name, tmp_path / "secret"
    part.rename(secret)
    part.symlink_to(secret)
    with (
        Checkpoints(str(tmp_path / "run"), read_only=True) as checkpoints,
        pytest.raises(UserError, match=f"{name} is a symbolic link out of"),
    ):
        checkpoints.read_meta(1)
    part.unlink()
    secret.rename(tmp_path / "run/inside")
    part.symlink_to(tmp_path / "run/inside")
    (tmp_path / "link").symlink_to(tmp_path / "run")  # the folder itself may lie elsewhere
    with Checkpoints(str(tmp_path / "link"), read_only=True) as checkpoints:
        assert checkpoints.read_meta(1)["step"] == 1


def test_arrays_may_be_donated_once_save_returns(tmp_path):
    overwrite = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    with Checkpoints(str(tmp_path), keep_last=9) as checkpoints:
        for step in range(5):
            x = jax.random.normal(jax.random.key(step), (200_000,))
            checkpoints.save(step, {"x": x}, {}, None)
            overwrite(x).block_until_ready()
        for step in range(5):
            expected = jax.random.normal(jax.random.key(step), (200_000,))
            restored, _ = checkpoints.restore(step, {"x": expected})
            np.testing.assert_array_equal(restored["x"], expected)


def test_keeps_the_last_and_the_best(tmp_path):
    losses = {1: 0.5, 2: 0.2, 3: 0.4, 4: float("nan"), 5: 0.3, 6: 0.6}
    with Checkpoints(str(tmp_path), keep_last=2, keep_best=("loss", "min", 2)) as checkpoints:
        for step, loss in losses.items():
            checkpoints.save(step, {"x": jnp.ones(3)}, {}, {"loss": loss, "other": -loss})
    with Checkpoints(str(tmp_path), keep_last=2, keep_best=("loss", "min", 1)) as checkpoints:
        assert checkpoints.steps() == [2, 5, 6]
        assert checkpoints.best() == 2
        checkpoints.save(7, {"x": jnp.ones(3)}, {}, {})
        checkpoints.wait()
        assert checkpoints.steps() == [2, 6, 7]
    with Checkpoints(str(tmp_path), keep_best=("loss", "max", 1), read_only=True) as checkpoints:
        assert checkpoints.best() == 6


def test_of_equals_the_earlier_is_the_best(tmp_path):
    for mode in ("min", "max"):
        folder, best = str(tmp_path / mode), ("loss", mode, 1)
        with Checkpoints(folder, keep_last=1, keep_best=best) as checkpoints:
            for step in (1, 2, 3):
                checkpoints.save(step, {"x": jnp.ones(3)}, {}, {"loss": 0.5})
            checkpoints.wait()
            assert checkpoints.steps() == [1, 3] and checkpoints.best() == 1


def test_the_best_by_a_metric_that_nobody_tracked_at_the_save(tmp_path):
    with Checkpoints(str(tmp_path), keep_last=3) as checkpoints:
        for step, loss in ((1, 0.4), (2, 0.2), (3, 0.3)):
            checkpoints.save(step, {"x": jnp.ones(3)}, {}, {"loss": loss})
    with Checkpoints(str(tmp_path), keep_last=1, keep_best=("loss", "min", 1)) as checkpoints:
        checkpoints.save(4, {"x": jnp.ones(3)}, {}, {"other": 0.0})
        checkpoints.wait()
        assert checkpoints.steps() == [2, 4]


def test_what_is_finished_is_for_readers_and_not_for_a_resumed_run(tmp_path):
    with Checkpoints(str(tmp_path)) as checkpoints:
        state = {"state": {"scale": jnp.ones(3), "none": jnp.zeros((0, 2))}}
        finished = {"scale": jnp.full(3, 2.0), "none": jnp.zeros((0, 2))}
        checkpoints.save(1, state, {}, None, finished)
        restored, _ = checkpoints.restore(None, state)
        assert_same_bits(restored, state)
        arrays = checkpoints.read_arrays()
    assert arrays.keys() == {"state/scale", "finished/scale"}
    np.testing.assert_array_equal(arrays["finished/scale"], finished["scale"])


def test_the_same_step_again_is_left_as_it_is(tmp_path):
    checkpoints = Checkpoints(str(tmp_path))
    assert checkpoints.save(4, {"x": jnp.ones(3)}, {"first": True}, None)
    assert not checkpoints.save(4, {"x": jnp.zeros(3)}, {}, None)  # While it is being written.
    checkpoints.wait()
    assert not checkpoints.save(4, {"x": jnp.zeros(3)}, {}, None)
    checkpoints.close()
    with Checkpoints(str(tmp_path)) as again:
        assert not again.save(4, {"x": jnp.zeros(3)}, {}, None)
        assert again.read_meta(4)["first"]


def test_reading_makes_nothing(tmp_path):
    checkpoints = Checkpoints(str(tmp_path / "none"), read_only=True)
    assert checkpoints.steps() == [] and checkpoints.best() is None
    with pytest.raises(UserError, match=r"no checkpoint in .*none"):
        checkpoints.restore(None, {"x": jnp.ones(3)})
    assert not (tmp_path / "none").exists()


def test_a_step_that_is_not_there_is_named_with_those_that_are(tmp_path):
    with saved_run(tmp_path) as checkpoints, pytest.raises(UserError, match=r"step 9 .*: 1, 2 are"):
        checkpoints.restore(9, make_state(1))


def test_another_model_is_refused_naming_three_parameters(tmp_path):
    with saved_run(tmp_path) as checkpoints:
        other = make_state(2)
        kernel = other["params"].pop("denoiser/conv_in/kernel")
        other["params"]["denoiser/conv_out/kernel"] = kernel
        other["params"]["codec/scale"] = jnp.ones((2,))
        with pytest.raises(UserError) as error:
            checkpoints.restore(None, other)
    message = str(error.value)
    assert "another model" in message and "\n" not in message
    assert "params/denoiser/conv_out/kernel is not in the checkpoint" in message
    assert "params/denoiser/conv_in/kernel is only in the checkpoint" in message
    assert "params/codec/scale is [] there and [2] here" in message
    assert "more" not in message


# Damage ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    directory = tmp_path_factory.mktemp("intact")
    saved_run(directory).close()
    return directory


DAMAGE = [
    ("meta/metadata", "delete"),
    ("meta/metadata", "truncate"),
    ("state/_METADATA", "truncate"),  # Deleting it does no harm.
    ("state/manifest.ocdbt", "delete"),
    ("state/manifest.ocdbt", "truncate"),
    ("state/d", "delete"),
    ("state/d", "truncate"),
    ("state/ocdbt", "delete"),
    ("state/ocdbt", "truncate"),
    ("", "delete"),
    ("", "truncate"),
]


@pytest.mark.parametrize(("name", "how"), DAMAGE)
def test_damage_is_one_sentence_that_names_a_step_that_loads(tmp_path, intact, name, how, capfd):
    directory = tmp_path / "run"
    shutil.copytree(intact, directory)
    root = directory / "2"
    files = [file for file in root.rglob("*") if file.is_file()]
    for file in [file for file in files if str(file.relative_to(root)).startswith(name)]:
        if how == "delete":
            file.unlink()
        else:
            os.truncate(file, file.stat().st_size // 2)
    state = make_state(1)
    checkpoints = Checkpoints(str(directory), read_only=True)
    with pytest.raises(UserError) as error:
        checkpoints.restore(None, abstract(state))
    message = str(error.value)
    assert "\n" not in message and len(message) < 500 + 3 * len(str(directory))
    assert f"step 2 in {directory} is damaged" in message and "step 1 still loads" in message
    assert f"move {root} away" in message
    # Exactly what the sentence says works.
    shutil.move(root, tmp_path / "away")
    with Checkpoints(str(directory), read_only=True) as checkpoints:
        restored, _ = checkpoints.restore(None, abstract(state))
    assert_same_bits(restored, state)
    assert "Traceback" not in capfd.readouterr().err


def test_damage_to_all_is_said_too(tmp_path, intact):
    directory = tmp_path / "run"
    shutil.copytree(intact, directory)
    for file in directory.glob("*/state/manifest.ocdbt"):
        file.unlink()
    with pytest.raises(UserError, match=r"damaged .* no earlier one loads"):
        Checkpoints(str(directory), read_only=True).restore(None, make_state(1))


@contextlib.contextmanager
def full_disk(path: Path):
    """A file system of 2 MB at ``path``; where mounting is not allowed, files of 1 MB at most."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)]
    if shutil.which("mount") and subprocess.run(command, capture_output=True).returncode == 0:
        try:
            yield "the disk is full"
        finally:
            subprocess.run(["umount", "-l", str(path)], check=True)
    else:
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
        try:
            yield "a file there may not grow so large"
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_one_sentence_and_the_last_checkpoint_still_loads(tmp_path, capfd):
    def state(n):
        return {"params": {"x": jax.random.normal(jax.random.key(n), (n,))}}

    small, large = state(1_000), state(900_000)
    with full_disk(tmp_path / "disk") as words:
        directory = tmp_path / "disk" / "run"
        checkpoints = Checkpoints(str(directory), keep_last=1)
        checkpoints.save(1, small, {}, None)
        checkpoints.save(2, large, {}, None)
        with pytest.raises(UserError) as error:
            checkpoints.wait()
        assert f"step 2 could not be saved in {directory}: {words}" in str(error.value)
        assert "step 1 still loads" in str(error.value)
        assert [path.name for path in directory.iterdir()] == ["1"], "the torn one was not removed"
        # It surfaces at the next save as well, and is said once.
        checkpoints.save(3, large, {}, None)
        with pytest.raises(UserError, match="step 3 could not be saved"):
            checkpoints.save(4, small, {}, None)
        restored, _ = checkpoints.restore(None, small)
        assert_same_bits(restored, small)
        # Where there is room again the run goes on.
        assert checkpoints.save(3, small, {}, None)
        checkpoints.close()
        assert Checkpoints(str(directory), read_only=True).steps() == [3]
    assert "Traceback" not in capfd.readouterr().err


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    checkpoints = Checkpoints(str(tmp_path / "file" / "run"))
    with pytest.raises(UserError, match=r"step 1 could not be saved in .*file/run"):
        checkpoints.save(1, {"x": jnp.ones(3)}, {}, None)
        checkpoints.wait()


# Processes ---------------------------------------------------------------------------------------


def start(program: str, *args: str, devices: int = 1) -> subprocess.Popen:
    command = [sys.executable, "-c", textwrap.dedent(program), *args]
    env = runs.environment(devices)
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)


KILLED = """
    import sys, time
    import jax.numpy as jnp
    from emu_jax.checkpoint.manager import Checkpoints
    checkpoints = Checkpoints(sys.argv[1], keep_last=2)
    step = checkpoints.latest() or 0
    print("ready", flush=True)
    while True:
        step += 1
        state = {f"p/{i}": jnp.full((100_000,), step * 100 + i) for i in range(10)}
        checkpoints.save(step, state, {"said": step}, None)
        checkpoints.wait()
        print(step, flush=True)
"""


def test_kill_minus_nine_at_any_moment_leaves_the_newest_complete_one_loading(tmp_path):
    directory = tmp_path / "run"
    delays = random.Random(0)
    torn = 0
    for _ in range(6):
        process = start(KILLED, str(directory))
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.stdout.readline()
        began = time.monotonic()
        said = process.stdout.readline()
        # It saves without a pause, so any moment of the next save's time is during a save.
        time.sleep(delays.uniform(0, time.monotonic() - began))
        process.kill()
        finished = int((said + process.stdout.read()).splitlines()[-1])
        process.wait()
        torn += any("tmp" in path.name for path in directory.iterdir())
        with Checkpoints(str(directory), read_only=True) as checkpoints:
            newest = checkpoints.latest()
            assert newest is not None and newest in (finished, finished + 1)
            abstract_state = {f"p/{i}": jnp.zeros((100_000,), jnp.int32) for i in range(10)}
            state, meta = checkpoints.restore(None, abstract_state)
            assert meta["said"] == newest
            for i in range(10):
                assert (state[f"p/{i}"] == newest * 100 + i).all()
    assert torn, "no kill fell into a save: the delays test nothing"
    with Checkpoints(str(directory)) as checkpoints:
        checkpoints.save(newest + 1, {"x": jnp.ones(1)}, {}, None)
    assert not any("tmp" in path.name for path in directory.iterdir())


ELSEWHERE = """
    import sys
    import jax, numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from emu_jax.checkpoint.manager import Checkpoints
    assert jax.device_count() == 8
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    shape = jax.ShapeDtypeStruct((16, 8), "float32", sharding=NamedSharding(mesh, P(None, "fsdp")))
    with Checkpoints(sys.argv[1]) as checkpoints:
        state, meta = checkpoints.restore(None, {"a/kernel": shape, "n": 0})
        assert len(state["a/kernel"].addressable_shards) == 8
        assert state["a/kernel"].addressable_shards[0].data.shape == (16, 2)
        assert state["n"] == 5
        checkpoints.save(6, {"a/kernel": state["a/kernel"] * 1, "n": 6}, meta, None)
"""


def test_restores_onto_eight_devices_and_back(tmp_path):
    kernel = jax.random.normal(jax.random.key(0), (16, 8))
    with Checkpoints(str(tmp_path)) as checkpoints:
        checkpoints.save(5, {"a/kernel": kernel, "n": 5}, {"seed": 1}, None)
    assert start(ELSEWHERE, str(tmp_path), devices=8).wait() == 0
    with Checkpoints(str(tmp_path)) as checkpoints:
        state, meta = checkpoints.restore(6, {"a/kernel": kernel, "n": 0})
    assert_same_bits(state, {"a/kernel": kernel, "n": 6})
    assert meta["seed"] == 1
