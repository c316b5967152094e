"""ResNets of bottleneck blocks (He et al. 2016), 50 or 101 layers deep, as torchvision has them.

The stride of a stage is in the 3 x 3 convolution of its first block. Segmentation networks replace
strides by dilations, so that the last maps stay large. Parameters are named as in torchvision's
files, without the classifier ``fc``.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from emu_jax.nn.layers import FixedBatchNorm

DEPTHS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
# Of ImageNet's RGB values in [0, 1].
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_EXPANSION = 4


class ResNet(nnx.Module):
    """The maps of the four stages, at 1/4, 1/8, 1/16 and 1/32 of the size.

    ``dilated[i]`` replaces the stride of stage i + 2 by a dilation. ``width`` is that of the first
    stage inside its bottlenecks.
    """

    def __init__(
        self,
        depths: Sequence[int] = DEPTHS["resnet50"],
        *,
        width: int = 64,
        dilated: Sequence[bool] = (False, False, False),
        rngs: nnx.Rngs,
    ):
        self.conv1 = conv_without_bias(3, width, 7, 2, rngs=rngs)
        self.bn1 = FixedBatchNorm(width)
        inputs, dilation = width, 1
        for i, (depth, replaced) in enumerate(zip(depths, (False, *dilated), strict=True)):
            before, stride = dilation, 1 if i == 0 else 2
            if replaced:
                dilation, stride = dilation * stride, 1
            blocks = []
            for j in range(depth):  # as in torchvision, the first block keeps the old dilation
                own = (stride, before) if j == 0 else (1, dilation)
                blocks.append(Bottleneck(inputs, width * 2**i, *own, rngs=rngs))
                inputs = width * 2**i * _EXPANSION
            setattr(self, f"layer{i + 1}", nnx.List(blocks))

    def __call__(self, x: Float[Array, "b h w 3"]) -> list[Float[Array, "b i j c"]]:
        """``x``: images in [-1, 1]."""
        mean, std = (jnp.asarray(value, x.dtype) for value in (IMAGENET_MEAN, IMAGENET_STD))
        x = ((x + 1) / 2 - mean) / std
        x = nnx.relu(self.bn1(self.conv1(x)))
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))  # by zeros: nothing is below them
        x = nnx.max_pool(x, (3, 3), strides=(2, 2))
        maps = []
        for i in range(1, 5):
            for block in getattr(self, f"layer{i}"):
                x = block(x)
            maps.append(x)
        return maps


class Bottleneck(nnx.Module):
    def __init__(self, inputs: int, width: int, stride: int, dilation: int, *, rngs: nnx.Rngs):
        outputs = width * _EXPANSION
        self.conv1 = conv_without_bias(inputs, width, 1, rngs=rngs)
        self.bn1 = FixedBatchNorm(width)
        self.conv2 = conv_without_bias(width, width, 3, stride, dilation, rngs=rngs)
        self.bn2 = FixedBatchNorm(width)
        self.conv3 = conv_without_bias(width, outputs, 1, rngs=rngs)
        self.bn3 = FixedBatchNorm(outputs)
        changes = stride != 1 or inputs != outputs
        shortcut = {
            "0": conv_without_bias(inputs, outputs, 1, stride, rngs=rngs),
            "1": FixedBatchNorm(outputs),
        }
        self.downsample = nnx.Dict(shortcut) if changes else None

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        h = nnx.relu(self.bn1(self.conv1(x)))
        h = nnx.relu(self.bn2(self.conv2(h)))
        h = self.bn3(self.conv3(h))
        if self.downsample is not None:
            x = self.downsample["1"](self.downsample["0"](x))
        return nnx.relu(x + h)


def conv_without_bias(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int = 1,
    dilation: int = 1,
    *,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A square convolution that keeps the size at stride 1; a norm follows it."""
    pad = dilation * (kernel // 2)
    return nnx.Conv(
        inputs,
        outputs,
        (kernel, kernel),
        strides=stride,
        padding=((pad, pad), (pad, pad)),
        kernel_dilation=dilation,
        use_bias=False,
        rngs=rngs,
    )
