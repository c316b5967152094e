"""Stable Diffusion 3's denoiser (Esser et al. 2024, "MMDiT"): two streams, patches of a latent map
and a text's tokens, each with weights of its own, which meet in one attention.

    pos_embed           patches, plus a table of their places
    time_text_embed     a vector c of time and pooled text
    context_embedder    tokens to the width of patches
    transformer_blocks  in each stream, from the six vectors W silu(c):

                            x + gate f(norm(x) (1 + scale) + shift)                        (1)

                        of attention over both streams' keys and of an MLP
    proj_out            back to patches

Structured and named as diffusers' SD3Transformer2DModel. Of the last block only the patches go on.
Norms have no parameters but those of queries and keys.
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
from emu_jax.nn.layers import RMSNorm, conv, linear, normalised
from emu_jax.nn.pixart import places
from emu_jax.nn.stack import Constrain, Gather, Stack
from emu_jax.nn.transformer import FeedForward, Gelu

_TIME_INPUTS = 256
_EPS = 1e-6

Positions = Float[Array, "b n d"]
Text = Float[Array, "b l d"]
Seen = Bool[Array, "b l"] | None  # which of the text's tokens may be attended to


class MMDiT(nnx.Module):
    """``mmdit(x, t, context, context_mask, vector)`` -> the network's output, as large as x.

    The table of places has ``table`` rows and columns, of which a smaller map takes the middle. It
    starts as sines of places that are numbered up to ``span`` and does not learn, but is among the
    published weights and so a parameter: leave it out of what an optimiser updates. ``qk_norm``: an
    RMSNorm on queries and keys, head by head.

    How it is computed (``scan``, ``remat``): :mod:`emu_jax.nn.stack`.
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
            raise UserError("An mmdit is told a vector: give a text encoder's pooled vector.")
        if width % heads or width % 4:
            raise UserError(
                f"An mmdit's width is a multiple of 4, for the sines of its places, and of its "
                f"{heads} heads; {width} is not."
            )
        self.patch, self.table, self.constrain = patch, table, constrain
        sines = places(table, table, width, span).reshape(1, table**2, width)
        self.pos_embed: Any = nnx.Dict(
            proj=conv(in_channels, width, patch, stride=patch, padding=(0, 0), rngs=rngs),
            pos_embed=nnx.Param(sines),
        )
        self.time_text_embed = nnx.Dict(
            timestep_embedder=TimestepEmbedding(_TIME_INPUTS, width, rngs=rngs),
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
        t: Float[Array, " b"],
        context: Float[Array, "b l d"],
        context_mask: Seen,
        vector: Float[Array, "b p"],
    ) -> Float[Array, "b h w o"]:
        """``t`` is what the network is told of the time (0 to 1000), ``context_mask`` says which
        tokens are real; h and w are multiples of the patch."""
        time = self.time_text_embed.timestep_embedder(sinusoids(t, _TIME_INPUTS).astype(x.dtype))
        told = jax.nn.silu(time + self.time_text_embed.text_embedder(vector.astype(x.dtype)))
        text = self.constrain(self.context_embedder(context))
        y = self._patches(x)
        b, rows, columns, width = y.shape
        both = self.constrain(y.reshape(b, rows * columns, width)), text
        y, _ = self.transformer_blocks(both, told, context_mask)
        scale, shift = jnp.split(self.norm_out.linear(told)[:, None], 2, axis=-1)
        y = self.proj_out(normalised(y, _EPS) * (1 + scale) + shift)
        return unpatched(y.reshape(b, rows, columns, -1), self.patch)

    def _patches(self, x: Float[Array, "b h w c"]) -> Float[Array, "b r c d"]:
        """With their places, the middle of the table."""
        _, h, w, _ = x.shape
        rows, columns = h // self.patch, w // self.patch
        if h % self.patch or w % self.patch or max(rows, columns) > self.table:
            raise UserError(
                f"A map of {h} x {w} is not of patches of {self.patch} x {self.patch}, at most "
                f"{self.table} of them along a side."
            )
        table = jax.lax.stop_gradient(self.pos_embed.pos_embed[...])
        table = table.reshape(self.table, self.table, -1)
        top, left = (self.table - rows) // 2, (self.table - columns) // 2
        return self.pos_embed.proj(x) + table[top : top + rows, left : left + columns]


class Block(nnx.Module):
    """One layer of both streams; the ``last`` leaves the text as it is once it was attended to."""

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
        self, both: tuple[Positions, Text], told: Float[Array, "b d"], mask: Seen
    ) -> tuple[Positions, Text]:
        x, text = both
        shift, scale, gate, *mlp = jnp.split(self.norm1.linear(told)[:, None], 6, axis=-1)
        by = self.norm1_context.linear(told)[:, None]
        seen = normalised(x, _EPS) * (1 + scale) + shift
        if self.ff_context is None:
            scale, shift = jnp.split(by, 2, axis=-1)
            read = normalised(text, _EPS) * (1 + scale) + shift
            return _mlp(x + gate * self.attn(seen, read, mask)[0], self.ff, *mlp), text
        shift, scale, text_gate, *text_mlp = jnp.split(by, 6, axis=-1)
        read = normalised(text, _EPS) * (1 + scale) + shift
        of_x, of_text = self.attn(seen, read, mask)
        return (
            _mlp(x + gate * of_x, self.ff, *mlp),
            _mlp(text + text_gate * of_text, self.ff_context, *text_mlp),
        )


def _mlp(x: Positions, f: FeedForward, shift: Array, scale: Array, gate: Array) -> Positions:
    """Equation (1)."""
    return x + gate * f(normalised(x, _EPS) * (1 + scale) + shift)


class JointAttention(nnx.Module):
    """Both streams' queries over both streams' keys. Of the ``last`` block no text comes out: its
    text's queries are among the published weights, and are not asked.
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

    def __call__(self, x: Positions, text: Text, mask: Seen) -> tuple[Positions, Any]:
        def heads(of: Array, dense: nnx.Linear, norm: RMSNorm | None = None) -> Array:
            split = split_heads(dense(of), self.heads)
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
