"""Muse's denoiser: a map of tokens, some of them masked, to logits of every token.

    stem   a vector a token (and one for [MASK], the number after the last code) + its place's
    trunk  emu_jax.nn.trunk, which reads the text
    head   LayerNorm and a projection to the codes

Places are learnt, a table of rows and one of columns: a smaller or oblong map has places too.
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


class Places(nnx.Module):
    """Adds a vector for its row and one for its column to each position of a map."""

    def __init__(self, side: int, width: int, *, rngs: nnx.Rngs):
        self.side = side
        self.rows = Table(side, width, rngs=rngs)
        self.columns = Table(side, width, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        h, w = x.shape[1:3]
        if max(h, w) > self.side:
            raise UserError(
                f"A map of {h} x {w} positions has none beyond {self.side}: train with larger ones."
            )
        rows, columns = self.rows.embedding[...][:h, None], self.columns.embedding[...][None, :w]
        return x + (rows + columns).astype(x.dtype)


class TokenStem(nnx.Module):
    def __init__(self, codes: int, side: int, width: int, *, rngs: nnx.Rngs):
        self.tokens = Table(codes + 1, width, rngs=rngs)
        self.places = Places(side, width, rngs=rngs)

    def __call__(self, x: Int[Array, "b h w"]) -> Float[Array, "b h w d"]:
        return self.places(self.tokens(x))


class TokenHead(nnx.Module):
    def __init__(self, codes: int, width: int, *, rngs: nnx.Rngs):
        self.norm = LayerNorm(width, rngs=rngs)
        self.proj = linear(width, codes, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w k"]:
        return self.proj(self.norm(x))


class TokenTransformer(nnx.Module):
    """``codes`` codes on maps of at most ``side`` x ``side`` places.

    ``vector_width``: it is told a vector (pooled text, sizes) by AdaLN.
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
            told_width=width if vector_width else None,
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
        t: Float[Array, " b"],
        context: Float[Array, "b l c"] | None = None,
        mask: Bool[Array, "b l"] | None = None,
        vector: Float[Array, "b p"] | None = None,
    ) -> Float[Array, "b h w k"]:
        """Logits. ``t`` is not looked at: the masks say how far things are."""
        told = None
        if self.vector is not None:
            assert vector is not None, "this transformer was built to be told a vector"
            told = jax.nn.silu(self.vector(vector))
        y = self.stem(x)
        b, h, w, d = y.shape
        y = self.trunk(y.reshape(b, h * w, d), context, mask, told)
        return self.head(y.reshape(b, h, w, d))
