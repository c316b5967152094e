"""MUSIQ, an image quality transformer over patches of several scales (Ke et al. 2021,
arXiv:2108.05997).

The image at its own size, and resized to a longer side of 224 and of 384 pixels, is cut into
patches of 32 x 32. A small ResNet with weight-standardized convolutions embeds each patch; position
embeddings of a 10 x 10 grid are shared by the patches of all sizes. Parameters are named as in the
files of IQA-PyTorch, whose weights were converted from the authors'.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from emu_jax.nn.attention import attend, merge_heads, split_heads
from emu_jax.nn.clip import Mlp
from emu_jax.nn.layers import GroupNorm, LayerNorm, linear
from emu_jax.nn.resizing import bicubic

_PATCH, _GRID, _SIDES = 32, 10, (224, 384)
_STEM = 64  # channels
_EPS, _BLOCK_EPS = 1e-6, 1e-4


class Musiq(nnx.Module):
    """From images in [-1, 1] to scores: means of opinions, near 0 to 100 for KonIQ's weights.

    With ``classes`` 10 (AVA) the score is the mean of the predicted distribution of ratings 1..10.
    """

    def __init__(
        self,
        *,
        width: int = 384,
        layers: int = 14,
        heads: int = 6,
        feed_forward: int = 1152,
        classes: int = 1,
        rngs: nnx.Rngs,
    ):
        self.conv_root = StandardizedConv(3, _STEM, 7, 2, rngs=rngs)
        self.gn_root = GroupNorm(_STEM, eps=_EPS, rngs=rngs)
        self.block1 = Bottleneck(_STEM, rngs=rngs)
        self.embedding = linear(4 * _STEM * (_PATCH // 4) ** 2, width, rngs=rngs)
        self.transformer_encoder = Encoder(width, layers, heads, feed_forward, rngs=rngs)
        head = linear(width, classes, rngs=rngs)
        self.head: Any = nnx.Dict({"0": head}) if classes > 1 else head
        self.classes = classes

    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, " b"]:
        patches, positions, scales = _patches(x)
        b, n, *size = patches.shape
        y = self.gn_root(self.conv_root(patches.reshape(b * n, *size)))
        y = nnx.max_pool(nnx.relu(y), (3, 3), strides=(2, 2), padding="SAME")
        y = self.embedding(self.block1(y).reshape(b, n, -1))
        state = self.transformer_encoder(y, positions, scales)
        if self.classes == 1:
            return self.head(state)[:, 0]
        ratings = jnp.arange(1.0, self.classes + 1)
        return nnx.softmax(self.head["0"](state)) @ ratings


def _patches(
    x: Float[Array, "b h w 3"],
) -> tuple[Float[Array, "b n p p 3"], Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """(patches of all scales row by row, their positions in the grid, the numbers of scales)."""
    h, w = x.shape[1:3]
    scales = [
        bicubic(x, (round(h * side / max(h, w)), round(w * side / max(h, w)))) for side in _SIDES
    ]
    found, positions, numbers = [], [], []
    for number, scaled in enumerate([*scales, x]):
        counts = [math.ceil(n / _PATCH) for n in scaled.shape[1:3]]
        missing = [c * _PATCH - n for c, n in zip(counts, scaled.shape[1:3], strict=True)]
        # As TensorFlow's SAME: half of it before the image, the rest behind.
        pads = [(0, 0), *((m // 2, m - m // 2) for m in missing), (0, 0)]
        rows, columns = counts
        cut = jnp.pad(scaled, pads).reshape(-1, rows, _PATCH, columns, _PATCH, 3)
        cut = cut.transpose(0, 1, 3, 2, 4, 5)
        found.append(cut.reshape(-1, rows * columns, _PATCH, _PATCH, 3))
        row, column = (_nearest(count) for count in counts)
        positions.append((row[:, None] * _GRID + column).reshape(-1))
        numbers.append(np.full(rows * columns, number))
    return jnp.concatenate(found, 1), np.concatenate(positions), np.concatenate(numbers)


def _nearest(count: int) -> Int[np.ndarray, " count"]:
    """The grid's cell of each patch of a row: nearest-neighbor resizing, in fp32 as torch."""
    return np.floor(np.arange(count, dtype=np.float32) * np.float32(_GRID / count)).astype(int)


