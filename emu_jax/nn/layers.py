"""The basic layers of all networks: norms, tables, convolutions, activations, resampling.

All images and feature maps are channels-last. The norms compute their statistics in fp32, whatever
the input's dtype, and return the input's dtype. Everything else computes in the input's dtype.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from emu_jax.errors import UserError


def quick_gelu(x: Array) -> Array:
    """x sigmoid(1.702 x), the activation of the first CLIP models."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "quick_gelu": quick_gelu,
}


def activation(name: str) -> Callable[[Array], Array]:
    """The activation called ``name``; ``gelu`` is the exact one."""
    if name not in ACTIVATIONS:
        raise UserError(f"The activation is {name!r}; choose one of {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name]


class GroupNorm(nnx.Module):
    """Normalizes groups of ``channels / groups`` channels over all positions of one example.

    Each channel is summed over positions first, and the sums of a group's channels afterwards. So
    the feature map is never reshaped: splitting its last axis would cost a layout copy on a TPU.
    """

    def __init__(self, channels: int, groups: int = 32, *, eps: float = 1e-5, rngs: nnx.Rngs):
        if channels % groups:
            raise UserError(
                f"{channels} channels do not divide into {groups} norm groups; change groups or "
                "the widths."
            )
        self.groups, self.eps = groups, eps
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: Float[Array, "b *size c"]) -> Float[Array, "b *size c"]:
        return _group_norm(self.groups, self.eps, x, self.scale[...], self.bias[...])


class LayerNorm(nnx.Module):
    """Normalizes the last axis."""

    def __init__(self, channels: int, *, eps: float = 1e-5, bias: bool = True, rngs: nnx.Rngs):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels)) if bias else None

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        scale = self.scale[...]
        bias = jnp.zeros_like(scale) if self.bias is None else self.bias[...]
        return _layer_norm(self.eps, x, scale, bias)


def normalized(x: Float[Array, "*b c"], eps: float) -> Float[Array, "*b c"]:
    """A LayerNorm without parameters."""
    width = x.shape[-1]
    return _layer_norm(eps, x, jnp.ones(width, x.dtype), jnp.zeros(width, x.dtype))


def _group_mean(groups: int, channelwise: Float[Array, "b *ones c"]) -> Float[Array, "b *ones c"]:
    """Each channel's entry becomes the mean over its whole group."""
    *leading, channels = channelwise.shape
    grouped = channelwise.reshape(*leading, groups, channels // groups)
    return jnp.repeat(grouped.mean(-1), channels // groups, axis=-1)


# The norms' derivatives are written out so that the backward pass reads x itself, in 16 bits, and
# not the 32-bit intermediate results.


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _group_norm(groups: int, eps: float, x: Array, scale: Array, bias: Array) -> Array:
    return _group_norm_forward(groups, eps, x, scale, bias)[0]


def _group_norm_forward(groups: int, eps: float, x: Array, scale: Array, bias: Array):
    positions = tuple(range(1, x.ndim - 1))
    y = jnp.asarray(x, jnp.float32)
    mean = _group_mean(groups, jnp.mean(y, positions, keepdims=True))
    y = y - mean
    square = _group_mean(groups, jnp.mean(jnp.square(y), positions, keepdims=True))
    inverse = jax.lax.rsqrt(square + eps)
    out = (y * (inverse * scale) + bias).astype(x.dtype)
    return out, (x, mean, inverse, scale)


def _group_norm_backward(groups: int, eps: float, stored: tuple, dout: Array):
    del eps
    x, mean, inverse, scale = stored
    positions = tuple(range(1, x.ndim - 1))
    dout = dout.astype(jnp.float32)
    y = (x.astype(jnp.float32) - mean) * inverse
    # Sums over positions come first: the parameters and the groups' means both use them.
    dbias, dscale = (jnp.mean(z, positions, keepdims=True) for z in (dout, dout * y))
    along, across = (_group_mean(groups, scale * z) for z in (dscale, dbias))
    dx = inverse * (dout * scale - across - y * along)
    count = math.prod(x.shape[1:-1])
    summed = [count * z.sum(tuple(range(z.ndim - 1))) for z in (dscale, dbias)]
    return dx.astype(x.dtype), *(z.astype(scale.dtype) for z in summed)


_group_norm.defvjp(_group_norm_forward, _group_norm_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _layer_norm(eps: float, x: Array, scale: Array, bias: Array) -> Array:
    return _layer_norm_forward(eps, x, scale, bias)[0]


def _layer_norm_forward(eps: float, x: Array, scale: Array, bias: Array):
    y = jnp.asarray(x, jnp.float32)
    mean = y.mean(-1, keepdims=True)
    y = y - mean
    inverse = jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps)
    out = (y * inverse * scale + bias).astype(x.dtype)
    return out, (x, mean, inverse, scale)


def _layer_norm_backward(eps: float, stored: tuple, dout: Array):
    del eps
    x, mean, inverse, scale = stored
    dout = dout.astype(jnp.float32)
    y = (x.astype(jnp.float32) - mean) * inverse
    scaled = dout * scale
    along = (scaled * y).mean(-1, keepdims=True)
    dx = inverse * (scaled - scaled.mean(-1, keepdims=True) - y * along)
    rows = tuple(range(x.ndim - 1))
    summed = ((dout * y).sum(rows), dout.sum(rows))
    return dx.astype(x.dtype), *(z.astype(scale.dtype) for z in summed)


_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


class RMSNorm(nnx.Module):
    """Divides the last axis by its root mean square; it subtracts no mean and adds no bias."""

    def __init__(self, channels: int, *, eps: float = 1e-6, rngs: nnx.Rngs):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(channels))

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        y = jnp.asarray(x, jnp.float32)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        return (y * self.scale[...]).astype(x.dtype)


class FixedBatchNorm(nnx.Module):
    """Batch norm with stored statistics, for networks that are used or tuned as published. No
    gradient reaches the statistics.
    """

    def __init__(self, channels: int, *, eps: float = 1e-5):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.running_mean = nnx.Param(jnp.zeros(channels))
        self.running_var = nnx.Param(jnp.ones(channels))

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        mean, variance = jax.lax.stop_gradient((self.running_mean[...], self.running_var[...]))
        factor = self.scale[...] * jax.lax.rsqrt(variance + self.eps)
        return (x * factor + (self.bias[...] - mean * factor)).astype(x.dtype)


class Table(nnx.Module):
    """Rows by number, in the dtype of the table (nnx.Embed keeps its initial dtype)."""

    def __init__(self, rows: int, width: int, *, rngs: nnx.Rngs):
        self.embedding = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (rows, width)))

    def __call__(self, ids: Int[Array, "*b"]) -> Float[Array, "*b width"]:
        return jnp.take(self.embedding[...], ids, axis=0)


