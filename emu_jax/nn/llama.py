"""The decoder of LLaMA (Touvron et al. 2023, arXiv:2302.13971; grouped keys: Ainslie et al. 2023,
arXiv:2305.13245), up to the final norm: a language model's states, without its logits.

Pre-RMSNorm, no biases, SwiGLU, causal attention with rotary positions (Su et al. 2021,
arXiv:2104.09864). A head is rotated in pairs of channels (i, i + half), as in the files of
transformers, not (2 i, 2 i + 1). Parameters are named as in these files; the blocks are one scanned
stack.

                  width  blocks  heads  key heads  feed-forward  vocabulary  parameters
    SmolLM2-135M    576      30      9          3          1536       49152       134 M
    LLaMA 7B       4096      32     32         32         11008       32000       6.6 B  (6.7 with
    LLaMA 13B      5120      40     40         40         13824       32000      12.9 B  the untied
    LLaMA 33B      6656      60     52         52         17920       32000      32.3 B  output)
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int

from emu_jax.errors import UserError
from emu_jax.nn.attention import Attend, attend, merge_heads, split_heads
from emu_jax.nn.layers import RMSNorm, Table, linear
from emu_jax.nn.stack import Constrain, Gather, Stack, drawn


class Llama(nnx.Module):
    """From token ids and their mask to the residual stream. The mask is True for tokens that may be
    attended to; padding may be on either side.
    """

    def __init__(
        self,
        *,
        vocabulary: int = 32000,
        width: int = 4096,
        layers: int = 32,
        heads: int = 32,
        key_heads: int = 32,
        head_width: int = 128,
        feed_forward: int = 11008,
        rope_base: float = 1e4,
        eps: float = 1e-6,
        attend: Attend = attend,
        constrain: Constrain = lambda x: x,
        gather: Gather | None = None,
        rngs: nnx.Rngs,
    ):
        if heads % key_heads:
            raise UserError(f"{heads} heads do not divide into {key_heads} groups, one a key head.")
        if head_width % 2:
            raise UserError(
                f"Heads of width {head_width} have no pairs to rotate; use even widths."
            )
        self.head_width, self.rope_base = head_width, rope_base
        self.embed_tokens = Table(vocabulary, width, rngs=rngs)
        block = partial(
            *(Block, width, heads, key_heads, head_width, feed_forward, eps),
            attend=attend,
        )
        self.layers = Stack(
            drawn(lambda rngs: block(rngs=rngs), layers, rngs=rngs),
            constrain=constrain,
            gather=gather,
        )
        self.norm = RMSNorm(width, eps=eps, rngs=rngs)
        self.constrain = constrain

    def __call__(
        self,
        ids: Int[Array, "b l"],
        mask: Bool[Array, "b l"],
        layers: Sequence[int],
        pool: Callable[[Array], Array] = lambda x: x,
    ) -> tuple[Float[Array, "k b ..."], Float[Array, "b l width"]]:
        """(``pool`` of the residual stream after each block of ``layers``, the last block's after
        the final norm). All blocks are pooled before ``layers`` are chosen from them.
        """
        length = ids.shape[1]
        cos, sin = rotation(length, self.head_width, self.rope_base)
        allowed = jnp.tri(length, dtype=bool)[None, None] & mask[:, None, None]
        x = self.constrain(self.embed_tokens(ids))
        x, streams = self.layers.trace(pool, x, allowed, cos, sin)
        return streams[np.asarray(layers)], self.norm(x)


def rotation(
    length: int, head_width: int, base: float
) -> tuple[Float32[np.ndarray, "l d"], Float32[np.ndarray, "l d"]]:
    """Cosine and sine of position x base^(-2 i / head_width), i < d = head_width / 2."""
    # In fp32, as in training and in transformers.
    exponent = np.arange(0, head_width, 2, dtype=np.float32) / np.float32(head_width)
    angle = np.arange(length, dtype=np.float32)[:, None] / np.float32(base) ** exponent
    return np.cos(angle), np.sin(angle)


def rotate(
    x: Float[Array, "b l h w"], cos: Float[Array, "l d"], sin: Float[Array, "l d"]
) -> Float[Array, "b l h w"]:
    """Rotates channels (i, i + w / 2) of every head by its position's angle i."""
    cos, sin = (z[:, None].astype(x.dtype) for z in (cos, sin))
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class Block(nnx.Module):
    def __init__(
        self,
        width: int,
        heads: int,
        key_heads: int,
        head_width: int,
        feed_forward: int,
        eps: float,
        *,
        attend: Attend,
        rngs: nnx.Rngs,
    ):
        self.input_layernorm = RMSNorm(width, eps=eps, rngs=rngs)
        self.self_attn = SelfAttention(width, heads, key_heads, head_width, attend, rngs=rngs)
        self.post_attention_layernorm = RMSNorm(width, eps=eps, rngs=rngs)
        self.mlp = SwiGlu(width, feed_forward, rngs=rngs)

    def __call__(self, x: Float[Array, "b l width"], *rest: Any) -> Float[Array, "b l width"]:
        x = x + self.self_attn(self.input_layernorm(x), *rest)
        return x + self.mlp(self.post_attention_layernorm(x))


class SelfAttention(nnx.Module):
    """Groups of ``heads / key_heads`` neighboring heads share the key and value of one key head."""

    def __init__(
        self,
        width: int,
        heads: int,
        key_heads: int,
        head_width: int,
        attend: Attend,
        *,
        rngs: nnx.Rngs,
    ):
        self.q_proj = linear(width, heads * head_width, bias=False, rngs=rngs)
        self.k_proj = linear(width, key_heads * head_width, bias=False, rngs=rngs)
        self.v_proj = linear(width, key_heads * head_width, bias=False, rngs=rngs)
        self.o_proj = linear(heads * head_width, width, bias=False, rngs=rngs)
        self.heads, self.key_heads, self.attend = heads, key_heads, attend

    def __call__(
        self,
        x: Float[Array, "b l width"],
        allowed: Bool[Array, "b 1 l l"],
        cos: Float[Array, "l d"],
        sin: Float[Array, "l d"],
    ) -> Float[Array, "b l width"]:
        q = rotate(split_heads(self.q_proj(x), self.heads), cos, sin)
        k = rotate(split_heads(self.k_proj(x), self.key_heads), cos, sin)
        v = split_heads(self.v_proj(x), self.key_heads)
        k, v = (jnp.repeat(z, self.heads // self.key_heads, axis=2) for z in (k, v))
        return self.o_proj(merge_heads(self.attend(q, k, v, allowed)))


class SwiGlu(nnx.Module):
    """(silu(x W_gate) * (x W_up)) W_down (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, width: int, feed_forward: int, *, rngs: nnx.Rngs):
        self.gate_proj = linear(width, feed_forward, bias=False, rngs=rngs)
        self.up_proj = linear(width, feed_forward, bias=False, rngs=rngs)
        self.down_proj = linear(feed_forward, width, bias=False, rngs=rngs)

    def __call__(self, x: Float[Array, "b l width"]) -> Float[Array, "b l width"]:
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))
