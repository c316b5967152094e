"""Multi-head attention, softmax(q k^T / sqrt(head width)) v, in the two forms of U-Nets.

``Attention`` takes keys and values from its input or from a context. ``AddedKVAttention``, for
pixel diffusion, is one attention over the keys and values of the text followed by those of the
image.

The attention product is an argument, so that a sharded or fused implementation can replace the
plain one: ``attend(q, k, v, mask)``, with a bool mask that broadcasts to [b, heads, n, m]. Only T5
adds a bias to the logits, as a fifth argument.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from emu_jax.nn.layers import GroupNorm, linear

Attend = Callable[[Array, Array, Array, Array | None], Array]
BiasedAttend = Callable[[Array, Array, Array, Array | None, Array], Array]


def attend(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    mask: Bool[Array, "#b #h #n m"] | None = None,
    bias: Float[Array, "#b h n m"] | None = None,
) -> Float[Array, "b n h d"]:
    """Attention with XLA's own operations; logits and softmax are in fp32."""
    return jax.nn.dot_product_attention(q, k, v, bias=bias, mask=mask)


def split_heads(x: Float[Array, "b n c"], heads: int) -> Float[Array, "b n {heads} c//{heads}"]:
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def merge_heads(x: Float[Array, "b n h d"]) -> Float[Array, "b n h*d"]:
    return x.reshape(*x.shape[:-2], -1)


def key_mask(mask: Bool[Array, "b m"] | None) -> Bool[Array, "b 1 1 m"] | None:
    """Which keys may be attended to, in the shape that ``attend`` takes."""
    return None if mask is None else mask[:, None, None, :]


class Attention(nnx.Module):
    """Self-attention, or cross-attention if ``context_width`` is given."""

    def __init__(
        self,
        width: int,
        heads: int,
        head_width: int,
        *,
        context_width: int | None = None,
        bias: bool = False,
        out_bias: bool = True,
        attend: Attend = attend,
        rngs: nnx.Rngs,
    ):
        inner = heads * head_width
        self.heads, self.attend = heads, attend
        self.to_q = linear(width, inner, bias=bias, rngs=rngs)
        self.to_k = linear(context_width or width, inner, bias=bias, rngs=rngs)
        self.to_v = linear(context_width or width, inner, bias=bias, rngs=rngs)
        self.to_out = nnx.List([linear(inner, width, bias=out_bias, rngs=rngs)])

    def __call__(
        self,
        x: Float[Array, "b n c"],
        context: Float[Array, "b m d"] | None = None,
        mask: Bool[Array, "b m"] | None = None,
    ) -> Float[Array, "b n c"]:
        """``mask`` says which of the m keys may be attended to."""
        source = x if context is None else context
        q = split_heads(self.to_q(x), self.heads)
        k = split_heads(self.to_k(source), self.heads)
        v = split_heads(self.to_v(source), self.heads)
        return self.to_out[0](merge_heads(self.attend(q, k, v, key_mask(mask))))

    def received(self, x: Float[Array, "b n c"]) -> Float[Array, "b n"]:
        """How much attention each token gets in self-attention: the mean over heads of the sum over
        queries, 1 on average.
        """
        q, k = split_heads(self.to_q(x), self.heads), split_heads(self.to_k(x), self.heads)
        logits = jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits * q.shape[-1] ** -0.5, axis=-1)
        return weights.mean(1).sum(1)


class AddedKVAttention(nnx.Module):
    """A residual block on a feature map: x + attention of the pixels over text and pixels.

    ``only_cross_attention`` leaves out the keys of the pixels. ``context_norm`` first normalizes
    the text, in groups of channels over all tokens.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        head_width: int,
        *,
        context_width: int,
        groups: int,
        only_cross_attention: bool = False,
        context_norm: bool = False,
        attend: Attend = attend,
        rngs: nnx.Rngs,
    ):
        inner = heads * head_width
        self.heads, self.attend = heads, attend
        self.group_norm = GroupNorm(channels, groups, rngs=rngs)
        self.norm_cross = GroupNorm(context_width, rngs=rngs) if context_norm else None
        self.to_q = linear(channels, inner, rngs=rngs)
        self.to_k = None if only_cross_attention else linear(channels, inner, rngs=rngs)
        self.to_v = None if only_cross_attention else linear(channels, inner, rngs=rngs)
        self.add_k_proj = linear(context_width, inner, rngs=rngs)
        self.add_v_proj = linear(context_width, inner, rngs=rngs)
        self.to_out = nnx.List([linear(inner, channels, zero=True, rngs=rngs)])

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        context: Float[Array, "b l d"],
        mask: Bool[Array, "b l"] | None = None,
    ) -> Float[Array, "b h w c"]:
        """``mask`` says which of the l text tokens may be attended to; pixels always are."""
        b, h, w, c = x.shape
        y = self.group_norm(x).reshape(b, h * w, c)
        if self.norm_cross is not None:
            context = self.norm_cross(context)
        k, v = self.add_k_proj(context), self.add_v_proj(context)
        if self.to_k is not None and self.to_v is not None:
            k = jnp.concatenate([k, self.to_k(y)], axis=1)
            v = jnp.concatenate([v, self.to_v(y)], axis=1)
            if mask is not None:
                mask = jnp.pad(mask, ((0, 0), (0, h * w)), constant_values=True)
        q, k, v = (split_heads(z, self.heads) for z in (self.to_q(y), k, v))
        y = self.to_out[0](merge_heads(self.attend(q, k, v, key_mask(mask))))
        return x + y.reshape(b, h, w, c)
