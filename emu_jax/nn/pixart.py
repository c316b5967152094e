"""PixArt's denoiser (Chen et al. 2023, "PixArt-alpha", and 2024, "PixArt-Sigma"): patches of a
latent map through a stack of transformer blocks that read a text.

    pos_embed           patches, plus sines of their places
    transformer_blocks  self-attention, attention to the text, MLP
    proj_out            back to patches

Structured and named as diffusers' PixArtTransformer2DModel. All blocks are told the time by one map
("AdaLN-single"): from its embedding e come six vectors, to which each block adds its own table,

    (shift, scale, gate, shift', scale', gate') = W silu(e) + table                        (1)
    x + gate f(norm(x) (1 + scale) + shift)                                                (2)

of self-attention and, with the other three, of the MLP. Attention to the text stands between them
plain. Norms have no parameters.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from emu_jax.errors import UserError
from emu_jax.nn.attention import Attend, Attention, attend
from emu_jax.nn.diffusion_transformer import unpatched
from emu_jax.nn.embeddings import TimestepEmbedding, sinusoids
from emu_jax.nn.layers import conv, linear, normalised
from emu_jax.nn.stack import Constrain, Gather, Stack
from emu_jax.nn.transformer import FeedForward, Gelu

_TIME_INPUTS = 256
_EPS = 1e-6

Positions = Float[Array, "b n d"]


class PixArt(nnx.Module):
    """``pixart(x, t, context, context_mask)`` -> the network's output, of x's height and width.

    ``span`` is what places along a side are numbered up to, however many there are: 32 for all
    published sizes from 512 pixels on.

    How it is computed (``scan``, ``remat``): :mod:`emu_jax.nn.stack`.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        context_width: int,
        vector_width: int | None = None,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        span: float,
        scan: bool = False,
        remat: str = "none",
        attend: Attend = attend,
        constrain: Constrain = lambda x: x,
        gather: Gather | None = None,
        rngs: nnx.Rngs,
    ):
        if vector_width:
            raise UserError(
                "A pixart reads a text's tokens alone: leave out pooled vectors and, by "
                "conditioner.size_features=0, sizes."
            )
        if width % heads or width % 4:
            raise UserError(
                f"A pixart's width is a multiple of 4, for the sines of its places, and of its "
                f"{heads} heads; {width} is not."
            )
        self.patch, self.span, self.constrain = patch, span, constrain
        self.pos_embed = nnx.Dict(
            proj=conv(in_channels, width, patch, stride=patch, padding=(0, 0), rngs=rngs)
        )
        self.adaln_single: Any = nnx.Dict(
            emb=nnx.Dict(timestep_embedder=TimestepEmbedding(_TIME_INPUTS, width, rngs=rngs)),
            linear=linear(width, 6 * width, rngs=rngs),
        )
        self.caption_projection = TimestepEmbedding(
            context_width, width, act="gelu_tanh", rngs=rngs
        )
        blocks = [Block(width, heads, attend, rngs=rngs) for _ in range(depth)]
        self.transformer_blocks = Stack(
            blocks, scan=scan, remat=remat, gather=gather, constrain=constrain
        )
        self.scale_shift_table = _table(2, width, rngs)
        self.proj_out = linear(width, patch**2 * out_channels, zero=True, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        t: Float[Array, " b"],
        context: Float[Array, "b l d"],
        context_mask: Bool[Array, "b l"] | None = None,
        vector: None = None,
    ) -> Float[Array, "b h w o"]:
        """``t`` is what the network is told of the time (integers 0..999), ``context_mask`` says
        which tokens are real; h and w are multiples of the patch."""
        b, h, w, _ = x.shape
        if h % self.patch or w % self.patch:
            p = self.patch
            raise UserError(f"A map of {h} x {w} does not divide into patches of {p} x {p}.")
        time = self.adaln_single.emb.timestep_embedder(sinusoids(t, _TIME_INPUTS).astype(x.dtype))
        told = self.adaln_single.linear(jax.nn.silu(time)).reshape(b, 6, -1)
        text = self.caption_projection(context)

        y = self.pos_embed.proj(x)
        rows, columns, width = y.shape[1:]
        y = (y + places(rows, columns, width, self.span).astype(y.dtype)).reshape(b, -1, width)
        y = self.transformer_blocks(self.constrain(y), told, text, context_mask)

        shift, scale = jnp.split(self.scale_shift_table[...] + time[:, None], 2, axis=1)
        y = self.proj_out(normalised(y, _EPS) * (1 + scale) + shift)
        return unpatched(y.reshape(b, rows, columns, -1), self.patch)


class Block(nnx.Module):
    """One layer: (2), x + attention to the text, (2)."""

    def __init__(self, width: int, heads: int, attend: Attend, *, rngs: nnx.Rngs):
        def attention() -> Attention:
            return Attention(width, heads, width // heads, bias=True, attend=attend, rngs=rngs)

        self.scale_shift_table = _table(6, width, rngs)
        self.attn1, self.attn2 = attention(), attention()
        self.ff = FeedForward(width, inner=Gelu, rngs=rngs)

    def __call__(
        self,
        x: Positions,
        told: Float[Array, "b 6 d"],
        text: Float[Array, "b l d"],
        mask: Bool[Array, "b l"] | None,
    ) -> Positions:
        by = jnp.split(self.scale_shift_table[...] + told, 6, axis=1)
        x = _branch(x, self.attn1, *by[:3])
        x = x + self.attn2(x, text, mask)
        return _branch(x, self.ff, *by[3:])


def _branch(x: Positions, f: nnx.Module, shift: Array, scale: Array, gate: Array) -> Positions:
    """Equation (2)."""
    return x + gate * f(normalised(x, _EPS) * (1 + scale) + shift)


def _table(rows: int, width: int, rngs: nnx.Rngs) -> nnx.Param:
    return nnx.Param(nnx.initializers.normal(width**-0.5)(rngs.params(), (rows, width)))


def places(rows: int, columns: int, width: int, span: float) -> Float[Array, "r c {width}"]:
    """Half of the vector from the column's number, half from the row's, [sin, cos] each."""

    def sines(count: int) -> np.ndarray:
        number = np.arange(count) * (span / count)
        angles = number[:, None] * 10_000.0 ** (-np.arange(width // 4) / (width // 4))
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)

    size = (rows, columns, width // 2)
    across = jnp.broadcast_to(sines(columns)[None], size)
    down = jnp.broadcast_to(sines(rows)[:, None], size)
    return jnp.concatenate([across, down], axis=-1)
