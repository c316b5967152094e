"""A codec is its network, but for a shift and a scale that cancel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.nn import autoencoder as gaussian
from emu_jax.nn.autoencoder import Autoencoder
from emu_jax.nn.functional import Network, nest
from emu_jax.tasks.codecs import AutoencoderCodec, IdentityCodec, codec_params

SHIFT, SCALE = np.array([0.5, -2.0], np.float32), np.array([3.0, 0.25], np.float32)
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def trained():
    """(codec, what an autoencoding task's model holds, pictures)."""
    network = Network(
        lambda rngs: Autoencoder(
            widths=(4, 4),
            blocks=1,
            decoder_blocks=1,
            latent_channels=2,
            groups=2,
            mid_attention=False,
            rngs=rngs,
        )
    )
    model = nest("autoencoder", jax.jit(network.init)(jax.random.key(0)))
    model |= {"latent/shift": jnp.asarray(SHIFT), "latent/scale": jnp.asarray(SCALE)}
    model["discriminator/conv_out/kernel"] = jnp.ones(3)
    x = jax.random.uniform(jax.random.key(1), (2, 8, 8, 3), minval=-1.0)
    return AutoencoderCodec(network, channels=2, factor=2), model, x


def test_the_round_trip_is_the_networks_own(trained):
    codec, model, x = trained
    params = codec_params(model)
    assert params.keys() == {*codec.network.shapes(), "latent/shift", "latent/scale"}

    @jax.jit
    def both(params, x):
        moments = codec.moments(params, x)
        ours = codec.decode(params, codec.sample(params, moments, KEY))
        latents = gaussian.sample(codec.network(params, x, method="encode"), KEY)
        return moments, ours, codec.network(params, latents, method="decode")

    moments, ours, theirs = both(params, x)
    assert moments.shape == (2, 8 // codec.factor, 8 // codec.factor, 2 * codec.channels)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert np.std(theirs) > 1e-2


def test_latents_are_shifted_and_scaled_channel_by_channel(trained):
    codec, model, _ = trained
    mean = jax.random.normal(jax.random.key(2), (5, 4, 4, 2))
    moments = jnp.concatenate([mean, jnp.full_like(mean, -30.0)], axis=-1)  # No noise to speak of.
    z = codec.sample(codec_params(model), moments, KEY)
    np.testing.assert_allclose(z, (mean - SHIFT) / SCALE, atol=1e-5)


def test_decoding_is_differentiable(trained):
    codec, model, _ = trained
    params, z = codec_params(model), jax.random.normal(KEY, (1, 4, 4, 2))
    slope = jax.jit(jax.grad(lambda z: jnp.sum(codec.decode(params, z) ** 2)))(z)
    assert np.all(np.isfinite(slope)) and np.all(slope != 0)


def test_the_identity_codec_changes_nothing(trained):
    codec, x = IdentityCodec(), trained[2]
    z = codec.sample({}, codec.moments({}, x), KEY)
    assert np.array_equal(z, x) and np.array_equal(codec.decode({}, z), x)
    assert z.shape[-1] == codec.channels and x.shape[1] // z.shape[1] == codec.factor
