"""The trunk of transformer denoisers: a stack of equal blocks over a sequence of positions.

A block is x + self-attention, x + cross-attention to the text, x + MLP, a LayerNorm in front of
each. Told a vector c (time, pooled text, sizes), it shifts, scales and gates by it, the gates zero
at first (AdaLN-zero, Peebles & Xie 2023; the text as in Chen et al. 2023):

    x + gate(c) f(norm(x) (1 + scale(c)) + shift(c))                                       (1)

for self-attention and MLP. What comes before and after (tokens or patches) is a stem's and a head's
business.

The blocks' parameters are stacked under ``blocks_scan`` and walked along by one ``lax.scan``: 48
layers compile as one, and with ``remat`` their activations are computed again in the backward pass.
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
    """One layer; ``context_width`` None has no cross-attention, ``told_width`` None no (1).

    ``self_attend`` takes the place of ``attend`` between positions.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_width: int,
        *,
        context_width: int | None = None,
        told_width: int | None = None,
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
            None if told_width is None else linear(told_width, 6 * width, zero=True, rngs=rngs)
        )

    def __call__(
        self,
        x: Positions,
        context: Float[Array, "b l c"] | None = None,
        mask: Bool[Array, "b l"] | None = None,
        told: Float[Array, "b p"] | None = None,
    ) -> Positions:
        """``told`` is the vector after its activation, which all blocks share."""
        first, last = self._modulations(told)
        x = _branch(x, self.norm1, self.attn1, first)
        if self.attn2 is not None and self.norm2 is not None:
            x = x + self.attn2(self.norm2(x), context, mask)
        return _branch(x, self.norm3, self.mlp, last)

    def _modulations(self, told: Array | None) -> tuple[Any, Any]:
        if self.modulation is None or told is None:
            return None, None
        parts = jnp.split(self.modulation(told)[:, None], 6, axis=-1)
        return parts[:3], parts[3:]


def _branch(x: Positions, norm: LayerNorm, f: Callable[[Array], Array], by: Any) -> Positions:
    """Equation (1), or the plain residual branch."""
    if by is None:
        return x + f(norm(x))
    shift, scale, gate = by
    return x + gate * f(norm(x) * (1 + scale) + shift)


def trunk(
    *,
    width: int,
    depth: int,
    heads: int,
    mlp_width: int,
    context_width: int | None,
    told_width: int | None = None,
    remat: str = "none",
    attend: Attend = attend,
    self_attend: Attend | None = None,
    constrain: Constrain = lambda x: x,
    gather: Gather | None = None,
    rngs: nnx.Rngs,
) -> Stack:
    """``trunk(...)(x, context, mask, told)``."""
    if width % heads:
        raise UserError(f"A transformer of width {width} does not divide into {heads} heads.")

    def block(rngs: nnx.Rngs) -> TrunkBlock:
        return TrunkBlock(
            width,
            heads,
            mlp_width,
            context_width=context_width,
            told_width=told_width,
            attend=attend,
            self_attend=self_attend,
            rngs=rngs,
        )

    layers = drawn(block, depth, rngs=rngs)
    return Stack(layers, remat=remat, constrain=constrain, gather=gather)
