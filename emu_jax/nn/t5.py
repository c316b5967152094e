"""The encoder of T5 v1.1 (Raffel et al. 2020, arXiv:1910.10683; gated gelu: Shazeer 2020,
arXiv:2002.05202). XXL, the default here, is 4096 x 24 with 64 heads of 64: 4.8 B parameters.

Pre-RMSNorm, no biases. There are no position embeddings: every layer adds the same bias to its
logits, one number per head and bucket of relative position, from a table in layer 0. Logits are not
divided by sqrt(head width), because the initialization included this factor. Parameters are named
as in the published files.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from emu_jax.nn.attention import BiasedAttend, attend, key_mask, merge_heads, split_heads
from emu_jax.nn.layers import RMSNorm, Table, linear


class T5Encoder(nnx.Module):
    """From token ids and their mask to the last hidden states. The mask is True for tokens that may
    be attended to."""

    def __init__(
        self,
        *,
        vocabulary: int = 32128,
        width: int = 4096,
        layers: int = 24,
        heads: int = 64,
        head_width: int = 64,
        feed_forward: int = 10240,
        buckets: int = 32,
        max_distance: int = 128,
        eps: float = 1e-6,
        attend: BiasedAttend = attend,
        rngs: nnx.Rngs,
    ):
        self.max_distance = max_distance
        self.shared = Table(vocabulary, width, rngs=rngs)
        self.encoder = EncoderStack(
            [
                Block(
                    AttentionLayer(
                        SelfAttention(
                            width, heads, head_width, 0 if i else buckets, attend, rngs=rngs
                        ),
                        RMSNorm(width, eps=eps, rngs=rngs),
                    ),
                    FeedForwardLayer(
                        GatedGelu(width, feed_forward, rngs=rngs),
                        RMSNorm(width, eps=eps, rngs=rngs),
                    ),
                )
                for i in range(layers)
            ],
            RMSNorm(width, eps=eps, rngs=rngs),
        )

    def __call__(
        self, ids: Int[Array, "b l"], mask: Bool[Array, "b l"]
    ) -> Float[Array, "b l width"]:
        return self.encoder(self.shared(ids), mask, self.max_distance)


def relative_buckets(length: int, buckets: int, max_distance: int) -> Int[np.ndarray, "l l"]:
    """The bucket of each (query, key), from key - query: exact if small, then logarithmic.

    Half of the buckets are for keys after the query. In each half, the first half are the distances
    0, 1, 2, ...; the second half grow logarithmically up to ``max_distance``, and all larger
    distances share the last bucket.
    """
    offset = np.arange(length)[None, :] - np.arange(length)[:, None]
    half = buckets // 2
    exact = half // 2
    distance = np.abs(offset)
    # In fp32, as in training: at the edge of a bucket the result depends on rounding.
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    steps = ratio / np.float32(math.log(max_distance / exact)) * np.float32(half - exact)
    far = np.minimum(exact + steps.astype(np.int32), half - 1)
    return np.where(offset > 0, half, 0) + np.where(distance < exact, distance, far)


class EncoderStack(nnx.Module):
    def __init__(self, blocks: "list[Block]", norm: RMSNorm):
        self.block = nnx.List(blocks)
        self.final_layer_norm = norm

    def __call__(
        self, x: Float[Array, "b l width"], mask: Bool[Array, "b l"], max_distance: int
    ) -> Float[Array, "b l width"]:
        bias = self.block[0].layer[0].SelfAttention.bias(x.shape[1], max_distance)
        for block in self.block:
            x = block(x, mask, bias)
        return self.final_layer_norm(x)


class Block(nnx.Module):
    def __init__(self, attention: "AttentionLayer", feed_forward: "FeedForwardLayer"):
        self.layer: nnx.List[Any] = nnx.List([attention, feed_forward])

    def __call__(
        self,
        x: Float[Array, "b l width"],
        mask: Bool[Array, "b l"],
        bias: Float[Array, "1 h l l"],
    ) -> Float[Array, "b l width"]:
        return self.layer[1](self.layer[0](x, mask, bias))


class AttentionLayer(nnx.Module):
    def __init__(self, attention: "SelfAttention", norm: RMSNorm):
        self.SelfAttention = attention
        self.layer_norm = norm

    def __call__(
        self,
        x: Float[Array, "b l width"],
        mask: Bool[Array, "b l"],
        bias: Float[Array, "1 h l l"],
    ) -> Float[Array, "b l width"]:
        return x + self.SelfAttention(self.layer_norm(x), mask, bias)


class SelfAttention(nnx.Module):
    """With ``buckets`` 0 it has no table of relative positions."""

    def __init__(
        self,
        width: int,
        heads: int,
        head_width: int,
        buckets: int,
        attend: BiasedAttend,
        *,
        rngs: nnx.Rngs,
    ):
        inner = heads * head_width
        self.q = linear(width, inner, bias=False, rngs=rngs)
        self.k = linear(width, inner, bias=False, rngs=rngs)
        self.v = linear(width, inner, bias=False, rngs=rngs)
        self.o = linear(inner, width, bias=False, rngs=rngs)
        self.relative_attention_bias = Table(buckets, heads, rngs=rngs) if buckets else None
        self.heads, self.buckets, self.attend = heads, buckets, attend
        self.unscale = math.sqrt(head_width)

    def bias(self, length: int, max_distance: int) -> Float[Array, "1 h l l"]:
        assert self.relative_attention_bias is not None
        buckets = relative_buckets(length, self.buckets, max_distance)
        return self.relative_attention_bias(jnp.asarray(buckets)).transpose(2, 0, 1)[None]

    def __call__(
        self,
        x: Float[Array, "b l width"],
        mask: Bool[Array, "b l"],
        bias: Float[Array, "1 h l l"],
    ) -> Float[Array, "b l width"]:
        # ``attend`` divides by sqrt(head width), which T5 does not; for a head width of 64 the
        # factor is 8, exact in any dtype.
        q = split_heads(self.q(x) * self.unscale, self.heads)
        k, v = split_heads(self.k(x), self.heads), split_heads(self.v(x), self.heads)
        return self.o(merge_heads(self.attend(q, k, v, key_mask(mask), bias)))


class FeedForwardLayer(nnx.Module):
    def __init__(self, dense: "GatedGelu", norm: RMSNorm):
        self.DenseReluDense = dense
        self.layer_norm = norm

    def __call__(self, x: Float[Array, "b l width"]) -> Float[Array, "b l width"]:
        return x + self.DenseReluDense(self.layer_norm(x))


class GatedGelu(nnx.Module):
    """(gelu(x W0) * (x W1)) Wo, with the tanh form of gelu."""

    def __init__(self, width: int, feed_forward: int, *, rngs: nnx.Rngs):
        self.wi_0 = linear(width, feed_forward, bias=False, rngs=rngs)
        self.wi_1 = linear(width, feed_forward, bias=False, rngs=rngs)
        self.wo = linear(feed_forward, width, bias=False, rngs=rngs)

    def __call__(self, x: Float[Array, "b l width"]) -> Float[Array, "b l width"]:
        return self.wo(jax.nn.gelu(self.wi_0(x), approximate=True) * self.wi_1(x))