def linear(
    inputs: int, outputs: int, *, bias: bool = True, zero: bool = False, rngs: nnx.Rngs
) -> nnx.Linear:
    """A dense layer on the last axis; ``zero`` initializes it to zero, to end a residual branch."""
    return nnx.Linear(inputs, outputs, use_bias=bias, kernel_init=_initializer(zero), rngs=rngs)


def conv(
    inputs: int,
    outputs: int,
    kernel: int = 3,
    *,
    stride: int = 1,
    padding: tuple[int, int] | None = None,
    groups: int = 1,
    bias: bool = True,
    zero: bool = False,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A square 2-D convolution that keeps the size at stride 1, separate for each of ``groups``
    groups of channels.

    ``padding`` is (before, after) on both axes, by default half the kernel on either side, as in
    torch (XLA's "SAME" can pad a strided convolution after the input only).
    """
    padding = padding or (kernel // 2, kernel // 2)
    return nnx.Conv(
        inputs,
        outputs,
        (kernel, kernel),
        strides=stride,
        padding=(padding, padding),
        feature_group_count=groups,
        use_bias=bias,
        kernel_init=_initializer(zero),
        rngs=rngs,
    )


def _initializer(zero: bool) -> nnx.Initializer:
    return nnx.initializers.zeros_init() if zero else nnx.initializers.lecun_normal()


def upsample_nearest(x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
    """Every pixel becomes 2 x 2."""
    b, h, w, c = x.shape
    # One axis after the other: for one image a TPU copies less than with both axes at once.
    x = jnp.stack([x, x], axis=3).reshape(b, h, 2 * w, c)
    return jnp.stack([x, x], axis=2).reshape(b, 2 * h, 2 * w, c)


def downsample_mean(x: Float[Array, "b h w c"]) -> Float[Array, "b h//2 w//2 c"]:
    """Every 2 x 2 block becomes its mean."""
    b, h, w, c = x.shape
    if h % 2 or w % 2:
        raise UserError(f"A feature map of {h} x {w} cannot be halved; use even sizes.")
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


class Downsample(nnx.Module):
    """Halves the size with a 3 x 3 convolution of stride 2."""

    def __init__(self, channels: int, *, padding: tuple[int, int] = (1, 1), rngs: nnx.Rngs):
        self.conv = conv(channels, channels, stride=2, padding=padding, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        return self.conv(x)


class Upsample(nnx.Module):
    """Doubles the size by repetition, then applies a 3 x 3 convolution.

    ``size`` (h, w) restores a map that had an odd size before it was halved: the doubled map is
    cropped to it, by at most one pixel per axis.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.conv = conv(channels, channels, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b h w c"], size: tuple[int, int] | None = None
    ) -> Float[Array, "b h2 w2 c"]:
        x = upsample_nearest(x)
        if size is not None:
            x = x[:, : size[0], : size[1]]
        return self.conv(x)
