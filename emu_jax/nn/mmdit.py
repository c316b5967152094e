"""Stable Diffusion 3's denoiser (Esser et al. 2024, "MMDiT"): two streams, the patches of a latent
map and the tokens of a text, each with its own weights, joined in one attention.

    pos_embed           patch embedding, plus a table of position embeddings
    time_text_embed     a vector c of timestep and pooled text
    context_embedder    tokens to the width of the patches
    transformer_blocks  in each stream, with the six vectors W silu(c),

                            x + gate f(norm(x) (1 + scale) + shift)                        (1)

                        for attention over the keys of both streams and for an MLP
    proj_out            back to patches

Structured and named as diffusers' SD3Transformer2DModel. Only the patches of the last block's
output are used. Norms have no parameters, except those of queries and keys.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from emu_jax.errors import UserError
from emu_jax.nn.attention import Attend, attend, key_mask, merge_heads, split_heads
from emu_jax.nn.diffusion_transformer import unpatched
from emu_jax.nn.embeddings import TimestepEmbedding, sinusoids
from emu_jax.nn.layers import RMSNorm, conv, linear, normalized
from emu_jax.nn.pixart import positions
from emu_jax.nn.stack import Constrain, Gather, Stack
from emu_jax.nn.transformer import FeedForward, Gelu

_TIME_FEATURES = 256
_EPS = 1e-6

Positions = Float[Array, "b n d"]
Text = Float[Array, "b l d"]
Mask = Bool[Array, "b l"] | None  # which of the text's tokens may be attended to


class MMDiT(nnx.Module):
    """``mmdit(x, timestep, context, mask, vector)`` -> the network's output, as large as x.

    The table of position embeddings has ``table`` rows and columns, of which a smaller map uses the
    middle. It starts as sinusoids of positions that are numbered from 0 to ``span``, and it does
    not train. The published weights contain it, so it is a parameter: exclude it from the
    optimizer's updates. ``qk_norm`` applies an RMSNorm to the queries and keys of each head.

    ``scan``, ``remat`` and ``gather`` change how it is computed, not what:
    :mod:`emu_jax.nn.stack`.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        context_width: int,
        vector_width: int | None,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        table: int,
        span: float,
        qk_norm: bool = False,
        scan: bool = False,
        remat: str = "none",
        attend: Attend = attend,
        constrain: Constrain = lambda x: x,
        gather: Gather | None = None,
        rngs: nnx.Rngs,
    ):
        if not vector_width:
            raise UserError(
                "An mmdit needs a vector, but the conditioner gives none; use a text encoder with "
                "a pooled vector."
            )
        if width % heads or width % 4:
            raise UserError(
                f"The mmdit's width is {width}; use a multiple of 4, for the position sinusoids, "
                f"and of its {heads} heads."
            )
        self.patch, self.table, self.constrain = patch, table, constrain
        sinusoid_table = positions(table, table, width, span).reshape(1, table**2, width)
        self.pos_embed: Any = nnx.Dict(
            proj=conv(in_channels, width, patch, stride=patch, padding=(0, 0), rngs=rngs),
            pos_embed=nnx.Param(sinusoid_table),
        )
        self.time_text_embed = nnx.Dict(
            timestep_embedder=TimestepEmbedding(_TIME_FEATURES, width, rngs=rngs),
            text_embedder=TimestepEmbedding(vector_width, width, rngs=rngs),
        )
        self.context_embedder = linear(context_width, width, rngs=rngs)
        *blocks, last = (
            Block(width, heads, qk_norm, i == depth - 1, attend, rngs=rngs) for i in range(depth)
        )
        self.transformer_blocks = Stack(
            blocks, scan=scan, last=last, remat=remat, gather=gather, constrain=constrain
        )
        self.norm_out = nnx.Dict(linear=linear(width, 2 * width, rngs=rngs))
        self.proj_out = linear(width, patch**2 * out_channels, zero=True, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        timestep: Float[Array, " b"],
        context: Float[Array, "b l d"],
        mask: Mask,
        vector: Float[Array, "b p"],
    ) -> Float[Array, "b h w o"]:
        """``timestep`` is from 0 to 1000; ``mask`` says which tokens are attended to; h and w are
        multiples of the patch."""
        features = sinusoids(timestep, _TIME_FEATURES).astype(x.dtype)
        time = self.time_text_embed.timestep_embedder(features)
        pooled = self.time_text_embed.text_embedder(vector.astype(x.dtype))
        conditioning = jax.nn.silu(time + pooled)
        text = self.constrain(self.context_embedder(context))
        y = self._patches(x)
        b, rows, columns, width = y.shape
        both = self.constrain(y.reshape(b, rows * columns, width)), text
        y, _ = self.transformer_blocks(both, conditioning, mask)
        scale, shift = jnp.split(self.norm_out.linear(conditioning)[:, None], 2, axis=-1)
        y = self.proj_out(normalized(y, _EPS) * (1 + scale) + shift)
        return unpatched(y.reshape(b, rows, columns, -1), self.patch)

    def _patches(self, x: Float[Array, "b h w c"]) -> Float[Array, "b rows columns d"]:
        """The patch embeddings plus their positions, the middle of the table."""
        _, h, w, _ = x.shape
        rows, columns = h // self.patch, w // self.patch
        if h % self.patch or w % self.patch or max(rows, columns) > self.table:
            raise UserError(
                f"A map of {h} x {w} does not fit this network; it must divide into patches of "
                f"{self.patch} x {self.patch}, at most {self.table} of them along a side."
            )
        table = jax.lax.stop_gradient(self.pos_embed.pos_embed[...])
        table = table.reshape(self.table, self.table, -1)
        top, left = (self.table - rows) // 2, (self.table - columns) // 2
        return self.pos_embed.proj(x) + table[top : top + rows, left : left + columns]


