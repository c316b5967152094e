"""The conditioner against diffusers' sinusoids and against its own definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.embeddings import Timesteps

from emu_jax.errors import UserError
from emu_jax.nn.conditioner import Conditioner, Encoded
from emu_jax.nn.functional import Network

RANDOM = np.random.default_rng(0)
SIZES = np.array([[512, 640, 0, 17, 256, 256], [64, 64, 0, 0, 64, 64]], np.int32)


def _encoded(length, width, pooled=0):
    return Encoded(
        jnp.asarray(RANDOM.normal(size=(2, length, width)), jnp.float32),
        jnp.asarray(np.arange(length) < np.array([[length], [1]])),
        jnp.asarray(RANDOM.normal(size=(2, pooled)), jnp.float32) if pooled else None,
    )


def _network(encoders, **options):
    return Network(lambda rngs: Conditioner(encoders, **options, rngs=rngs))


def test_tokens_are_projected_and_follow_one_another():
    encoded = {"t5": _encoded(4, 6), "clip": _encoded(3, 5, pooled=7)}
    network = _network({"clip": (5, 7), "t5": (6, 0)}, width=8, size_features=0)
    params = network.init(jax.random.key(0))
    assert set(params) == {
        f"projections/{name}/{leaf}" for name in ("clip", "t5") for leaf in ("kernel", "bias")
    }
    params = {k: jnp.asarray(RANDOM.normal(size=v.shape), jnp.float32) for k, v in params.items()}
    context, mask, vector = network(params, encoded)
    want = [
        encoded[n].states @ params[f"projections/{n}/kernel"] + params[f"projections/{n}/bias"]
        for n in ("clip", "t5")  # the order of the mapping, not of the call
    ]
    np.testing.assert_allclose(context, np.concatenate(want, axis=1), atol=1e-5)
    np.testing.assert_array_equal(
        mask, np.concatenate([encoded["clip"].mask, encoded["t5"].mask], 1)
    )
    np.testing.assert_array_equal(vector, encoded["clip"].pooled)


def test_channels_side_by_side_and_the_sizes_of_sdxl():
    encoded = {"l": _encoded(3, 4), "g": _encoded(3, 5, pooled=2)}
    encoded["g"] = encoded["g"]._replace(mask=jnp.asarray([[True] * 3, [True, True, False]]))
    options = {"combine": "channels", "size_features": 256}
    network = _network({"l": (4, 0), "g": (5, 2)}, **options)
    context, mask, vector = network({}, encoded, SIZES)
    np.testing.assert_array_equal(context[..., :4], encoded["l"].states)
    np.testing.assert_array_equal(context[..., 4:], encoded["g"].states)
    np.testing.assert_array_equal(mask, [[True, True, True], [True, True, False]])
    timesteps = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)
    waves = timesteps(torch.tensor(SIZES).flatten()).reshape(2, -1)
    want = np.concatenate([encoded["g"].pooled, waves.numpy()], axis=1)
    np.testing.assert_allclose(vector, want, atol=1e-4)
    conditioner = Conditioner({"l": (4, 0), "g": (5, 2)}, **options, rngs=None)
    assert (conditioner.context_width, conditioner.vector_width) == (9, 2 + 6 * 256)


def test_padded_to_the_last_encoders_width_as_stable_diffusion_3():
    encoded = {"l": _encoded(3, 4, pooled=2), "g": _encoded(3, 5, pooled=3), "t5": _encoded(2, 11)}
    widths = {"l": (4, 2), "g": (5, 3), "t5": (11, 0)}
    options = {"combine": "padded", "size_features": 0}
    context, mask, vector = _network(widths, **options)({}, encoded)
    np.testing.assert_array_equal(context[:, :3, :4], encoded["l"].states)
    np.testing.assert_array_equal(context[:, :3, 4:9], encoded["g"].states)
    assert not context[:, :3, 9:].any()
    np.testing.assert_array_equal(context[:, 3:], encoded["t5"].states)
    np.testing.assert_array_equal(mask, [[True] * 5, [True, False, False, True, False]])
    pooled = [encoded["l"].pooled, encoded["g"].pooled]
    np.testing.assert_array_equal(vector, np.concatenate(pooled, axis=1))
    conditioner = Conditioner(widths, **options, rngs=None)
    assert (conditioner.context_width, conditioner.vector_width) == (11, 5)


def test_the_micro_conditions_of_amused():
    """Width before height, and one aesthetic score for all."""
    encoded = {"clip": _encoded(3, 4, pooled=2)}
    network = _network({"clip": (4, 2)}, size_features=8, aesthetic_score=5.5)
    told = [[640, 512, 0, 17, 5.5], [64, 64, 0, 0, 5.5]]
    timesteps = Timesteps(8, flip_sin_to_cos=True, downscale_freq_shift=0)
    waves = timesteps(torch.tensor(told).flatten()).reshape(2, -1)
    want = np.concatenate([encoded["clip"].pooled, waves.numpy()], axis=1)
    np.testing.assert_allclose(network({}, encoded, SIZES)[2], want, atol=1e-4)


def test_without_pooling_and_sizes_there_is_no_vector():
    network = _network({"t5": (6, 0)}, size_features=0)
    encoded = _encoded(4, 6)
    context, _, vector = network({}, {"t5": encoded})
    assert vector is None
    np.testing.assert_array_equal(context, encoded.states)


def test_sizes_are_told_apart_in_bf16():
    """The sinusoids are taken in fp32: as bf16 numbers 1024 and 1025 are the same."""
    network = _network({"t5": (6, 0)})
    states = _encoded(4, 6)
    states = states._replace(states=states.states.astype(jnp.bfloat16))
    sizes = jnp.array([[1024] * 6, [1025] * 6])
    vector = network({}, {"t5": states}, sizes)[2]
    assert vector.dtype == jnp.bfloat16
    assert float(jnp.abs(vector[0] - vector[1]).max()) > 0.5


@pytest.mark.parametrize(
    ("encoders", "options", "message"),
    [
        ({"a": (4, 0), "b": (5, 0)}, {}, "conditioner.width, a common width"),
        ({"a": (4, 0)}, {"combine": "sum"}, "combine"),
        ({"a": (4, 0), "b": (3, 0)}, {"combine": "padded"}, "sum to at most the last"),
        ({"a": (4, 0)}, {"combine": "padded"}, "cannot be joined with combine='padded'"),
        ({"a": (4, 0)}, {"size_features": 3}, "even"),
    ],
)
def test_bad_choices_are_named(encoders, options, message):
    with pytest.raises(UserError, match=message):
        Conditioner(encoders, **options, rngs=None)


def test_forgotten_sizes_are_an_error():
    with pytest.raises(ValueError, match="needs sizes"):
        _network({"t5": (6, 0)})({}, {"t5": _encoded(4, 6)})


def test_a_forgotten_pooled_vector_is_an_error():
    with pytest.raises(ValueError, match="encoder clip"):
        _network({"clip": (6, 2)}, size_features=0)({}, {"clip": _encoded(4, 6)})
