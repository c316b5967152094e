"""Multi-axis attention against dense attention under its mask; the second transformer's shape."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from emu_jax.errors import UserError
from emu_jax.nn.functional import Network
from emu_jax.nn.super_resolution import SuperResolutionTransformer, multi_axis

SIDE, BLOCK, HEADS = 6, 2, 4


def make(**more):
    sizes = dict(side=SIDE, low_side=3, codes=5, low_codes=7, width=8, depth=2, low_depth=1)
    arguments = sizes | dict(heads=HEADS, mlp_width=12, block=BLOCK) | more
    arguments = dict(context_width=arguments["width"]) | arguments
    return Network(lambda rngs: SuperResolutionTransformer(**arguments, rngs=rngs))


def test_half_the_heads_see_their_block_and_half_their_grid():
    draw = np.random.default_rng(0).normal
    q, k, v = (draw(size=(2, SIDE**2, HEADS, 3)).astype(np.float32) for _ in range(3))
    ours = jax.jit(multi_axis(BLOCK))(q, k, v, None)
    row, column = np.divmod(np.arange(SIDE**2), SIDE)
    block = (row // BLOCK) * SIDE + column // BLOCK
    step = SIDE // BLOCK
    grid = (row % step) * SIDE + column % step
    for heads, kind in ((slice(0, 2), block), (slice(2, 4), grid)):
        seen = torch.tensor(kind[:, None] == kind)
        assert torch.all(seen.sum(1) == BLOCK**2)
        there = [torch.tensor(x[:, :, heads]).transpose(1, 2) for x in (q, k, v)]
        dense = torch.nn.functional.scaled_dot_product_attention(*there, attn_mask=seen)
        np.testing.assert_allclose(ours[:, :, heads], dense.transpose(1, 2), atol=1e-5)


@pytest.mark.parametrize(("positions", "heads"), [(30, 4), (25, 4), (36, 3)])
def test_maps_that_do_not_divide_are_refused(positions, heads):
    q = jax.ShapeDtypeStruct((1, positions, heads, 3), jnp.float32)
    with pytest.raises(UserError, match=f"cannot use {positions} positions and {heads} heads"):
        jax.eval_shape(multi_axis(BLOCK), q, q, q)


def test_every_condition_counts_but_padding():
    network = make()
    params = jax.jit(network.init)(jax.random.key(0))
    key = jax.random.key(1)
    x = jnp.full((1, SIDE, SIDE), 5)
    low, text = jax.random.randint(key, (1, 3, 3), 0, 7), jax.random.normal(key, (1, 4, 8))
    mask = jnp.array([[True, True, False, False]])
    run = jax.jit(lambda low, text: network(params, x, jnp.zeros(1), text, mask, low=low))
    logits = run(low, text)
    assert logits.shape == (1, SIDE, SIDE, 5)
    assert np.max(np.abs(run(low.at[0, 2, 2].add(1) % 7, text) - logits)) > 1e-4
    assert np.max(np.abs(run(low, text.at[0, 1].add(1)) - logits)) > 1e-4
    np.testing.assert_array_equal(run(low, text.at[0, 3].add(1)), logits)


def test_a_vector_conditions_by_modulation():
    network = make(vector_width=3)
    params = jax.jit(network.init)(jax.random.key(0))
    path = "trunk/blocks_scan/modulation/kernel"
    params[path] = jax.random.normal(jax.random.key(3), params[path].shape)
    x, low, text = jnp.full((1, SIDE, SIDE), 5), jnp.zeros((1, 3, 3), int), jnp.ones((1, 4, 8))
    rest = x, jnp.zeros(1), text, jnp.ones((1, 4), bool)
    run = jax.jit(lambda vector: network(params, *rest, vector, low=low))
    assert np.max(np.abs(run(jnp.ones((1, 3))) - run(jnp.zeros((1, 3))))) > 1e-3


def test_texts_of_another_width_are_refused():
    with pytest.raises(UserError, match=r"6 wide .* are 8, .* set conditioner.width to 8"):
        make(context_width=6)


def test_muses_second_model_has_its_parameters():
    """Of 16 layers 4 attention matrices, of 32 layers 8; MLPs, output biases, norms; the ends."""
    d, mlp, codes = 1024, 4096, 8192
    common = 2 * d * mlp + mlp + d
    low = 16 * (4 * d * d + d + common + 2 * 2 * d) + (codes + 1) * d + 2 * 16 * d
    high = 32 * (8 * d * d + 2 * d + common + 3 * 2 * d) + (codes + 1) * d + 2 * 64 * d
    head = 2 * d + (d + 1) * codes
    sizes = dict(side=64, low_side=16, codes=codes, low_codes=codes, width=d, mlp_width=mlp)
    shapes = make(**sizes, depth=32, low_depth=16, heads=16, block=8).shapes()
    assert sum(math.prod(s.shape) for s in shapes.values()) == low + high + head
    assert low + high + head == pytest.approx(0.764e9, rel=0.01)
