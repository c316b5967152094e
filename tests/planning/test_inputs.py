"""What is planned for is what training feeds: against the real stream, caches included."""

import jax
import numpy as np
import pytest
import runs

from emu_jax.assembly.config import read
from emu_jax.assembly.cost import step_batch
from emu_jax.assembly.streams import stream_specs, training_stream
from emu_jax.assembly.tasks import make_task, place_frozen
from emu_jax.errors import UserError
from emu_jax.parallel.mesh import make_mesh
from emu_jax.parallel.sharding import abstract_batch, batch_sharding
from emu_jax.planning.inputs import abstract_frozen, synthetic, training_batch


def described(tree):
    return jax.tree.map(lambda x: (tuple(x.shape), str(x.dtype)), tree)


def small(name, pictures, tmp_path):
    config = read(f"{runs.ROOT}/configs/{name}.py:size=test")
    for source in config.data.train.values():
        source.update(dict(dataset="folder/tiny", select=""))
    config.data.update(dict(data_dir=str(pictures), cache_dir=str(tmp_path), image_size=16))
    return config


@pytest.mark.parametrize(
    ("name", "latents", "text"),
    [
        ("latent_diffusion", False, False),
        ("latent_diffusion", True, True),
        ("autoencoder", False, False),
        ("judge", False, False),
    ],
)
def test_the_batch_is_the_streams(name, latents, text, pictures, tmp_path):
    config = small(name, pictures, tmp_path)
    config.data.update(dict(cache_latents=latents, cache_text=text))
    mesh, task = make_mesh(), make_task(config)
    frozen = place_frozen(task, mesh)
    stream = training_stream(config, task, frozen, mesh)(0)
    specs = stream_specs(config, task)
    planned = training_batch(task, specs, frozen, mesh, cached_latents=latents, cached_text=text)
    assert described(planned) == described(next(stream))
    stream.close()
    shapes = abstract_frozen(task, mesh)
    assert described(shapes) == described(frozen)
    shardings = jax.tree.map(lambda x: x.sharding, shapes)
    assert shardings == jax.tree.map(lambda x: x.sharding, frozen)


def test_made_up_arrays_are_what_was_asked_for():
    mesh = make_mesh()
    kinds = {"image": "uint8", "ids": "int32", "mask": "bool", "states": "bfloat16", "x": "float32"}
    rows = {name: jax.ShapeDtypeStruct((8, 64), kind) for name, kind in kinds.items()}
    made = synthetic(abstract_batch(rows, mesh), jax.random.key(0))
    assert described(made) == described(rows)
    assert {x.sharding for x in made.values()} == {batch_sharding(mesh)}
    assert len(np.unique(made["image"])) > 100 and not np.any(made["ids"]) and np.all(made["mask"])
    assert np.std(made["x"]) == pytest.approx(1, abs=0.2)
    assert not np.allclose(made["x"], made["states"].astype("float32"), atol=0.1)


def test_a_task_without_latents_is_refused(pictures, tmp_path):
    config = small("autoencoder", pictures, tmp_path)
    config.data.cache_latents = True
    with pytest.raises(UserError, match="the task autoencoding has no latents to cache"):
        step_batch(config, make_task(config), {}, make_mesh())
