"""The diffusion transformer: what a fresh one says, what it looks at and costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.errors import UserError
from emu_jax.nn.diffusion_transformer import DiffusionTransformer, _patches, unpatched
from emu_jax.nn.functional import Network
from emu_jax.planning.flops import count_flops

SIZES = dict(in_channels=3, out_channels=3, patch=2, width=16, depth=2, heads=2, mlp_width=32)
RNG = np.random.default_rng(0)


def network(**changes) -> Network:
    sizes = SIZES | dict(context_width=6) | changes
    return Network(lambda rngs: DiffusionTransformer(**sizes, rngs=rngs))


def stirred(made: Network) -> dict:
    """Parameters none of which is zero."""
    return {
        path: RNG.normal(size=x.shape, scale=0.3).astype(np.float32)
        for path, x in made.shapes().items()
    }


X = RNG.normal(size=(2, 8, 4, 3)).astype(np.float32)
T = np.array([0.1, 0.7], np.float32)
TEXT = RNG.normal(size=(2, 5, 6)).astype(np.float32)
MASK = np.array([[1] * 5, [1, 1, 0, 0, 0]], bool)


def test_patches_come_back_as_they_were():
    np.testing.assert_array_equal(unpatched(_patches(jnp.asarray(X), 2), 2), X)
    # A patch is a square of neighbours, not a piece of a row.
    np.testing.assert_array_equal(_patches(jnp.asarray(X), 2)[0, 1, 0], X[0, 2:4, :2].reshape(-1))


def test_a_fresh_one_says_zero():
    made = network()
    assert not jnp.any(made(made.init(jax.random.key(0)), X, T, TEXT, MASK))


def test_timestep_text_and_positions_count_and_masked_tokens_do_not():
    made = network()
    params = stirred(made)
    said = made(params, X, T, TEXT, MASK)
    assert said.shape == X.shape
    assert not np.allclose(made(params, X, T + 0.1, TEXT, MASK), said)
    other = TEXT.copy()
    other[1, 2:] += 1
    np.testing.assert_allclose(made(params, X, T, other, MASK), said, atol=1e-5)
    other[:, 0] += 1
    assert not np.allclose(made(params, X, T, other, MASK), said)
    # Without places, a map of patches moved round would give the answer moved round.
    moved = made(params, np.roll(X, 2, axis=1), T, TEXT, MASK)
    assert not np.allclose(moved, np.roll(said, 2, axis=1), atol=1e-3)


def test_a_vector_and_a_level_condition_it():
    made = network(vector_width=4, level=True)
    params, vector = stirred(made), RNG.normal(size=(2, 4)).astype(np.float32)
    said = made(params, X, T, TEXT, MASK, vector, level=T)
    assert not np.allclose(made(params, X, T, TEXT, MASK, vector + 1, level=T), said)
    assert not np.allclose(made(params, X, T, TEXT, MASK, vector, level=T + 1), said)
    with pytest.raises(UserError, match="needs a vector"):
        made(params, X, T, TEXT, MASK)


def test_what_it_costs():
    """Per position: attention's projections, the products with positions and text, the MLP."""
    made = network(depth=3)
    b, n, m, d, text, hidden = 2, 8, 5, 16, 6, 32
    layer = 2 * n * (4 * d * d + 2 * n * d) + 2 * (n * 2 * d * d + m * 2 * text * d + 2 * n * m * d)
    layer += 2 * n * 2 * d * hidden + 2 * d * 6 * d
    ends = 2 * n * 2 * (4 * 3 * d) + 2 * (256 * d + d * d) + 2 * d * 2 * d
    assert count_flops(made, made.shapes(), X, T, TEXT, MASK) == b * (3 * layer + ends)


@pytest.mark.parametrize(
    "changes, x, words",
    [
        (dict(width=18), X, "multiple of 4"),
        (dict(), X[:, :3], "3 x 4 does not divide into patches of 2 x 2"),
    ],
)
def test_refuses_what_cannot_be(changes, x, words):
    with pytest.raises(UserError, match=words):
        made = network(**changes)
        made(stirred(made), x, T, TEXT, MASK)
