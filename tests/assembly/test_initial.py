"""init_from: the same numbers as if everything were made and read whole, laid out in shards."""

import jax
import numpy as np
import pytest
import runs

from emu_jax.assembly.config import read
from emu_jax.assembly.initial import initial
from emu_jax.assembly.tasks import make_task
from emu_jax.checkpoint.export import load_model, save_model
from emu_jax.errors import UserError
from emu_jax.nn.stack import SCANNED
from emu_jax.parallel.mesh import make_mesh

SKIP = "encoder/mid|bias"


@pytest.fixture
def config(autoencoder_run):
    config = read(f"{runs.ROOT}/configs/autoencoder.py:size=test")
    config.init_from, config.init_skip = str(autoencoder_run), SKIP
    config.train.seed = 3
    return config


def opened(config):
    mesh = make_mesh()
    task = make_task(config)
    return task, initial(config, task, mesh)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        assert found[path].dtype == value.dtype
        np.testing.assert_array_equal(found[path], value, path)


def test_what_is_skipped_starts_as_a_fresh_one_and_the_rest_is_the_sources(config, capsys):
    task, (params, state) = opened(config)
    fresh, extra = jax.jit(task.init)(jax.random.key(3))
    source = load_model(config.init_from, dtype=np.float32).params
    skipped = {path for path in fresh if "bias" in path or "encoder/mid" in path}
    assert 0 < len(skipped) < len(fresh)
    assert_same(params, {p: v if p in skipped else source[p] for p, v in fresh.items()})
    assert_same(state, {path: source.get(path, value) for path, value in extra.items()})
    assert f"init_from {config.init_from}:\nreused " in capsys.readouterr().out


def test_an_exported_model_is_read_and_checked_on_the_way(config, tmp_path):
    run = load_model(config.init_from)
    save_model(str(tmp_path), run.params, run.config, {}, dtype="bfloat16")
    config.init_from, config.init_skip = str(tmp_path), ""
    _, (params, _) = opened(config)
    source = load_model(str(tmp_path), dtype=np.float32).params
    assert_same(params, {path: source[path] for path in params})
    data = bytearray((tmp_path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(UserError, match="half-written or changed"):
        opened(config)


def test_layers_become_one_loop_and_come_apart(generator_run, autoencoder_run):
    config = read(f"{runs.ROOT}/configs/latent_diffusion.py:size=test")
    config.codec.path, config.init_from = str(autoencoder_run), str(generator_run)
    source = load_model(str(generator_run), dtype=np.float32).params
    config.denoiser.update(dict(scan=True, widths=(8,)))
    _, (params, _) = opened(config)
    stacks = [path for path in params if SCANNED in path]
    assert stacks and not any(path in source for path in stacks)
    for path in stacks:
        layers = [source[path.replace(SCANNED, str(i))] for i in range(len(params[path]))]
        np.testing.assert_array_equal(params[path], np.stack(layers))
