"""Muse's denoiser: from a map of tokens, some of them masked, to logits of every token.

    stem   token embeddings (one more for [MASK], the number after the last code), plus positions
    trunk  emu_jax.nn.trunk, with cross-attention to the text
    head   LayerNorm and a projection to the codes

Position embeddings are learned, a table of rows and one of columns, so that a smaller or oblong map
has them too.
"""

import jax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from emu_jax.errors import UserError
from emu_jax.nn.attention import Attend, attend
from emu_jax.nn.embeddings import TimestepEmbedding
from emu_jax.nn.layers import LayerNorm, Table, linear
from emu_jax.nn.stack import Constrain, Gather
from emu_jax.nn.trunk import trunk


class PositionEmbedding(nnx.Module):
    """Adds the learned vectors of its row and of its column to each position of a map."""

    def __init__(self, side: int, width: int, *, rngs: nnx.Rngs):
        self.side = side
        self.rows = Table(side, width, rngs=rngs)
        self.columns = Table(side, width, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        h, w = x.shape[1:3]
        if max(h, w) > self.side:
            raise UserError(
                f"A map of {h} x {w} tokens exceeds the {self.side} x {self.side} positions of "
                "this network; use a smaller image, or train with larger ones."
            )
        rows, columns = self.rows.embedding[...][:h, None], self.columns.embedding[...][None, :w]
        return x + (rows + columns).astype(x.dtype)


class TokenStem(nnx.Module):
    def __init__(self, codes: int, side: int, width: int, *, rngs: nnx.Rngs):
        self.tokens = Table(codes + 1, width, rngs=rngs)
        self.places = PositionEmbedding(side, width, rngs=rngs)

    def __call__(self, x: Int[Array, "b h w"]) -> Float[Array, "b h w d"]:
        return self.places(self.tokens(x))


class TokenHead(nnx.Module):
    def __init__(self, codes: int, width: int, *, rngs: nnx.Rngs):
        self.norm = LayerNorm(width, rngs=rngs)
        self.proj = linear(width, codes, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w k"]:
        return self.proj(self.norm(x))


class TokenTransformer(nnx.Module):
    """``codes`` codes on maps of at most ``side`` x ``side`` positions.

    With ``vector_width`` a vector (pooled text, sizes) conditions the trunk by AdaLN.
    """

    def __init__(
        self,
        *,
        codes: int,
        side: int,
        width: int,
        depth: int,
        heads: int,
        mlp_width: int,
        context_width: int | None,
        vector_width: int | None = None,
        remat: str = "none",
        attend: Attend = attend,
        constrain: Constrain = lambda x: x,
        gather: Gather | None = None,
        rngs: nnx.Rngs,
    ):
        self.stem = TokenStem(codes, side, width, rngs=rngs)
        self.vector = TimestepEmbedding(vector_width, width, rngs=rngs) if vector_width else None
        self.trunk = trunk(
            width=width,
            depth=depth,
            heads=heads,
            mlp_width=mlp_width,
            context_width=context_width,
            conditioning_width=width if vector_width else None,
            remat=remat,
            attend=attend,
            constrain=constrain,
            gather=gather,
            rngs=rngs,
        )
        self.head = TokenHead(codes, width, rngs=rngs)

    def __call__(
        self,
        x: Int[Array, "b h w"],
        timestep: Float[Array, " b"],
        context: Float[Array, "b l c"] | None = None,
        mask: Bool[Array, "b l"] | None = None,
        vector: Float[Array, "b p"] | None = None,
    ) -> Float[Array, "b h w k"]:
        """Logits. ``timestep`` is ignored: the number of [MASK] tokens carries the same
        information.
        """
        conditioning = vector_conditioning(self.vector, vector)
        y = self.stem(x)
        b, h, w, d = y.shape
        y = self.trunk(y.reshape(b, h * w, d), context, mask, conditioning)
        return self.head(y.reshape(b, h, w, d))


def vector_conditioning(
    embedding: TimestepEmbedding | None, vector: Float[Array, "b p"] | None
) -> Float[Array, "b d"] | None:
    """The trunk's conditioning from the vector alone, or None in a network without one."""
    if embedding is None:
        return None
    assert vector is not None, "this transformer was built with vector_width"
    return jax.nn.silu(embedding(vector))
