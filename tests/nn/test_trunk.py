"""The trunk against torch's own attention and norms, block by block."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from emu_jax.errors import UserError
from emu_jax.nn.functional import Network
from emu_jax.nn.trunk import trunk

WIDTH, HEADS, MLP, CONTEXT, DEPTH = 8, 2, 12, 6, 3
SIZES = dict(width=WIDTH, heads=HEADS, mlp_width=MLP, depth=DEPTH)
DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(2, 5, WIDTH)).astype(np.float32)
TEXT = DRAW.normal(size=(2, 4, CONTEXT)).astype(np.float32)
SEEN = np.array([[1, 1, 1, 1], [1, 1, 0, 0]], bool)
CONDITIONING = DRAW.normal(size=(2, 7)).astype(np.float32)


def make(context_width=CONTEXT, **more):
    return Network(lambda rngs: trunk(**SIZES, context_width=context_width, **more, rngs=rngs))


def drawn(network):
    """Parameters of which none is zero or one."""
    draw = np.random.default_rng(1)
    shapes = network.shapes()
    return {
        path: jnp.asarray(draw.normal(size=s.shape) * 0.3, jnp.float32)
        for path, s in shapes.items()
    }


def by_torch(params, x, text=None, seen=None, conditioning=None):
    """The same stack of torch's modules."""

    def take(name, layer):
        return torch.tensor(np.asarray(params[f"blocks_scan/{name}"][layer]))

    def norm(name, i, y):
        return nn.functional.layer_norm(
            y, (WIDTH,), take(f"{name}/scale", i), take(f"{name}/bias", i)
        )

    def attention(name, i, y, source, mask):
        whole = nn.MultiheadAttention(
            WIDTH, HEADS, kdim=source.shape[-1], vdim=source.shape[-1], batch_first=True
        )
        kernels = [take(f"{name}/to_{k}/kernel", i).T.contiguous() for k in "qkv"]
        state = dict(zip(("q_proj_weight", "k_proj_weight", "v_proj_weight"), kernels, strict=True))
        if source.shape[-1] == WIDTH:
            state = {"in_proj_weight": torch.cat(kernels)}
        state["in_proj_bias"] = torch.zeros(3 * WIDTH)
        state["out_proj.weight"] = take(f"{name}/to_out/0/kernel", i).T
        state["out_proj.bias"] = take(f"{name}/to_out/0/bias", i)
        whole.load_state_dict(state)
        hidden = None if mask is None else ~torch.tensor(mask)
        return whole(y, source, source, key_padding_mask=hidden, need_weights=False)[0]

    y = torch.tensor(x)
    for i in range(DEPTH):
        mods = [(0.0, 0.0, 1.0)] * 2
        if conditioning is not None:
            dense = torch.tensor(conditioning) @ take("modulation/kernel", i)
            dense = dense + take("modulation/bias", i)
            parts = dense[:, None].chunk(6, -1)
            mods = [parts[:3], parts[3:]]
        (shift, scale, gate), last = mods
        z = norm("norm1", i, y) * (1 + scale) + shift
        y = y + gate * attention("attn1", i, z, z, None)
        if text is not None:
            y = y + attention("attn2", i, norm("norm2", i, y), torch.tensor(text), seen)
        shift, scale, gate = last
        z = norm("norm3", i, y) * (1 + scale) + shift
        z = nn.functional.gelu(
            z @ take("mlp/fc1/kernel", i) + take("mlp/fc1/bias", i), approximate="tanh"
        )
        y = y + gate * (z @ take("mlp/fc2/kernel", i) + take("mlp/fc2/bias", i))
    return y.detach().numpy()


@pytest.mark.parametrize("conditioning_width", [None, 7], ids=["plain", "conditioned"])
def test_the_trunk_is_torchs_stack(conditioning_width):
    network = make(conditioning_width=conditioning_width)
    params, conditioning = drawn(network), CONDITIONING if conditioning_width else None
    ours = jax.jit(network)(params, X, TEXT, SEEN, conditioning)
    np.testing.assert_allclose(ours, by_torch(params, X, TEXT, SEEN, conditioning), atol=1e-4)


def test_without_a_text_there_is_self_attention_alone():
    network = make(context_width=None)
    params = drawn(network)
    assert not any("attn2" in path or "norm2" in path for path in params)
    np.testing.assert_allclose(jax.jit(network)(params, X), by_torch(params, X), atol=1e-4)


def test_rematerialization_changes_no_gradient():
    plain, remat = make(), make(remat="block")
    params = drawn(plain)
    slopes = [
        jax.jit(jax.grad(lambda p, n=n: jnp.sum(n(p, X, TEXT, SEEN) ** 2)))(params)
        for n in (plain, remat)
    ]
    for path, slope in slopes[0].items():
        np.testing.assert_allclose(slopes[1][path], slope, rtol=1e-4, atol=1e-5)


def test_a_fresh_conditioned_trunk_does_not_touch_what_it_gates():
    """Zero gates: without a text the trunk is the identity. Each layer starts with its own draw."""
    network = make(context_width=None, conditioning_width=7)
    params = jax.jit(network.init)(jax.random.key(0))
    np.testing.assert_array_equal(jax.jit(network)(params, X, None, None, CONDITIONING), X)
    kernel = params["blocks_scan/mlp/fc1/kernel"]
    assert kernel.shape == (DEPTH, WIDTH, MLP) and not np.array_equal(kernel[0], kernel[1])


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(UserError, match="width 8 is not a multiple of its 3 heads"):
        Network(lambda rngs: trunk(**{**SIZES, "heads": 3}, context_width=None, rngs=rngs))
