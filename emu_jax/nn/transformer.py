"""The transformer inside a latent U-Net: the pixels of a feature map are tokens that attend to a
text.

Each layer is x + self-attention, x + cross-attention, x + feed-forward, with a LayerNorm before
each. Before the stack are a GroupNorm (with eps 1e-6, unlike that of the residual blocks) and a
projection, after it another projection.
"""

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from emu_jax.nn.attention import Attend, Attention, attend
from emu_jax.nn.layers import GroupNorm, LayerNorm, conv, linear
from emu_jax.nn.stack import Constrain, Gather, Stack

_SERIES = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)


class GEGLU(nnx.Module):
    """value * gelu(gate), where both are projections of x; the gelu is exact. ``gated`` computes
    it: :func:`gated` or another form of it.
    """

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True, rngs: nnx.Rngs):
        self.proj = linear(inputs, 2 * outputs, bias=bias, rngs=rngs)
        self.gated: Callable[[Array, Array], Array] = gated

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b o"]:
        return self.activation(self.product(x))

    def product(self, x: Float[Array, "*b c"]) -> Float[Array, "*b o2"]:
        return x @ self.proj.kernel[...]

    def activation(self, product: Float[Array, "*b o2"]) -> Float[Array, "*b o2//2"]:
        bias = self.proj.bias
        return self.gated(product, jnp.zeros(product.shape[-1]) if bias is None else bias[...])


@jax.custom_vjp
def gated(x: Float[Array, "*b c2"], bias: Float[Array, " c2"]) -> Float[Array, "*b c2//2"]:
    """The first half of x + bias times the gelu of the second half."""
    value, gate = _halves(x, bias)
    return (value * gate * _normal(gate)[0]).astype(x.dtype)


# The derivative is written out so that the many intermediate arrays are not stored, and so that the
# bias's gradient is summed for each half where it is computed. A sum over the concatenated halves
# would read them again, which takes as long as the matrix product before.


def _gated_backward(stored: tuple[Array, Array], dout: Array) -> tuple[Array, Array]:
    x, bias = stored
    value, gate = _halves(x, bias)
    below, density = _normal(gate)
    slope = below + gate * density
    halves = [(dout * z).astype(x.dtype) for z in (gate * below, value * slope)]
    sums = [z.astype(jnp.float32).sum(tuple(range(x.ndim - 1))) for z in halves]
    return jnp.concatenate(halves, axis=-1), jnp.concatenate(sums).astype(bias.dtype)


def _halves(x: Array, bias: Array) -> tuple[Array, Array]:
    both = zip(jnp.split(x, 2, axis=-1), jnp.split(bias, 2), strict=True)
    value, gate = (half.astype(jnp.float32) + b for half, b in both)
    return value, gate


def _normal(x: Array) -> tuple[Array, Array]:
    """The normal distribution function, to 3e-7 in fp32, and the density, from one exponential.

    Abramowitz and Stegun, eq. 7.1.26: erfc(y) = (a1 t + ... + a5 t^5) e^(-y^2) with
    t = 1 / (1 + p y). XLA's own erf shares no intermediate result with the density.
    """
    y = jnp.abs(x) * 0.5**0.5
    t = 1 / (1 + 0.3275911 * y)
    exponential = jnp.exp(-y * y)
    series = reduce(lambda total, a: total * t + a, _SERIES) * t
    above = 0.5 * exponential * series
    return jnp.where(x < 0, above, 1 - above), exponential * (2 * math.pi) ** -0.5


gated.defvjp(lambda x, bias: (gated(x, bias), (x, bias)), _gated_backward)


@jax.custom_vjp
def gated_in_one_pass(x: Float[Array, "*b c2"], bias: Float[Array, " c2"]) -> Array:
    """:func:`gated`, with a gradient that XLA computes on a GPU in two kernels: both halves at
    once, and the sum for the bias. Of the other form it makes three, which pass the distribution
    function and the first half to each other in fp32.
    """
    return gated(x, bias)


def _backward_in_one_pass(stored: tuple[Array, Array], dout: Array) -> tuple[Array, Array]:
    x, bias = stored
    value, gate, dout = (jnp.concatenate([z, z], axis=-1) for z in (*_halves(x, bias), dout))
    below, density = _normal(gate)
    first = jnp.arange(x.shape[-1]) < x.shape[-1] // 2
    slope = jnp.where(first, gate * below, value * (below + gate * density))
    # The barrier keeps the sum from computing everything a second time.
    dx = jax.lax.optimization_barrier((dout * slope).astype(x.dtype))
    summed = dx.astype(jnp.float32).sum(tuple(range(x.ndim - 1)))
    return dx, summed.astype(bias.dtype)


gated_in_one_pass.defvjp(lambda x, bias: (gated(x, bias), (x, bias)), _backward_in_one_pass)


