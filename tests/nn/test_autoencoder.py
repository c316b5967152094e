"""The autoencoder against diffusers' AutoencoderKL, its Gaussian against torch's."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from state_dicts import from_torch

from emu_jax.nn import autoencoder
from emu_jax.nn.autoencoder import Autoencoder, fourier_features
from emu_jax.nn.functional import Network

KEY = jax.random.key(0)


def _first(x):
    """NHWC array to NCHW tensor."""
    return torch.from_numpy(np.moveaxis(np.array(x), -1, 1).copy())


def _last(x):
    return np.moveaxis(x.numpy(), 1, -1)


@pytest.mark.parametrize(
    ("channels", "quant_conv", "attention"), [(4, True, True), (16, False, True), (4, True, False)]
)
def test_equals_diffusers(channels, quant_conv, attention):
    torch.manual_seed(0)
    reference = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 16, 24),
        layers_per_block=2,
        latent_channels=channels,
        norm_num_groups=4,
        use_quant_conv=quant_conv,
        use_post_quant_conv=quant_conv,
        mid_block_add_attention=attention,
    ).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            # Norms away from 1 and 0, and everything large enough for a slip to show.
            parameter.add_(0.1 * torch.randn_like(parameter))
    ours = Network(
        lambda rngs: Autoencoder(
            widths=(8, 16, 24),
            blocks=2,
            latent_channels=channels,
            groups=4,
            mid_attention=attention,
            quant_conv=quant_conv,
            rngs=rngs,
        )
    )
    params = from_torch(reference.state_dict(), ours.shapes())
    x = np.random.default_rng(0).uniform(-1, 1, (2, 16, 24, 3)).astype(np.float32)
    z = np.random.default_rng(1).normal(size=(2, 4, 6, channels)).astype(np.float32)
    with torch.no_grad():
        moments = _last(reference.encode(_first(x)).latent_dist.parameters)
        pictures = _last(reference.decode(_first(z)).sample)
    np.testing.assert_allclose(
        jax.jit(partial(ours, method="encode"))(params, x), moments, atol=1e-4
    )
    np.testing.assert_allclose(
        jax.jit(partial(ours, method="decode"))(params, z), pictures, atol=1e-4
    )


def both(network):
    """(params, images) -> (their reconstruction from sampled latents, moments)."""

    def run(params, x):
        moments = network(params, x, method="encode")
        return network(params, autoencoder.sample(moments, KEY), method="decode"), moments

    return run


def test_sizes_of_an_asymmetric_fourier_autoencoder():
    network = Network(
        lambda rngs: Autoencoder(
            widths=(4, 4, 8, 8),
            blocks=1,
            latent_channels=16,
            groups=2,
            mid_attention=False,
            fourier_bands=3,
            decoder_widths=(4, 8, 8, 12),
            decoder_blocks=1,
            rngs=rngs,
        )
    )
    params = network.shapes()
    assert params["encoder/conv_in/kernel"].shape == (3, 3, 3 * 7, 4)
    assert params["decoder/conv_in/kernel"].shape == (3, 3, 16, 12)
    assert not [path for path in params if "attentions" in path or "quant" in path]
    reconstruction, moments = jax.eval_shape(both(network), params, jnp.zeros((2, 16, 24, 3)))
    assert moments.shape == (2, 2, 3, 32)
    assert reconstruction.shape == (2, 16, 24, 3)


def test_compute_dtype_follows_inputs_and_parameters():
    network = Network(
        lambda rngs: Autoencoder(widths=(4, 4), blocks=1, groups=2, fourier_bands=1, rngs=rngs)
    )
    params = {k: jax.ShapeDtypeStruct(v.shape, jnp.bfloat16) for k, v in network.shapes().items()}
    x = jnp.zeros((1, 4, 4, 3), jnp.bfloat16)
    reconstruction, moments = jax.eval_shape(both(network), params, x)
    assert reconstruction.dtype == moments.dtype == jnp.bfloat16


def test_fourier_features_of_one_pixel():
    x = jnp.array([0.25, -0.5]).reshape(1, 1, 1, 2)
    root = 0.5**0.5
    want = [0.25, -0.5, root, -1, 1, 0, root, 0, 0, -1]  # x, sin pi x, sin 2 pi x, cos, cos
    np.testing.assert_allclose(fourier_features(x, 2).ravel(), want, atol=1e-6)
    assert fourier_features(x, 0) is x


def test_constrain_and_attend_are_called():
    seen = {"attend": 0, "constrain": 0}

    def attend(q, k, v, mask):
        seen["attend"] += 1
        return v

    def constrain(x):
        seen["constrain"] += 1
        return x

    network = Network(
        lambda rngs: Autoencoder(
            widths=(4, 4), blocks=1, groups=2, attend=attend, constrain=constrain, rngs=rngs
        )
    )
    jax.eval_shape(both(network), network.shapes(), jnp.zeros((1, 4, 4, 3)))
    # Once in each half; after the first layer or the middle, each stage, and the encoder's middle.
    assert seen == {"attend": 2, "constrain": 4 + 3}


def test_kl_equals_torch():
    moments = np.random.default_rng(0).normal(size=(3, 2, 2, 8)).astype(np.float32)
    mu, log_var = np.split(moments, 2, axis=-1)
    normal = torch.distributions.Normal(torch.tensor(mu), torch.tensor(np.exp(log_var / 2)))
    prior = torch.distributions.Normal(torch.tensor(0.0), torch.tensor(1.0))
    want = torch.distributions.kl_divergence(normal, prior).sum(dim=(1, 2, 3))
    np.testing.assert_allclose(autoencoder.kl(jnp.asarray(moments)), want, rtol=1e-5)


def test_samples_have_the_moments():
    moments = jnp.broadcast_to(jnp.array([2.0, -1.0, np.log(0.25), np.log(4.0)]), (40_000, 1, 1, 4))
    draws = autoencoder.sample(moments, KEY)
    np.testing.assert_allclose(draws.mean(0).ravel(), [2, -1], atol=0.05)
    np.testing.assert_allclose(draws.std(0).ravel(), [0.5, 2], atol=0.05)


def test_a_wild_log_variance_stays_finite():
    moments = jnp.array([0.0, 1e4]).reshape(1, 1, 1, 2)
    assert np.isfinite(autoencoder.kl(moments)).all()
    assert np.isfinite(autoencoder.sample(moments, KEY)).all()
