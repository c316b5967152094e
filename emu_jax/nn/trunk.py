"""The trunk of transformer denoisers: a stack of identical blocks over a sequence of positions.

A block is x + self-attention, x + cross-attention to the text, x + MLP, with a LayerNorm before
each. With a conditioning vector c (timestep, pooled text, sizes), self-attention and MLP are
shifted, scaled and gated by it. The gates start at zero (AdaLN-zero, Peebles & Xie 2023; the text
as in Chen et al. 2023):

    x + gate(c) f(norm(x) (1 + scale(c)) + shift(c))                                       (1)

The input and output layers (for tokens or patches) belong to each network's stem and head.

The blocks' parameters are stacked and scanned (:mod:`emu_jax.nn.stack`): 48 layers compile as one,
and ``remat`` says which of their activations the backward pass recomputes.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from emu_jax.errors import UserError
from emu_jax.nn.attention import Attend, Attention, attend
from emu_jax.nn.layers import LayerNorm, linear
from emu_jax.nn.stack import Constrain, Gather, Stack, drawn

Positions = Float[Array, "b n d"]


class Mlp(nnx.Module):
    """Two dense layers with a gelu (tanh form) between them."""

    def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs):
        self.fc1 = linear(width, hidden, rngs=rngs)
        self.fc2 = linear(hidden, width, rngs=rngs)

    def __call__(self, x: Positions) -> Positions:
        return self.fc2(jax.nn.gelu(self.fc1(x)))


class TrunkBlock(nnx.Module):
    """One layer. Without ``context_width`` it has no cross-attention, without
    ``conditioning_width`` plain residual branches instead of equation (1).

    ``self_attend`` replaces ``attend`` in self-attention.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_width: int,
        *,
        context_width: int | None = None,
        conditioning_width: int | None = None,
        attend: Attend = attend,
        self_attend: Attend | None = None,
        rngs: nnx.Rngs,
    ):
        def attention(source: int | None, attend: Attend) -> Attention:
            return Attention(
                width, heads, width // heads, context_width=source, attend=attend, rngs=rngs
            )

        self.norm1 = LayerNorm(width, rngs=rngs)
        self.attn1 = attention(None, self_attend or attend)
        self.norm2 = None if context_width is None else LayerNorm(width, rngs=rngs)
        self.attn2 = None if context_width is None else attention(context_width, attend)
        self.norm3 = LayerNorm(width, rngs=rngs)
        self.mlp = Mlp(width, mlp_width, rngs=rngs)
        self.modulation = (
            None
            if conditioning_width is None
            else linear(conditioning_width, 6 * width, zero=True, rngs=rngs)
        )

    def __call__(
        self,
        x: Positions,
        context: Float[Array, "b l c"] | None = None,
        mask: Bool[Array, "b l"] | None = None,
        conditioning: Float[Array, "b p"] | None = None,
    ) -> Positions:
        """``conditioning`` is the vector c after its activation, which all blocks share."""
        first, last = self._modulations(conditioning)
        x = _branch(x, self.norm1, self.attn1, first)
        if self.attn2 is not None and self.norm2 is not None:
            x = x + self.attn2(self.norm2(x), context, mask)
        return _branch(x, self.norm3, self.mlp, last)

    def _modulations(self, conditioning: Array | None) -> tuple[Any, Any]:
        if self.modulation is None or conditioning is None:
            return None, None
        parts = jnp.split(self.modulation(conditioning)[:, None], 6, axis=-1)
        return parts[:3], parts[3:]


def _branch(
    x: Positions, norm: LayerNorm, f: Callable[[Array], Array], modulation: Any
) -> Positions:
    """Equation (1), or the plain residual branch."""
    if modulation is None:
        return x + f(norm(x))
    shift, scale, gate = modulation
    return x + gate * f(norm(x) * (1 + scale) + shift)


def trunk(
    *,
    width: int,
    depth: int,
    heads: int,
    mlp_width: int,
    context_width: int | None,
    conditioning_width: int | None = None,
    remat: str = "none",
    attend: Attend = attend,
    self_attend: Attend | None = None,
    constrain: Constrain = lambda x: x,
    gather: Gather | None = None,
    rngs: nnx.Rngs,
) -> Stack:
    """A stack of blocks, called as ``trunk(...)(x, context, mask, conditioning)``."""
    if width % heads:
        raise UserError(f"The transformer's width {width} is not a multiple of its {heads} heads.")

    def block(rngs: nnx.Rngs) -> TrunkBlock:
        return TrunkBlock(
            width,
            heads,
            mlp_width,
            context_width=context_width,
            conditioning_width=conditioning_width,
            attend=attend,
            self_attend=self_attend,
            rngs=rngs,
        )

    layers = drawn(block, depth, rngs=rngs)
    return Stack(layers, remat=remat, constrain=constrain, gather=gather)
