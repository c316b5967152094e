"""BERT's encoder: bidirectional, post-LayerNorm, learned positions, exact gelu (MiniLM: width 384,
6 layers).

Parameters are named as in the published files: ``encoder.layer.0.attention.self.query.weight`` is
``encoder/layer/0/attention/self/query/kernel`` here. The published class has a pooler, which is
left out here: sentence encoders average the states instead. Every token has type 0, for a single
sentence.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from emu_jax.nn.attention import Attend, attend, key_mask, merge_heads, split_heads
from emu_jax.nn.layers import LayerNorm, Table, linear


class Bert(nnx.Module):
    """From token ids and their mask to the last hidden states. The mask is True for tokens that may
    be attended to."""

    def __init__(
        self,
        *,
        vocabulary: int = 30522,
        width: int = 384,
        layers: int = 6,
        heads: int = 12,
        feed_forward: int = 1536,
        positions: int = 512,
        token_types: int = 2,
        eps: float = 1e-12,
        attend: Attend = attend,
        rngs: nnx.Rngs,
    ):
        self.embeddings = Embeddings(vocabulary, width, positions, token_types, eps, rngs=rngs)
        self.encoder = Encoder(width, layers, heads, feed_forward, eps, attend, rngs=rngs)

    def __call__(
        self, ids: Int[Array, "b l"], mask: Bool[Array, "b l"]
    ) -> Float[Array, "b l width"]:
        return self.encoder(self.embeddings(ids), mask)


class Embeddings(nnx.Module):
    def __init__(
        self,
        vocabulary: int,
        width: int,
        positions: int,
        token_types: int,
        eps: float,
        *,
        rngs: nnx.Rngs,
    ):
        self.word_embeddings = Table(vocabulary, width, rngs=rngs)
        self.position_embeddings = Table(positions, width, rngs=rngs)
        self.token_type_embeddings = Table(token_types, width, rngs=rngs)
        self.LayerNorm = LayerNorm(width, eps=eps, rngs=rngs)

    def __call__(self, ids: Int[Array, "b l"]) -> Float[Array, "b l width"]:
        x = self.word_embeddings(ids)
        x += self.position_embeddings(jnp.arange(ids.shape[1]))
        x += self.token_type_embeddings(jnp.zeros_like(ids))
        return self.LayerNorm(x)


class Encoder(nnx.Module):
    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        feed_forward: int,
        eps: float,
        attend: Attend,
        *,
        rngs: nnx.Rngs,
    ):
        self.layer = nnx.List(
            Layer(width, heads, feed_forward, eps, attend, rngs=rngs) for _ in range(layers)
        )

    def __call__(
        self, x: Float[Array, "b l width"], mask: Bool[Array, "b l"]
    ) -> Float[Array, "b l width"]:
        for layer in self.layer:
            x = layer(x, mask)
        return x


class Layer(nnx.Module):
    def __init__(
        self,
        width: int,
        heads: int,
        feed_forward: int,
        eps: float,
        attend: Attend,
        *,
        rngs: nnx.Rngs,
    ):
        self.attention = Attention(width, heads, eps, attend, rngs=rngs)
        self.intermediate = Dense(width, feed_forward, rngs=rngs)
        self.output = Residual(feed_forward, width, eps, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b l width"], mask: Bool[Array, "b l"]
    ) -> Float[Array, "b l width"]:
        x = self.attention(x, mask)
        hidden = jax.nn.gelu(self.intermediate.dense(x), approximate=False)
        return self.output(hidden, x)


class Attention(nnx.Module):
    def __init__(self, width: int, heads: int, eps: float, attend: Attend, *, rngs: nnx.Rngs):
        # The public files call this attribute so.
        self.self = Projections(width, rngs=rngs)
        self.output = Residual(width, width, eps, rngs=rngs)
        self.heads = heads
        self.attend = attend

    def __call__(
        self, x: Float[Array, "b l width"], mask: Bool[Array, "b l"]
    ) -> Float[Array, "b l width"]:
        q = split_heads(self.self.query(x), self.heads)
        k = split_heads(self.self.key(x), self.heads)
        v = split_heads(self.self.value(x), self.heads)
        return self.output(merge_heads(self.attend(q, k, v, key_mask(mask))), x)


class Projections(nnx.Module):
    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.query = linear(width, width, rngs=rngs)
        self.key = linear(width, width, rngs=rngs)
        self.value = linear(width, width, rngs=rngs)


class Dense(nnx.Module):
    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.dense = linear(inputs, outputs, rngs=rngs)


class Residual(nnx.Module):
    """LayerNorm(residual + dense(x))."""

    def __init__(self, inputs: int, outputs: int, eps: float, *, rngs: nnx.Rngs):
        self.dense = linear(inputs, outputs, rngs=rngs)
        self.LayerNorm = LayerNorm(outputs, eps=eps, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b l i"], residual: Float[Array, "b l o"]
    ) -> Float[Array, "b l o"]:
        return self.LayerNorm(self.dense(x) + residual)
