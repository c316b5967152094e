"""The shipped generators: of the committed configs, and with their layers as one loop the same."""

import jax
import numpy as np
import pytest
import runs
from ml_collections import ConfigDict

from emu_jax.assembly.config import read
from emu_jax.assembly.generator import Generator
from emu_jax.assembly.models import locate
from emu_jax.assembly.sections.runs import complete
from emu_jax.assembly.tasks import make_task
from emu_jax.checkpoint.export import load_model
from emu_jax.nn.functional import subtree
from emu_jax.nn.stack import SCANNED, relaid


def test_shipped_weights_load_into_a_scanned_network():
    model = load_model(locate("builtin:latent_diffusion_64"), dtype=np.float32)
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(1, 8, 8, 16)).astype("f"), np.array([0.4], np.float32)
    outputs = []
    for scan in (False, True):
        config = ConfigDict(model.config)
        config.denoiser.scan = scan
        task = make_task(config).prepare(None)
        wanted = jax.eval_shape(task.init, jax.random.key(0))[0]
        assert any(SCANNED in path for path in wanted) == scan
        params = relaid(model.params, wanted)
        assert {path: x.shape for path, x in params.items()} == {
            path: x.shape for path, x in wanted.items()
        }
        by = jax.jit(task.condition)(params, task.null, np.zeros((1, 6), np.int32))
        network = subtree(params, "denoiser")
        outputs.append(np.asarray(jax.jit(task.denoiser)(network, x, t, **by)))
    assert np.std(outputs[0]) > 0.1
    np.testing.assert_allclose(outputs[1], outputs[0], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("latent_diffusion_64", "latent_diffusion.py:size=tiny"),
        ("pixel_diffusion_32", "pixel_diffusion.py:size=tiny,part=base"),
        ("pixel_super_64", "pixel_diffusion.py:size=tiny,part=super"),
        ("masked_64", "masked.py:size=tiny"),
    ],
)
def test_shipped_weights_are_what_the_committed_config_tunes_and_draws_with(name, config):
    model = load_model(locate(f"builtin:{name}"), dtype=np.float32)
    config = read(f"{runs.ROOT}/configs/{config},stage=quality_tune")
    assert config.init_from == f"builtin:{name}"
    wanted = jax.eval_shape(make_task(config).init, jax.random.key(0))[0]
    params = relaid(model.params, wanted)
    assert {k: x.shape for k, x in params.items()} == {k: x.shape for k, x in wanted.items()}
    assert complete(model.config).sampling.to_dict() == config.sampling.to_dict()
    # Every key of its stored config, of an older version in part, opens as it is.
    assert Generator(f"builtin:{name}").step == model.meta["step"]
