"""What is planned for is what training feeds: against the real stream, caches included."""

import jax
import numpy as np
import pytest
import runs

from emu_jax.assembly import parts
from emu_jax.assembly.config import read
from emu_jax.assembly.generator import place_frozen
from emu_jax.cli.train import _open
from emu_jax.errors import UserError
from emu_jax.parallel.mesh import make_mesh
from emu_jax.parallel.sharding import abstract_batch, batch_sharding
from emu_jax.planning.inputs import abstract_frozen, synthetic, train_batch


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
    mesh, spec = make_mesh(), parts.stream_spec(config)
    task = parts.make_task(config)
    frozen = place_frozen(task, mesh)
    stream = _open(
        config, task, frozen, mesh, parts.open_selections(config, config.data.train), spec
    )(0)
    planned = train_batch(task, spec, frozen, mesh, cached_latents=latents, cached_text=text)
    assert described(planned) == {"train": described(next(stream))}
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
    with pytest.raises(UserError, match="cache_latents is for generators"):
        train_batch(
            parts.make_task(config),
            parts.stream_spec(config),
            {},
            make_mesh(),
            cached_latents=True,
        )
