"""Multi-head attention, softmax(q k^T / sqrt(head width)) v, in the two forms U-Nets use.

``Attention`` takes keys and values from itself or from a context. ``AddedKVAttention`` is pixel
diffusion's: one attention over the text's keys and values followed by the picture's own.
The product itself is a callable that is handed in, so that a sharded or fused one can take the
plain one's place: ``attend(q, k, v, mask)`` with mask bool, broadcastable to [b, heads, n, m]. T5
alone adds a bias to the logits, as a fifth argument.
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
    """Attention by XLA's own operations, logits and softmax in fp32."""
    return jax.nn.dot_product_attention(q, k, v, bias=bias, mask=mask)


def split_heads(x: Float[Array, "b n c"], heads: int) -> Float[Array, "b n {heads} c//{heads}"]:
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def merge_heads(x: Float[Array, "b n h d"]) -> Float[Array, "b n h*d"]:
    return x.reshape(*x.shape[:-2], -1)


def key_mask(mask: Bool[Array, "b m"] | None) -> Bool[Array, "b 1 1 m"] | None:
    """Which keys may be seen, in the shape ``attend`` takes."""
    return None if mask is None else mask[:, None, None, :]


class Attention(nnx.Module):
    """Self-attention, or cross-attention where ``context_width`` is given."""

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
        """``mask`` says which of the m keys may be seen."""
        source = x if context is None else context
        q = split_heads(self.to_q(x), self.heads)
        k = split_heads(self.to_k(source), self.heads)
        v = split_heads(self.to_v(source), self.heads)
        return self.to_out[0](merge_heads(self.attend(q, k, v, key_mask(mask))))


class AddedKVAttention(nnx.Module):
    """A residual block on a feature map: x + attention of the pixels over text and pixels.

    ``only_cross_attention`` leaves the pixels' own keys out; ``context_norm`` normalises the text
    (groups of channels, over all tokens) first.
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
        """``mask`` says which of the l text tokens may be seen; pixels always are."""
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