class Block(nnx.Module):
    """One layer of both streams. The ``last`` one attends to the text and does not update it."""

    def __init__(
        self,
        width: int,
        heads: int,
        qk_norm: bool,
        last: bool,
        attend: Attend,
        *,
        rngs: nnx.Rngs,
    ):
        self.norm1 = nnx.Dict(linear=linear(width, 6 * width, rngs=rngs))
        self.norm1_context = nnx.Dict(linear=linear(width, (2 if last else 6) * width, rngs=rngs))
        self.attn = JointAttention(width, heads, qk_norm, last, attend, rngs=rngs)
        self.ff = FeedForward(width, inner=Gelu, rngs=rngs)
        self.ff_context = None if last else FeedForward(width, inner=Gelu, rngs=rngs)

    def __call__(
        self, both: tuple[Positions, Text], conditioning: Float[Array, "b d"], mask: Mask
    ) -> tuple[Positions, Text]:
        x, text = both
        shift, scale, gate, *mlp = jnp.split(self.norm1.linear(conditioning)[:, None], 6, axis=-1)
        modulation = self.norm1_context.linear(conditioning)[:, None]
        x_in = normalized(x, _EPS) * (1 + scale) + shift
        if self.ff_context is None:
            scale, shift = jnp.split(modulation, 2, axis=-1)
            text_in = normalized(text, _EPS) * (1 + scale) + shift
            return _mlp(x + gate * self.attn(x_in, text_in, mask)[0], self.ff, *mlp), text
        shift, scale, text_gate, *text_mlp = jnp.split(modulation, 6, axis=-1)
        text_in = normalized(text, _EPS) * (1 + scale) + shift
        x_out, text_out = self.attn(x_in, text_in, mask)
        return (
            _mlp(x + gate * x_out, self.ff, *mlp),
            _mlp(text + text_gate * text_out, self.ff_context, *text_mlp),
        )


def _mlp(x: Positions, f: FeedForward, shift: Array, scale: Array, gate: Array) -> Positions:
    """Equation (1)."""
    return x + gate * f(normalized(x, _EPS) * (1 + scale) + shift)


class JointAttention(nnx.Module):
    """Queries of both streams over keys of both streams. The ``last`` block gives no text output:
    the published weights contain its text queries, which are not used.
    """

    def __init__(
        self, width: int, heads: int, qk_norm: bool, last: bool, attend: Attend, *, rngs: nnx.Rngs
    ):
        def dense() -> nnx.Linear:
            return linear(width, width, rngs=rngs)

        def norm() -> RMSNorm | None:
            return RMSNorm(width // heads, eps=_EPS, rngs=rngs) if qk_norm else None

        self.heads, self.attend = heads, attend
        self.to_q, self.to_k, self.to_v = dense(), dense(), dense()
        self.norm_q, self.norm_k = norm(), norm()
        self.add_q_proj, self.add_k_proj, self.add_v_proj = dense(), dense(), dense()
        self.norm_added_q, self.norm_added_k = norm(), norm()
        self.to_out = nnx.List([dense()])
        self.to_add_out = None if last else dense()

    def __call__(self, x: Positions, text: Text, mask: Mask) -> tuple[Positions, Any]:
        def heads(y: Array, dense: nnx.Linear, norm: RMSNorm | None = None) -> Array:
            split = split_heads(dense(y), self.heads)
            return split if norm is None else norm(split)

        n = x.shape[1]
        q, k, v = (
            heads(x, self.to_q, self.norm_q),
            heads(x, self.to_k, self.norm_k),
            heads(x, self.to_v),
        )
        k = jnp.concatenate([k, heads(text, self.add_k_proj, self.norm_added_k)], axis=1)
        v = jnp.concatenate([v, heads(text, self.add_v_proj)], axis=1)
        if mask is not None:
            mask = jnp.pad(mask, ((0, 0), (n, 0)), constant_values=True)
        if self.to_add_out is None:
            return self.to_out[0](merge_heads(self.attend(q, k, v, key_mask(mask)))), None
        q = jnp.concatenate([q, heads(text, self.add_q_proj, self.norm_added_q)], axis=1)
        y = merge_heads(self.attend(q, k, v, key_mask(mask)))
        return self.to_out[0](y[:, :n]), self.to_add_out(y[:, n:])
