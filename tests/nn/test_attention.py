"""Attention against torch's, and its two wrappings against their definition."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx

from emu_jax.nn.attention import AddedKVAttention, Attention, attend
from emu_jax.nn.embeddings import AttentionPooling

RNG = np.random.default_rng(0)


def draw(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, np.float32)


def torch_attend(q, k, v, mask=None):
    q, k, v = (torch.tensor(np.asarray(x)).transpose(1, 2) for x in (q, k, v))
    mask = None if mask is None else torch.tensor(np.asarray(mask))
    return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).numpy()


@pytest.mark.parametrize("masked", [False, True])
def test_attend_equals_torch(masked: bool):
    q, k, v = draw(2, 5, 3, 8), draw(2, 7, 3, 8), draw(2, 7, 3, 8)
    mask = np.array([[1] * 7, [1, 0, 0, 1, 1, 0, 1]], bool)[:, None, None] if masked else None
    np.testing.assert_allclose(attend(q, k, v, mask), torch_attend(q, k, v, mask), atol=1e-5)


def test_attend_has_its_softmax_in_fp32():
    """Among 4,096 equal keys a bf16 sum of weights would stop growing at 256."""
    q = jnp.zeros((1, 1, 1, 8), jnp.bfloat16)
    k = jnp.zeros((1, 4096, 1, 8), jnp.bfloat16)
    v = jnp.ones((1, 4096, 1, 8), jnp.bfloat16)
    y = attend(q, k, v)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), 1, atol=0.01)


def test_an_attend_is_given_heads_last_but_one_and_a_mask_that_broadcasts():
    given = {}

    def spy(q, k, v, mask):
        given.update(q=q.shape, k=k.shape, v=v.shape, mask=mask.shape)
        return attend(q, k, v, mask)

    module = Attention(12, 3, 4, context_width=6, attend=spy, rngs=nnx.Rngs(0))
    y = module(draw(2, 5, 12), draw(2, 7, 6), np.ones((2, 7), bool))
    assert y.shape == (2, 5, 12)
    assert given == dict(q=(2, 5, 3, 4), k=(2, 7, 3, 4), v=(2, 7, 3, 4), mask=(2, 1, 1, 7))


def heads(module, x, n):
    y = module(x)
    return y.reshape(*y.shape[:-1], n, -1)


@pytest.mark.parametrize("only_cross", [False, True])
def test_added_kv_attention_sees_the_text_then_the_pixels(only_cross: bool):
    module = AddedKVAttention(
        32, 2, 8, context_width=6, groups=4, only_cross_attention=only_cross, rngs=nnx.Rngs(0)
    )
    module.to_out[0].kernel[...] = draw(16, 32)
    x, context = draw(2, 3, 3, 32), draw(2, 5, 6)
    mask = np.array([[1] * 5, [1, 1, 0, 0, 0]], bool)
    y = module.group_norm(jnp.asarray(x)).reshape(2, 9, 32)
    k, v = heads(module.add_k_proj, context, 2), heads(module.add_v_proj, context, 2)
    seen = mask
    if not only_cross:
        k = np.concatenate([k, heads(module.to_k, y, 2)], 1)
        v = np.concatenate([v, heads(module.to_v, y, 2)], 1)
        seen = np.concatenate([mask, np.ones((2, 9), bool)], 1)
    out = torch_attend(heads(module.to_q, y, 2), k, v, seen[:, None, None]).reshape(2, 9, 16)
    expected = x + np.asarray(module.to_out[0](out)).reshape(x.shape)
    np.testing.assert_allclose(module(x, context, mask), expected, atol=1e-4)


def test_pooling_ignores_masked_tokens():
    module = AttentionPooling(8, 2, rngs=nnx.Rngs(0))
    x = draw(2, 5, 8)
    short = module(x[:, :3])
    mask = np.arange(5)[None] < np.array([[3], [3]])
    np.testing.assert_allclose(module(x, mask), short, atol=1e-6)
    assert np.abs(module(x) - short).max() > 1e-3
