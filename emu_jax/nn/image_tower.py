"""The convolutional image tower of judges and rewards: overlapping patches, then stages of residual
blocks, each with a map of half the size and with more channels.
"""

from collections.abc import Sequence

from flax import nnx
from jaxtyping import Array, Float

from emu_jax.nn.layers import GroupNorm, conv
from emu_jax.nn.resnet import ResnetBlock
from emu_jax.nn.stack import Constrain

PATCH = 4


class ImageTower(nnx.Module):
    """``widths`` are the channels of the stages, of ``blocks`` residual blocks each; the first
    stage's map has a quarter of the image's side. ``norm_out`` is for the last map.
    """

    def __init__(
        self,
        widths: Sequence[int],
        blocks: int,
        groups: int,
        constrain: Constrain = lambda x: x,
        *,
        rngs: nnx.Rngs,
    ):
        self.constrain = constrain
        self.conv_in = conv(3, widths[0], 7, stride=PATCH, rngs=rngs)
        self.stages = nnx.List()
        self.downsamplers = nnx.List()
        for i, channels in enumerate(widths):
            if i:
                self.downsamplers.append(conv(widths[i - 1], channels, 3, stride=2, rngs=rngs))
            self.stages.append(
                nnx.List(
                    ResnetBlock(channels, channels, groups=groups, rngs=rngs) for _ in range(blocks)
                )
            )
        self.norm_out = GroupNorm(widths[-1], groups, rngs=rngs)

    def maps(self, x: Float[Array, "b h w 3"]) -> list[Float[Array, "b _ _ _"]]:
        """The map of every stage, from images in [-1, 1] of any size that the stages can halve."""
        x, found = self.conv_in(x), []
        for i, stage in enumerate(self.stages):
            if i:
                x = self.downsamplers[i - 1](x)
            for block in stage:
                x = self.constrain(block(x))
            found.append(x)
        return found
