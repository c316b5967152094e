"""PixArt's denoiser (Chen et al. 2023, "PixArt-alpha", and 2024, "PixArt-Sigma"): a transformer
over the patches of a latent map, with cross-attention to a text.

    pos_embed           patch embedding, plus sinusoids of the patches' positions
    transformer_blocks  self-attention, cross-attention to the text, MLP
    proj_out            back to patches

Structured and named as diffusers' PixArtTransformer2DModel. One linear map W conditions all blocks
on the timestep ("AdaLN-single"): it gives six vectors from the timestep embedding e, to which each
block adds its own table,

    (shift, scale, gate, shift', scale', gate') = W silu(e) + table                        (1)
    x + gate f(norm(x) (1 + scale) + shift)                                                (2)

with (2) for self-attention and, with the other three vectors, for the MLP. Cross-attention stands
between them as a plain residual branch. Norms have no parameters.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from emu_jax.errors import UserError
from emu_jax.nn.attention import Attend, Attention, attend
from emu_jax.nn.diffusion_transformer import require_patches, unpatched
from emu_jax.nn.embeddings import TimestepEmbedding, sinusoids
from emu_jax.nn.layers import conv, linear, normalized
from emu_jax.nn.stack import Constrain, Gather, Stack
from emu_jax.nn.transformer import FeedForward, Gelu

_TIME_FEATURES = 256
_EPS = 1e-6

Positions = Float[Array, "b n d"]


class PixArt(nnx.Module):
    """``pixart(x, timestep, context, mask)`` -> the network's output, of x's height and width.

    Positions along a side are numbered from 0 to ``span``, whatever their number: 32 for all
    published sizes from 512 pixels on.

    ``scan``, ``remat`` and ``gather`` change how it is computed, not what:
    :mod:`emu_jax.nn.stack`.
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
                f"A pixart takes no vector, but the conditioner gives one of width {vector_width}; "
                "leave out pooled text, and sizes by conditioner.size_features=0."
            )
        if width % heads or width % 4:
            raise UserError(
                f"The pixart's width is {width}; use a multiple of 4, for the position sinusoids, "
                f"and of its {heads} heads."
            )
        self.patch, self.span, self.constrain = patch, span, constrain
        self.pos_embed = nnx.Dict(
            proj=conv(in_channels, width, patch, stride=patch, padding=(0, 0), rngs=rngs)
        )
        self.adaln_single: Any = nnx.Dict(
            emb=nnx.Dict(timestep_embedder=TimestepEmbedding(_TIME_FEATURES, width, rngs=rngs)),
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
        timestep: Float[Array, " b"],
        context: Float[Array, "b l d"],
        mask: Bool[Array, "b l"] | None = None,
        vector: None = None,
    ) -> Float[Array, "b h w o"]:
        """``timestep`` is an integer in 0..999; ``mask`` says which tokens are attended to; h and w
        are multiples of the patch."""
        b, h, w, _ = x.shape
        require_patches(h, w, self.patch)
        features = sinusoids(timestep, _TIME_FEATURES).astype(x.dtype)
        time = self.adaln_single.emb.timestep_embedder(features)
        conditioning = self.adaln_single.linear(jax.nn.silu(time)).reshape(b, 6, -1)
        text = self.caption_projection(context)

        y = self.pos_embed.proj(x)
        rows, columns, width = y.shape[1:]
        y = (y + positions(rows, columns, width, self.span).astype(y.dtype)).reshape(b, -1, width)
        y = self.transformer_blocks(self.constrain(y), conditioning, text, mask)

        shift, scale = jnp.split(self.scale_shift_table[...] + time[:, None], 2, axis=1)
        y = self.proj_out(normalized(y, _EPS) * (1 + scale) + shift)
        return unpatched(y.reshape(b, rows, columns, -1), self.patch)


class Block(nnx.Module):
    """One layer: equation (2), x + cross-attention to the text, equation (2)."""

    def __init__(self, width: int, heads: int, attend: Attend, *, rngs: nnx.Rngs):
        def attention() -> Attention:
            return Attention(width, heads, width // heads, bias=True, attend=attend, rngs=rngs)

        self.scale_shift_table = _table(6, width, rngs)
        self.attn1, self.attn2 = attention(), attention()
        self.ff = FeedForward(width, inner=Gelu, rngs=rngs)

    def __call__(
        self,
        x: Positions,
        conditioning: Float[Array, "b 6 d"],
        text: Float[Array, "b l d"],
        mask: Bool[Array, "b l"] | None,
    ) -> Positions:
        parts = jnp.split(self.scale_shift_table[...] + conditioning, 6, axis=1)
        x = _branch(x, self.attn1, *parts[:3])
        x = x + self.attn2(x, text, mask)
        return _branch(x, self.ff, *parts[3:])


def _branch(x: Positions, f: nnx.Module, shift: Array, scale: Array, gate: Array) -> Positions:
    """Equation (2)."""
    return x + gate * f(normalized(x, _EPS) * (1 + scale) + shift)


def _table(rows: int, width: int, rngs: nnx.Rngs) -> nnx.Param:
    return nnx.Param(nnx.initializers.normal(width**-0.5)(rngs.params(), (rows, width)))


def positions(
    rows: int, columns: int, width: int, span: float
) -> Float[Array, "{rows} {columns} {width}"]:
    """Sinusoids [sin, cos]: half of the vector from the column's number, half from the row's."""

    def features(count: int) -> np.ndarray:
        number = np.arange(count) * (span / count)
        angles = number[:, None] * 10_000.0 ** (-np.arange(width // 4) / (width // 4))
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)

    size = (rows, columns, width // 2)
    x = jnp.broadcast_to(features(columns)[None], size)
    y = jnp.broadcast_to(features(rows)[:, None], size)
    return jnp.concatenate([x, y], axis=-1)
