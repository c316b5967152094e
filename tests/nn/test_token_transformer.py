"""The token transformer's ends, and the sizes of Muse's base model."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.errors import UserError
from emu_jax.nn.functional import Network, subtree
from emu_jax.nn.token_transformer import TokenTransformer
from emu_jax.nn.trunk import trunk

CODES, SIDE, WIDTH = 5, 4, 8
SIZES = dict(width=WIDTH, depth=2, heads=2, mlp_width=16, context_width=6)


def make(**more):
    arguments = dict(codes=CODES, side=SIDE, **SIZES) | more
    return Network(lambda rngs: TokenTransformer(**arguments, rngs=rngs))


NETWORK = make()
PARAMS = jax.jit(NETWORK.init)(jax.random.key(0))
TEXT = jax.random.normal(jax.random.key(1), (2, 3, 6))
SEEN = jnp.ones((2, 3), bool)
TOKENS = jax.random.randint(jax.random.key(2), (2, 3, 4), 0, CODES + 1)  # Masks among them.


@jax.jit
def run(tokens, t=0.0):
    return NETWORK(PARAMS, tokens, jnp.full(2, t), TEXT, SEEN)


def test_stem_trunk_and_head_are_what_they_are_called():
    """Tables, the trunk of its own tests, and a LayerNorm with a projection."""
    p = {path: np.asarray(value) for path, value in PARAMS.items()}
    rows, columns = p["stem/places/rows/embedding"], p["stem/places/columns/embedding"]
    x = p["stem/tokens/embedding"][TOKENS] + rows[:3, None] + columns[None, :4]
    middle = Network(lambda rngs: trunk(**SIZES, rngs=rngs))
    y = jax.jit(middle)(subtree(PARAMS, "trunk"), x.reshape(2, 12, WIDTH), TEXT, SEEN, None)
    y = np.asarray(y).reshape(2, 3, 4, WIDTH)
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
    y = y * p["head/norm/scale"] + p["head/norm/bias"]
    logits = y @ p["head/proj/kernel"] + p["head/proj/bias"]
    np.testing.assert_allclose(run(TOKENS), logits, atol=1e-4)
    assert logits.shape == (2, 3, 4, CODES)


def test_the_timestep_is_ignored():
    np.testing.assert_array_equal(run(TOKENS), run(TOKENS, 1.0))


def test_a_vector_conditions_by_modulation():
    network = make(vector_width=3)
    params = jax.jit(network.init)(jax.random.key(0))
    path = "trunk/blocks_scan/modulation/kernel"
    params[path] = jax.random.normal(jax.random.key(3), params[path].shape)
    call = jax.jit(lambda vector: network(params, TOKENS, jnp.zeros(2), TEXT, SEEN, vector))
    one, other = call(jnp.ones((2, 3))), call(jnp.zeros((2, 3)))
    assert np.max(np.abs(one - other)) > 1e-3


def test_a_map_beyond_the_positions_is_refused():
    with pytest.raises(UserError, match="2 x 5 tokens exceeds the 4 x 4 positions"):
        jax.eval_shape(run, jax.ShapeDtypeStruct((2, 2, 5), jnp.int32))


def test_muses_base_model_has_its_parameters():
    """Each layer's 8 attention matrices, MLP, biases of outputs and norms; tokens, places, head."""
    d, layers, mlp, codes = 2048, 48, 8192, 8192
    layer = 8 * d * d + 2 * d * mlp + (2 * d + mlp + d) + 3 * 2 * d
    ends = (codes + 1) * d + 2 * 16 * d + 2 * d + (d + 1) * codes
    big = make(
        codes=codes, side=16, width=d, depth=layers, heads=16, mlp_width=mlp, context_width=d
    )
    assert sum(math.prod(s.shape) for s in big.shapes().values()) == layers * layer + ends
    assert layers * layer + ends == pytest.approx(3.26e9, rel=0.01)