class Gelu(nnx.Module):
    """The gelu (tanh form) of a projection of x."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True, rngs: nnx.Rngs):
        self.proj = linear(inputs, outputs, bias=bias, rngs=rngs)

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b o"]:
        return self.activation(self.product(x))

    def product(self, x: Float[Array, "*b c"]) -> Float[Array, "*b o"]:
        return self.proj(x)

    def activation(self, product: Float[Array, "*b o"]) -> Float[Array, "*b o"]:
        return jax.nn.gelu(product, approximate=True)


class FeedForward(nnx.Module):
    """``inner`` to ``hidden`` features, by default four times the width, and a projection back."""

    def __init__(
        self,
        width: int,
        hidden: int | None = None,
        *,
        inner: type[GEGLU] | type[Gelu] = GEGLU,
        bias: bool = True,
        rngs: nnx.Rngs,
    ):
        hidden = hidden or 4 * width
        # In the public layout index 1 is a dropout.
        self.net: Any = nnx.List(
            [
                inner(width, hidden, bias=bias, rngs=rngs),
                None,
                linear(hidden, width, bias=bias, rngs=rngs),
            ]
        )

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        inner, _, out = self.net
        # Between the two products only the result of the first is stored. So on a TPU the gate and
        # the gelu are computed inside the second product and inside its kernel's gradient, not in
        # passes over memory of their own.
        second = jax.checkpoint(lambda product, kernel: inner.activation(product) @ kernel)
        y = second(inner.product(x), out.kernel[...])
        return y if out.bias is None else y + out.bias[...]


class TransformerBlock(nnx.Module):
    """One layer. With ``only_cross_attention`` the first attention also attends to the context.
    Without ``context_width`` there is no second attention.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        head_width: int,
        *,
        context_width: int | None,
        only_cross_attention: bool = False,
        attend: Attend = attend,
        rngs: nnx.Rngs,
    ):
        def attention(source: int | None) -> Attention:
            return Attention(
                width, heads, head_width, context_width=source, attend=attend, rngs=rngs
            )

        self.only_cross_attention = only_cross_attention
        self.norm1 = LayerNorm(width, rngs=rngs)
        self.attn1 = attention(context_width if only_cross_attention else None)
        self.norm2 = None if context_width is None else LayerNorm(width, rngs=rngs)
        self.attn2 = None if context_width is None else attention(context_width)
        self.norm3 = LayerNorm(width, rngs=rngs)
        self.ff = FeedForward(width, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b n c"],
        context: Float[Array, "b l d"] | None = None,
        mask: Bool[Array, "b l"] | None = None,
    ) -> Float[Array, "b n c"]:
        first = (context, mask) if self.only_cross_attention else (None, None)
        x = x + self.attn1(self.norm1(x), *first)
        if self.attn2 is not None and self.norm2 is not None:
            x = x + self.attn2(self.norm2(x), context, mask)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nnx.Module):
    """x + a stack of ``depth`` layers over the pixels of x; ``proj_out`` starts at zero.

    With ``linear_projection`` the two projections are stored as dense layers (SD 2, SDXL), else as
    1 x 1 convolutions (SD 1); both compute the same. ``scan``, ``remat`` and ``gather`` change how
    the stack is computed, not what (:mod:`emu_jax.nn.stack`).
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        head_width: int,
        depth: int,
        *,
        context_width: int | None,
        groups: int = 32,
        linear_projection: bool = True,
        only_cross_attention: bool = False,
        scan: bool = False,
        remat: str = "none",
        attend: Attend = attend,
        constrain: Constrain = lambda x: x,
        gather: Gather | None = None,
        rngs: nnx.Rngs,
    ):
        def project(inputs: int, outputs: int, zero: bool) -> nnx.Module:
            if linear_projection:
                return linear(inputs, outputs, zero=zero, rngs=rngs)
            return conv(inputs, outputs, 1, zero=zero, rngs=rngs)

        inner = heads * head_width
        self.constrain = constrain
        self.norm = GroupNorm(channels, groups, eps=1e-6, rngs=rngs)
        self.proj_in = project(channels, inner, zero=False)
        layers = [
            TransformerBlock(
                inner,
                heads,
                head_width,
                context_width=context_width,
                only_cross_attention=only_cross_attention,
                attend=attend,
                rngs=rngs,
            )
            for _ in range(depth)
        ]
        self.transformer_blocks = Stack(
            layers, scan=scan, remat=remat, gather=gather, constrain=constrain
        )
        self.proj_out = project(inner, channels, zero=True)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        context: Float[Array, "b l d"] | None = None,
        mask: Bool[Array, "b l"] | None = None,
    ) -> Float[Array, "b h w c"]:
        b, h, w, _ = x.shape
        y = self.proj_in(self.norm(x))
        y = self.transformer_blocks(self.constrain(y.reshape(b, h * w, -1)), context, mask)
        return x + self.proj_out(y.reshape(b, h, w, -1))

    def received(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w"]:
        """How much attention each pixel gets in the self-attention of the first layer."""
        b, h, w, _ = x.shape
        layer = self.transformer_blocks.first
        y = self.proj_in(self.norm(x)).reshape(b, h * w, -1)
        return layer.attn1.received(layer.norm1(y)).reshape(b, h, w)
