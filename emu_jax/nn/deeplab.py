"""DeepLab-V3: a class for every pixel (Chen et al. 2017, arXiv:1706.05587), as torchvision has it.

A dilated ResNet gives maps at 1/8 of the size. Atrous spatial pyramid pooling (ASPP) reads them
with several dilations side by side, and with one mean over the whole image.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from emu_jax.nn.layers import FixedBatchNorm
from emu_jax.nn.resizing import bilinear
from emu_jax.nn.resnet50 import DEPTHS, ResNet, conv_without_bias


class DeepLab(nnx.Module):
    def __init__(
        self,
        classes: int = 21,
        *,
        depths: Sequence[int] = DEPTHS["resnet50"],
        width: int = 64,
        rates: Sequence[int] = (12, 24, 36),
        channels: int = 256,
        rngs: nnx.Rngs,
    ):
        self.backbone = ResNet(depths, width=width, dilated=(False, True, True), rngs=rngs)
        self.classifier = nnx.Dict(
            {
                "0": Aspp(32 * width, rates, channels, rngs=rngs),
                "1": conv_without_bias(channels, channels, 3, rngs=rngs),
                "2": FixedBatchNorm(channels),
                "4": nnx.Conv(channels, classes, (1, 1), rngs=rngs),
            }
        )

    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b h w classes"]:
        """Logits of images in [-1, 1]."""
        head = self.classifier
        y = nnx.relu(head["2"](head["1"](head["0"](self.backbone(x)[-1]))))
        height, width = x.shape[1:3]
        return bilinear(head["4"](y), (height, width), half_pixel=True)


class Aspp(nnx.Module):
    def __init__(self, inputs: int, rates: Sequence[int], channels: int, *, rngs: nnx.Rngs):
        def unit(inputs: int, kernel: int, dilation: int = 1, first: int = 0) -> nnx.Dict:
            conv = conv_without_bias(inputs, channels, kernel, dilation=dilation, rngs=rngs)
            return nnx.Dict({str(first): conv, str(first + 1): FixedBatchNorm(channels)})

        self.convs = nnx.List(
            [
                unit(inputs, 1),
                *(unit(inputs, 3, rate) for rate in rates),
                unit(inputs, 1, first=1),  # torchvision counts its pooling
            ]
        )
        self.project = unit(channels * len(self.convs), 1)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        *local, whole = self.convs
        maps = [nnx.relu(unit["1"](unit["0"](x))) for unit in local]
        mean = nnx.relu(whole["2"](whole["1"](x.mean((1, 2), keepdims=True))))
        maps.append(jnp.broadcast_to(mean, maps[0].shape))
        y = jnp.concatenate(maps, axis=-1)
        return nnx.relu(self.project["1"](self.project["0"](y)))
