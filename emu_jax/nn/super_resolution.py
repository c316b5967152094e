"""Muse's second transformer: tokens of a large picture from those of a small one, and the text.

The small picture's tokens pass a trunk of their own; the large one's positions then attend to what
comes out of it and to the text, one after the other in one context.

64 x 64 positions are too many to all attend to each other. In multi-axis attention (Zhao et al.
2021) half of the heads look within blocks of s x s neighbours, and the other half along the grid of
every (side / s)-th position both ways, so that two layers connect any two positions.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from emu_jax.errors import UserError
from emu_jax.nn.attention import Attend, attend
from emu_jax.nn.embeddings import TimestepEmbedding
from emu_jax.nn.stack import Constrain, Gather
from emu_jax.nn.token_transformer import TokenHead, TokenStem
from emu_jax.nn.trunk import trunk


def multi_axis(block: int, attend: Attend = attend) -> Attend:
    """``attend(q, k, v, None)`` over a square map's positions, blocks of ``block`` a side."""

    def attend_both(
        q: Float[Array, "b n h d"],
        k: Float[Array, "b n h d"],
        v: Float[Array, "b n h d"],
        mask: Array | None = None,
    ) -> Float[Array, "b n h d"]:
        assert mask is None, "all positions of a map may be seen"
        side, heads = math.isqrt(q.shape[1]), q.shape[2]
        if side**2 != q.shape[1] or side % block or heads % 2:
            raise UserError(
                f"Multi-axis attention takes square maps whose side {block} divides, and an even "
                f"number of heads, not {q.shape[1]} positions and {heads} heads."
            )

        def over(half: slice, split: Callable, join: Callable) -> Array:
            parts = [split(x[:, :, half], block) for x in (q, k, v)]
            return join(attend(parts[0], parts[1], parts[2], None), q.shape[0], side, block)

        near = over(slice(0, heads // 2), _blocks, _from_blocks)
        far = over(slice(heads // 2, heads), _grids, _from_grids)
        return jnp.concatenate([near, far], axis=2)

    return attend_both


def _blocks(x: Float[Array, "b n h d"], block: int) -> Float[Array, "b*g s*s h d"]:
    """Neighbours side by side: one row a block."""
    b, n, *rest = x.shape
    count = math.isqrt(n) // block
    x = x.reshape(b, count, block, count, block, *rest).swapaxes(2, 3)
    return x.reshape(b * count**2, block**2, *rest)


def _from_blocks(x: Array, b: int, side: int, block: int) -> Float[Array, "b n h d"]:
    count, rest = side // block, x.shape[2:]
    x = x.reshape(b, count, count, block, block, *rest).swapaxes(2, 3)
    return x.reshape(b, side**2, *rest)


def _grids(x: Float[Array, "b n h d"], block: int) -> Float[Array, "b*g s*s h d"]:
    """Positions that lie side / block apart: one row for each offset."""
    b, n, *rest = x.shape
    step = math.isqrt(n) // block
    x = jnp.moveaxis(x.reshape(b, block, step, block, step, *rest), (2, 4), (1, 2))
    return x.reshape(b * step**2, block**2, *rest)


def _from_grids(x: Array, b: int, side: int, block: int) -> Float[Array, "b n h d"]:
    step, rest = side // block, x.shape[2:]
    x = jnp.moveaxis(x.reshape(b, step, step, block, block, *rest), (1, 2), (2, 4))
    return x.reshape(b, side**2, *rest)


class SuperResolutionTransformer(nnx.Module):
    """Maps of ``side`` x ``side`` tokens given ones of ``low_side`` x ``low_side``.

    The text's states are ``width`` wide already (the conditioner's business). ``vector_width``: the
    large picture's trunk is told a vector (pooled text) by AdaLN.
    """

    def __init__(
        self,
        *,
        codes: int,
        side: int,
        low_codes: int,
        low_side: int,
        width: int,
        depth: int,
        low_depth: int,
        heads: int,
        mlp_width: int,
        block: int,
        context_width: int,
        vector_width: int | None = None,
        remat: str = "none",
        attend: Attend = attend,
        constrain: Constrain = lambda x: x,
        gather: Gather | None = None,
        rngs: nnx.Rngs,
    ):
        if context_width != width:
            raise UserError(
                f"The text's states are {context_width} wide, and are read beside tokens' of "
                f"{width}: set conditioner.width to the transformer's."
            )
        common: dict[str, Any] = dict(
            width=width,
            heads=heads,
            mlp_width=mlp_width,
            remat=remat,
            attend=attend,
            constrain=constrain,
            gather=gather,
            rngs=rngs,
        )
        self.low_stem = TokenStem(low_codes, low_side, width, rngs=rngs)
        self.low_trunk = trunk(**common, depth=low_depth, context_width=None)
        self.stem = TokenStem(codes, side, width, rngs=rngs)
        self.vector = TimestepEmbedding(vector_width, width, rngs=rngs) if vector_width else None
        self.trunk = trunk(
            **common,
            depth=depth,
            context_width=width,
            told_width=width if vector_width else None,
            self_attend=multi_axis(block, attend),
        )
        self.head = TokenHead(codes, width, rngs=rngs)

    def __call__(
        self,
        x: Int[Array, "b h w"],
        t: Float[Array, " b"],
        context: Float[Array, "b l d"],
        mask: Bool[Array, "b l"],
        vector: Float[Array, "b p"] | None = None,
        *,
        low: Int[Array, "b h2 w2"],
    ) -> Float[Array, "b h w k"]:
        """Logits of the large picture's tokens. ``t`` is not looked at, as by TokenTransformer."""
        told = None
        if self.vector is not None:
            assert vector is not None, "this transformer was built to be told a vector"
            told = jax.nn.silu(self.vector(vector))
        low_states = self.low_stem(low)
        b, _, _, d = low_states.shape
        low_states = self.low_trunk(low_states.reshape(b, -1, d))
        context = jnp.concatenate([low_states, context], axis=1)
        mask = jnp.pad(mask, ((0, 0), (low_states.shape[1], 0)), constant_values=True)
        y = self.stem(x)
        return self.head(self.trunk(y.reshape(b, -1, d), context, mask, told).reshape(y.shape))
