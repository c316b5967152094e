"""What teachers ask of images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from emu_jax.nn.functional import Network
from emu_jax.tasks.base import to_unit_range
from emu_jax.tasks.teachers import Style, gram


class Maps(nnx.Module):
    """An image as the features of one block, twice as large as of another."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.gain = nnx.Param(jnp.ones(()))

    def __call__(self, x):
        return [self.gain[...] * x, 2 * x]


def test_gram_matrices_are_correlations_whatever_the_place():
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 3)).astype(np.float32)
    expected = np.stack([one.reshape(-1, 3).T @ one.reshape(-1, 3) / 20 for one in x])
    np.testing.assert_allclose(gram(jnp.asarray(x)), expected, rtol=1e-5, atol=1e-6)
    moved = np.roll(x[:, ::-1], 2, axis=2)
    np.testing.assert_allclose(gram(jnp.asarray(moved)), expected, rtol=1e-5, atol=1e-6)
    large = gram(jnp.asarray(np.tile(x, (1, 3, 3, 1))))  # and whatever the size
    np.testing.assert_allclose(large, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.5, 0.25)])
def test_the_style_of_an_image_is_its_own(weights):
    network = Network(lambda rngs: Maps(rngs=rngs))
    params = network.init(jax.random.key(0))
    pixels = np.random.default_rng(1).integers(0, 256, (2, 4, 4, 3), np.uint8)
    style, rows = Style(network, weights), {"image": jnp.asarray(pixels)}
    own = to_unit_range(jnp.asarray(pixels))
    assert style.loss(params, own, rows) == 0
    other = 0.5 * own
    # Correlations of half the image are a quarter; those of the second block are four times larger.
    squares = np.mean((0.75 * np.asarray(gram(own))) ** 2)
    assert float(style.loss(params, other, rows)) == pytest.approx(
        float(squares * (weights[0] + 16 * weights[1])), rel=1e-5
    )
    gradient = jax.grad(lambda image: style.loss(params, image, rows))(other)
    stepped = style.loss(params, other - 0.1 * gradient, rows)
    assert stepped < style.loss(params, other, rows)
