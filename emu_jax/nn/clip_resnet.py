"""CLIP's image tower as a ResNet (Radford et al. 2021, arXiv:2103.00020), RN50 by default.

It differs from the usual ResNet: the stem has three convolutions, every stride is an average
pooling, and the last pooling is attention from the mean over all positions. Parameters are named as
in OpenAI's files, without the prefix ``visual.``.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from emu_jax.nn.attention import attend, merge_heads, split_heads
from emu_jax.nn.layers import FixedBatchNorm, linear
from emu_jax.nn.resnet50 import conv_without_bias

_EXPANSION = 4
_HEAD = 64  # channels of a head


class ClipResNet(nnx.Module):
    """From images, normalized as CLIP's, to one embedding each.

    Without ``positions`` images may have any size of 32 or more (CLIP-IQA).
    """

    def __init__(
        self,
        *,
        depths: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
        image_size: int = 224,
        projection: int = 1024,
        rngs: nnx.Rngs,
    ):
        half = width // 2
        self.conv1 = conv_without_bias(3, half, 3, 2, rngs=rngs)
        self.bn1 = FixedBatchNorm(half)
        self.conv2 = conv_without_bias(half, half, 3, rngs=rngs)
        self.bn2 = FixedBatchNorm(half)
        self.conv3 = conv_without_bias(half, width, 3, rngs=rngs)
        self.bn3 = FixedBatchNorm(width)
        inputs = width
        for i, depth in enumerate(depths):
            blocks = []
            for j in range(depth):
                stride = 2 if i and not j else 1
                blocks.append(Bottleneck(inputs, width * 2**i, stride, rngs=rngs))
                inputs = width * 2**i * _EXPANSION
            setattr(self, f"layer{i + 1}", nnx.List(blocks))
        self.attnpool = AttentionPool((image_size // 32) ** 2, inputs, projection, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w 3"], positions: bool = True) -> Float[Array, "b d"]:
        for i in (1, 2, 3):
            x = nnx.relu(getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x)))
        x = _halve(x)
        for i in range(1, 5):
            for block in getattr(self, f"layer{i}"):
                x = block(x)
        return self.attnpool(x, positions)


class Bottleneck(nnx.Module):
    def __init__(self, inputs: int, width: int, stride: int, *, rngs: nnx.Rngs):
        outputs = width * _EXPANSION
        self.conv1 = conv_without_bias(inputs, width, 1, rngs=rngs)
        self.bn1 = FixedBatchNorm(width)
        self.conv2 = conv_without_bias(width, width, 3, rngs=rngs)
        self.bn2 = FixedBatchNorm(width)
        self.conv3 = conv_without_bias(width, outputs, 1, rngs=rngs)
        self.bn3 = FixedBatchNorm(outputs)
        self.stride = stride
        changes = stride != 1 or inputs != outputs
        shortcut = {
            "0": conv_without_bias(inputs, outputs, 1, rngs=rngs),
            "1": FixedBatchNorm(outputs),
        }
        self.downsample = nnx.Dict(shortcut) if changes else None

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        h = nnx.relu(self.bn1(self.conv1(x)))
        h = nnx.relu(self.bn2(self.conv2(h)))
        if self.stride != 1:
            h, x = _halve(h), _halve(x)
        h = self.bn3(self.conv3(h))
        if self.downsample is not None:
            x = self.downsample["1"](self.downsample["0"](x))
        return nnx.relu(x + h)


class AttentionPool(nnx.Module):
    """Attention from the mean over positions to that mean and all positions."""

    def __init__(self, positions: int, width: int, projection: int, *, rngs: nnx.Rngs):
        normal = nnx.initializers.normal(width**-0.5)
        self.positional_embedding = nnx.Param(normal(rngs.params(), (positions + 1, width)))
        self.q_proj = linear(width, width, rngs=rngs)
        self.k_proj = linear(width, width, rngs=rngs)
        self.v_proj = linear(width, width, rngs=rngs)
        self.c_proj = linear(width, projection, rngs=rngs)
        self.heads = width // _HEAD

    def __call__(self, x: Float[Array, "b h w c"], positions: bool) -> Float[Array, "b d"]:
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        x = jnp.concatenate([x.mean(1, keepdims=True), x], axis=1)
        if positions:
            x = x + self.positional_embedding[...]
        q, k, v = (
            split_heads(y, self.heads)
            for y in (self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x))
        )
        return self.c_proj(merge_heads(attend(q, k, v, None)))[:, 0]


def _halve(x: Float[Array, "b h w c"]) -> Float[Array, "b i j c"]:
    return nnx.avg_pool(x, (2, 2), strides=(2, 2))
