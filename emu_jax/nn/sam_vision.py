"""The image encoder of Segment Anything (Kirillov et al. 2023, arXiv:2304.02643): a ViT over
windows.

Most layers attend within windows of 14 x 14 patches, four of them globally. Every layer adds to its
logits two learned terms, one for the distance between query and key along each axis (MViTv2).
Parameters are named as in the published files. Sizes:

             width  layers  heads  global layers
    ViT-B      768      12     12  2, 5, 8, 11
    ViT-L     1024      24     16  5, 11, 17, 23
    ViT-H     1280      32     16  7, 15, 23, 31
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from emu_jax.nn.attention import BiasedAttend, attend, merge_heads
from emu_jax.nn.layers import LayerNorm, activation, conv, linear

_EPS = 1e-6


class SamVision(nnx.Module):
    """From normalized square images to a map of ``channels`` features per patch."""

    def __init__(
        self,
        *,
        image_size: int = 1024,
        patch_size: int = 16,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        feed_forward: int = 3072,
        window: int = 14,
        global_layers: tuple[int, ...] = (2, 5, 8, 11),
        channels: int = 256,
        act: str = "gelu",
        attend: BiasedAttend = attend,
        rngs: nnx.Rngs,
    ):
        side, size = image_size // patch_size, (patch_size, patch_size)
        projection = nnx.Conv(3, width, size, strides=size, padding="VALID", rngs=rngs)
        self.patch_embed = nnx.Dict(projection=projection)
        self.pos_embed = nnx.Param(jnp.zeros((1, side, side, width)))
        self.layers = nnx.List(
            Layer(width, heads, feed_forward, act, side, window, i in global_layers, attend, rngs)
            for i in range(layers)
        )
        self.neck = Neck(width, channels, rngs=rngs)

    def __call__(self, x: Float[Array, "b s s 3"]) -> Float[Array, "b h h c"]:
        x = self.patch_embed.projection(x) + self.pos_embed[...]
        for layer in self.layers:
            x = layer(x)
        return self.neck(x)


class Layer(nnx.Module):
    """Attention over a map of ``side`` patches a side, within windows unless ``everywhere``."""

    def __init__(
        self,
        width: int,
        heads: int,
        feed_forward: int,
        act: str,
        side: int,
        window: int,
        everywhere: bool,
        attend: BiasedAttend,
        rngs: nnx.Rngs,
    ):
        self.window = side if everywhere or not window else window
        self.layer_norm1 = LayerNorm(width, eps=_EPS, rngs=rngs)
        self.attn = Attention(width, heads, self.window, attend, rngs=rngs)
        self.layer_norm2 = LayerNorm(width, eps=_EPS, rngs=rngs)
        self.mlp = Mlp(width, feed_forward, act, rngs=rngs)

    def __call__(self, x: Float[Array, "b h h c"]) -> Float[Array, "b h h c"]:
        x = x + over_windows(self.attn, self.layer_norm1(x), self.window)
        return x + self.mlp(self.layer_norm2(x))


def over_windows(attention: nnx.Module, x: Float[Array, "b h h c"], n: int) -> Array:
    """``attention`` of each window of n x n positions; a map that they do not divide is padded with
    zeros, which are attended to.
    """
    b, side, _, c = x.shape
    count = -(-side // n)
    spare = count * n - side
    x = jnp.pad(x, ((0, 0), (0, spare), (0, spare), (0, 0)))
    x = x.reshape(b, count, n, count, n, c).swapaxes(2, 3).reshape(-1, n, n, c)
    x = attention(x).reshape(b, count, count, n, n, c).swapaxes(2, 3)
    return x.reshape(b, count * n, count * n, c)[:, :side, :side]


class Attention(nnx.Module):
    """Of all positions of a square map of ``side`` positions a side."""

    def __init__(self, width: int, heads: int, side: int, attend: BiasedAttend, *, rngs: nnx.Rngs):
        self.qkv = linear(width, 3 * width, rngs=rngs)
        self.proj = linear(width, width, rngs=rngs)
        self.rel_pos_h = nnx.Param(jnp.zeros((2 * side - 1, width // heads)))
        self.rel_pos_w = nnx.Param(jnp.zeros((2 * side - 1, width // heads)))
        self.heads, self.attend = heads, attend

    def __call__(self, x: Float[Array, "b n n c"]) -> Float[Array, "b n n c"]:
        b, n, _, c = x.shape
        qkv = self.qkv(x).reshape(b, n * n, 3, self.heads, c // self.heads)
        q, k, v = (qkv[:, :, i] for i in range(3))
        distance = jnp.arange(n)[:, None] - jnp.arange(n) + n - 1
        grid = q.reshape(b, n, n, self.heads, -1)
        down = jnp.einsum("byxhd,yud->bhyxu", grid, self.rel_pos_h[...][distance])
        across = jnp.einsum("byxhd,xvd->bhyxv", grid, self.rel_pos_w[...][distance])
        bias = (down[..., None] + across[..., None, :]).reshape(b, self.heads, n * n, n * n)
        return self.proj(merge_heads(self.attend(q, k, v, None, bias))).reshape(b, n, n, c)


class Mlp(nnx.Module):
    def __init__(self, width: int, feed_forward: int, act: str, *, rngs: nnx.Rngs):
        self.lin1 = linear(width, feed_forward, rngs=rngs)
        self.lin2 = linear(feed_forward, width, rngs=rngs)
        self.act = nnx.relu if act == "relu" else activation(act)

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        return self.lin2(self.act(self.lin1(x)))


class Neck(nnx.Module):
    """Two convolutions, each followed by a norm over channels."""

    def __init__(self, width: int, channels: int, *, rngs: nnx.Rngs):
        self.conv1 = conv(width, channels, 1, bias=False, rngs=rngs)
        self.layer_norm1 = LayerNorm(channels, eps=_EPS, rngs=rngs)
        self.conv2 = conv(channels, channels, 3, bias=False, rngs=rngs)
        self.layer_norm2 = LayerNorm(channels, eps=_EPS, rngs=rngs)

    def __call__(self, x: Float[Array, "b h h c"]) -> Float[Array, "b h h d"]:
        return self.layer_norm2(self.conv2(self.layer_norm1(self.conv1(x))))
