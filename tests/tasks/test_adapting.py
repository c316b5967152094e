"""A generator adapted: the same loss and pictures as its base at first, and only factors train."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.assembly.config import read
from emu_jax.assembly.streams import stream_specs
from emu_jax.assembly.tasks import make_task
from emu_jax.errors import UserError
from emu_jax.nn.stack import SCANNED
from emu_jax.parallel.mesh import make_mesh
from emu_jax.planning.inputs import abstract_frozen, synthetic, training_batch
from emu_jax.tasks.adapting import BASE
from emu_jax.tasks.base import Context
from emu_jax.training.state import init_state
from emu_jax.training.step import make_step

CONFIGS = Path(__file__).parents[2] / "configs"
FAMILIES = {
    "latent": "latent_diffusion.py:size=test",
    "scanned": "latent_diffusion.py:size=test",
}


def config_of(family):
    """The family's smallest config, adapted; its base is a config: shapes, weights drawn here."""
    file = f"{CONFIGS}/{FAMILIES[family]}"
    config = read(file)
    config.init_from, config.lora.rank, config.lora.alpha = file, 2, 4.0
    # Of latents so many that self-attention has a choice in every stage.
    config.data.image_size = 32
    config.train.batch_size = 2
    if family == "scanned":
        config.denoiser.scan = True
    return config


@pytest.fixture(scope="module", params=["latent"])
def family(request):
    """(adapted task, plain task, frozen, batch)"""
    config = config_of(request.param)
    mesh = make_mesh(devices=jax.devices()[:1])
    adapted = make_task(config).prepare(None)
    config.lora.rank = 0
    plain = make_task(config).prepare(None)
    # Latents and texts as from a cache: what is adapted comes after them.
    encoders = tuple(plain.encoders)
    codec = abstract_frozen(adapted, mesh, (BASE, *encoders))
    cached = dict(cached_latents=True, cached_text=True)
    batch = training_batch(adapted, stream_specs(config, adapted), codec, mesh, **cached)
    rng = np.random.default_rng(5)
    base = {
        path: jnp.asarray(0.1 * rng.normal(size=x.shape), jnp.float32)
        for path, x in adapted.frozen[BASE].shapes.items()
    }
    frozen = {BASE: base, "codec": {}}
    if plain.codec.factor > 1:
        shift = plain.codec.shapes()
        frozen["codec"] = {
            path: jnp.ones(shift[path].shape) for path in shift if path.startswith("latent/")
        }
    return adapted, plain, frozen, synthetic(batch, jax.random.key(6))


def loss(task, params, frozen, batch):
    return task.loss("generator", Context(params, frozen, {}, batch, jax.random.key(3))).value


def test_it_starts_as_its_base_and_only_factors_have_a_gradient(family):
    adapted, plain, frozen, batch = family
    adapter = jax.jit(lambda key: adapted.init(key)[0])(jax.random.key(0))
    assert adapter and all("/lora_A/" in path or "/lora_B/" in path for path in adapter)
    base = frozen[BASE]
    assert base.keys() == jax.eval_shape(plain.init, jax.random.key(0))[0].keys()
    value, slope = jax.jit(jax.value_and_grad(lambda p: loss(adapted, p, frozen, batch)))(adapter)
    expected = jax.jit(lambda p: loss(plain, p, frozen, batch))(base)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for path, gradient in slope.items():
        # A waits for B, which is zero.
        assert np.any(gradient != 0) == ("/lora_B/" in path), path

    drawn = {path: jnp.sin(jnp.arange(x.size)).reshape(x.shape) for path, x in adapter.items()}
    value = jax.jit(lambda p: loss(adapted, p, frozen, batch))(drawn)
    merged = jax.jit(
        lambda p: loss(plain, adapted.adapters["lora"].merged(base, p), frozen, batch)
    )(drawn)
    assert abs(value - expected) > 1e-4 * abs(expected)
    np.testing.assert_allclose(value, merged, rtol=1e-5)


def test_state_and_optimiser_hold_the_adapter_alone(family):
    adapted, _, frozen, batch = family
    state = jax.jit(lambda key: init_state(adapted, key))(jax.random.key(0))
    names = state["params"].keys()
    assert state["ema"].keys() == names
    moments = [x for x in jax.tree.leaves(state["opt"]) if x.ndim]
    assert sum(x.size for x in moments) == 2 * sum(x.size for x in state["params"].values())
    after, metrics = jax.jit(make_step(adapted, seed=0))(state, frozen, batch)
    assert metrics["skipped"] == 0 and after["params"].keys() == names
    moved = {path for path in names if np.any(after["params"][path] != state["params"][path])}
    assert {path for path in names if "/lora_B/" in path} <= moved


def test_a_scanned_stacks_adapter_is_stacked_too():
    shapes = jax.eval_shape(make_task(config_of("scanned")).init, jax.random.key(0))[0]
    assert any(SCANNED in path for path in shapes)


def test_what_cannot_be_adapted_is_said():
    for key, value, words in (
        ("init_from", "", "needs init_from"),
        ("init_skip", "denoiser/", "set one of the two"),
        ("lora.pattern", "nothing/", "matches no kernel"),
        ("lora.rank", -2, "lora.rank is -2; use 1 or more"),
    ):
        config = config_of("latent")
        section, _, name = key.rpartition(".")
        setattr(config[section] if section else config, name, value)
        with pytest.raises(UserError, match=words):
            jax.eval_shape(make_task(config).init, jax.random.key(0))
    task = make_task(config_of("latent"))
    with pytest.raises(UserError, match=r"init_from .* is a config file"):
        task.frozen[BASE].tensors()
