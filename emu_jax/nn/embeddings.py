"""Embeddings of numbers (a timestep, a size, a noise level) and of a whole text.

A number t becomes ``width / 2`` cosines and as many sines, with frequencies that fall geometrically
from 1 to 1 / 10,000. The cosines come first, as in all public diffusion checkpoints. A small MLP
follows.
"""

import math

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from emu_jax.nn.attention import Attend, attend, split_heads
from emu_jax.nn.layers import LayerNorm, activation, linear


def sinusoids(t: Float[Array, "*b"], width: int) -> Float[Array, "*b {width}"]:
    """[cos(t f), sin(t f)] in fp32, f_i = 10000^(-2i / width); ``width`` is even."""
    half = width // 2
    frequencies = jnp.exp(-math.log(10_000) / half * jnp.arange(half, dtype=jnp.float32))
    angles = t.astype(jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimestepEmbedding(nnx.Module):
    """Two dense layers with an activation between them."""

    def __init__(
        self, inputs: int, outputs: int, *, act: str = "silu", bias: bool = True, rngs: nnx.Rngs
    ):
        self.linear_1 = linear(inputs, outputs, bias=bias, rngs=rngs)
        self.linear_2 = linear(outputs, outputs, bias=bias, rngs=rngs)
        self.act = activation(act)

    def __call__(self, x: Float[Array, "*b p"]) -> Float[Array, "*b t"]:
        return self.linear_2(self.act(self.linear_1(x)))


class AttentionPooling(nnx.Module):
    """One vector from a sequence: the mean of the tokens attends to itself and to every token."""

    def __init__(self, width: int, heads: int, *, attend: Attend = attend, rngs: nnx.Rngs):
        init = nnx.initializers.normal(width**-0.5)
        self.positional_embedding = nnx.Param(init(rngs.params(), (1, width)))
        self.q_proj = linear(width, width, rngs=rngs)
        self.k_proj = linear(width, width, rngs=rngs)
        self.v_proj = linear(width, width, rngs=rngs)
        self.heads, self.attend = heads, attend

    def __call__(
        self, x: Float[Array, "b l d"], mask: Bool[Array, "b l"] | None = None
    ) -> Float[Array, "b d"]:
        weights = None if mask is None else mask[..., None]
        token = jnp.mean(x, 1, keepdims=True, where=weights)
        token = token + self.positional_embedding[...].astype(x.dtype)
        x = jnp.concatenate([token, x], axis=1)
        q, k, v = (
            split_heads(y, self.heads) for y in (self.q_proj(token), self.k_proj(x), self.v_proj(x))
        )
        if mask is not None:
            mask = jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)[:, None, None, :]
        return self.attend(q, k, v, mask).reshape(token.shape)[:, 0]


class TextTimeEmbedding(nnx.Module):
    """A vector for the timestep embedding: a text's token states, pooled by attention."""

    def __init__(
        self, inputs: int, outputs: int, heads: int, *, attend: Attend = attend, rngs: nnx.Rngs
    ):
        self.norm1 = LayerNorm(inputs, rngs=rngs)
        self.pool = AttentionPooling(inputs, heads, attend=attend, rngs=rngs)
        self.proj = linear(inputs, outputs, rngs=rngs)
        self.norm2 = LayerNorm(outputs, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b l d"], mask: Bool[Array, "b l"] | None = None
    ) -> Float[Array, "b t"]:
        return self.norm2(self.proj(self.pool(self.norm1(x), mask)))