class StandardizedConv(nnx.Module):
    """A convolution without bias whose filters have mean 0 and deviation 1; SAME padding."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, *, rngs: nnx.Rngs):
        init, shape = nnx.initializers.lecun_normal(), (kernel, kernel, inputs, outputs)
        self.kernel = nnx.Param(init(rngs.params(), shape))
        self.strides = (stride, stride)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        kernel = self.kernel[...]
        centered = kernel - kernel.mean((0, 1, 2))
        kernel = centered / (centered.std((0, 1, 2), ddof=1) + 1e-5)
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, self.strides, "SAME", dimension_numbers=dimensions
        )


class Bottleneck(nnx.Module):
    """Four times as many channels; the shortcut is projected."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.conv1 = StandardizedConv(width, width, 1, rngs=rngs)
        self.gn1 = GroupNorm(width, eps=_BLOCK_EPS, rngs=rngs)
        self.conv2 = StandardizedConv(width, width, 3, rngs=rngs)
        self.gn2 = GroupNorm(width, eps=_BLOCK_EPS, rngs=rngs)
        self.conv3 = StandardizedConv(width, 4 * width, 1, rngs=rngs)
        self.gn3 = GroupNorm(4 * width, eps=_BLOCK_EPS, rngs=rngs)
        self.conv_proj = StandardizedConv(width, 4 * width, 1, rngs=rngs)
        self.gn_proj = GroupNorm(4 * width, eps=_BLOCK_EPS, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        h = nnx.relu(self.gn1(self.conv1(x)))
        h = nnx.relu(self.gn2(self.conv2(h)))
        return nnx.relu(self.gn3(self.conv3(h)) + self.gn_proj(self.conv_proj(x)))


class Encoder(nnx.Module):
    """A class token and the patches through a pre-norm transformer; the class token's state."""

    def __init__(self, width: int, layers: int, heads: int, feed_forward: int, *, rngs: nnx.Rngs):
        normal = nnx.initializers.normal(0.02)

        def table(*shape: int) -> nnx.Param:
            return nnx.Param(normal(rngs.params(), shape))

        self.posembed_input = nnx.Dict(position_emb=table(1, _GRID**2, width))
        self.scaleembed_input = nnx.Dict(scale_emb=table(len(_SIDES) + 1, width))
        self.cls = table(1, 1, width)
        self.transformer = nnx.Dict(
            {
                f"encoderblock_{i}": Block(width, heads, feed_forward, rngs=rngs)
                for i in range(layers)
            }
        )
        self.encoder_norm = LayerNorm(width, eps=_EPS, rngs=rngs)
        self.layers = layers

    def __call__(
        self,
        x: Float[Array, "b n width"],
        positions: Int[np.ndarray, " n"],
        scales: Int[np.ndarray, " n"],
    ) -> Float[Array, "b width"]:
        x = x + self.posembed_input.position_emb[...][0, positions]
        x = x + self.scaleembed_input.scale_emb[...][scales]
        token = jnp.broadcast_to(self.cls[...], (x.shape[0], 1, x.shape[-1]))
        x = jnp.concatenate([token, x], axis=1)
        for i in range(self.layers):
            x = self.transformer[f"encoderblock_{i}"](x)
        return self.encoder_norm(x[:, 0])


class Block(nnx.Module):
    def __init__(self, width: int, heads: int, feed_forward: int, *, rngs: nnx.Rngs):
        self.norm1 = LayerNorm(width, eps=_EPS, rngs=rngs)
        names = ("query", "key", "value", "out")
        self.attention = nnx.Dict({name: linear(width, width, rngs=rngs) for name in names})
        self.norm2 = LayerNorm(width, eps=_EPS, rngs=rngs)
        self.mlp = Mlp(width, feed_forward, "gelu", rngs=rngs)
        self.heads = heads

    def __call__(self, x: Float[Array, "b n width"]) -> Float[Array, "b n width"]:
        h, project = self.norm1(x), self.attention
        q, k, v = (
            split_heads(layer(h), self.heads)
            for layer in (project.query, project.key, project.value)
        )
        x = x + project.out(merge_heads(attend(q, k, v, None)))
        return x + self.mlp(self.norm2(x))
