"""Muse's super-resolution transformer: from the tokens of a low-resolution image and a text to the
tokens of a high-resolution image.

The low-resolution tokens pass a trunk of their own. The high-resolution positions then attend to
its output and to the text, concatenated to one context.

Full self-attention over 64 x 64 positions is too expensive. In multi-axis attention (Zhao et al.
2021) half of the heads attend within blocks of s x s neighbors, and the other half along the grid
of every (side / s)-th position on both axes, so that two layers connect any two positions.
"""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from emu_jax.errors import UserError
from emu_jax.nn.attention import Attend, attend
from emu_jax.nn.embeddings import TimestepEmbedding
from emu_jax.nn.stack import Constrain, Gather
from emu_jax.nn.token_transformer import TokenHead, TokenStem, vector_conditioning
from emu_jax.nn.trunk import trunk


def multi_axis(block: int, attend: Attend = attend) -> Attend:
    """``attend(q, k, v, None)`` over the positions of a square map, in blocks of ``block`` x
    ``block`` and their grids.
    """

    def attend_both(
        q: Float[Array, "b n h d"],
        k: Float[Array, "b n h d"],
        v: Float[Array, "b n h d"],
        mask: Array | None = None,
    ) -> Float[Array, "b n h d"]:
        assert mask is None, "multi-axis attention takes no mask"
        side, heads = math.isqrt(q.shape[1]), q.shape[2]
        if side**2 != q.shape[1] or side % block or heads % 2:
            raise UserError(
                f"Multi-axis attention cannot use {q.shape[1]} positions and {heads} heads; it "
                f"needs a square map, a side that is a multiple of {block}, and an even number of "
                "heads."
            )

        def over(half: slice, split: Callable, join: Callable) -> Array:
            parts = [split(x[:, :, half], block) for x in (q, k, v)]
            return join(attend(parts[0], parts[1], parts[2], None), q.shape[0], side, block)

        near = over(slice(0, heads // 2), _blocks, _from_blocks)
        far = over(slice(heads // 2, heads), _grids, _from_grids)
        return jnp.concatenate([near, far], axis=2)

    return attend_both


def _blocks(
    x: Float[Array, "b n h d"], block: int
) -> Float[Array, "b*n//{block}**2 {block}**2 h d"]:
    """Groups neighbors: one row per block."""
    b, n, *rest = x.shape
    count = math.isqrt(n) // block
    x = x.reshape(b, count, block, count, block, *rest).swapaxes(2, 3)
    return x.reshape(b * count**2, block**2, *rest)


def _from_blocks(x: Array, b: int, side: int, block: int) -> Float[Array, "b n h d"]:
    count, rest = side // block, x.shape[2:]
    x = x.reshape(b, count, count, block, block, *rest).swapaxes(2, 3)
    return x.reshape(b, side**2, *rest)


def _grids(
    x: Float[Array, "b n h d"], block: int
) -> Float[Array, "b*n//{block}**2 {block}**2 h d"]:
    """Groups positions that lie side / block apart: one row per offset."""
    b, n, *rest = x.shape
    step = math.isqrt(n) // block
    x = jnp.moveaxis(x.reshape(b, block, step, block, step, *rest), (2, 4), (1, 2))
    return x.reshape(b * step**2, block**2, *rest)


def _from_grids(x: Array, b: int, side: int, block: int) -> Float[Array, "b n h d"]:
    step, rest = side // block, x.shape[2:]
    x = jnp.moveaxis(x.reshape(b, step, step, block, block, *rest), (1, 2), (2, 4))
    return x.reshape(b, side**2, *rest)


class SuperResolutionTransformer(nnx.Module):
    """Logits of ``side`` x ``side`` tokens, given ``low_side`` x ``low_side`` tokens.

    The text's states must be ``width`` wide; the conditioner projects them. With ``vector_width`` a
    vector (pooled text) conditions the high-resolution trunk by AdaLN.
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
                f"The text's states are {context_width} wide and the tokens' are {width}, but they "
                f"form one context; set conditioner.width to {width}."
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
            conditioning_width=width if vector_width else None,
            self_attend=multi_axis(block, attend),
        )
        self.head = TokenHead(codes, width, rngs=rngs)

    def __call__(
        self,
        x: Int[Array, "b h w"],
        timestep: Float[Array, " b"],
        context: Float[Array, "b l d"],
        mask: Bool[Array, "b l"],
        vector: Float[Array, "b p"] | None = None,
        *,
        low: Int[Array, "b h2 w2"],
    ) -> Float[Array, "b h w k"]:
        """Logits of the high-resolution tokens; ``low`` holds the low-resolution tokens.
        ``timestep`` is ignored, as by TokenTransformer.
        """
        conditioning = vector_conditioning(self.vector, vector)
        low_states = self.low_stem(low)
        b, _, _, d = low_states.shape
        low_states = self.low_trunk(low_states.reshape(b, -1, d))
        context = jnp.concatenate([low_states, context], axis=1)
        mask = jnp.pad(mask, ((0, 0), (low_states.shape[1], 0)), constant_values=True)
        y = self.stem(x)
        y = self.trunk(y.reshape(b, -1, d), context, mask, conditioning).reshape(y.shape)
        return self.head(y)
