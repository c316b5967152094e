"""The patch discriminator of an adversarially trained autoencoder, and its losses.

A stack of 4 x 4 convolutions, stride 2 and then stride 1. Each output is one logit about one patch
(70 x 70 pixels with three strided layers): the discriminator judges texture, while L1 and the
perceptual loss keep the layout.

The published PatchGAN uses BatchNorm, which is not used here: its running averages would be state
besides the parameters, and the logits of one image would depend on the others in its batch, and so
on how the batch is sharded. GroupNorm has neither problem.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from emu_jax.nn.layers import GroupNorm

_INIT = nnx.initializers.normal(0.02)


class PatchDiscriminator(nnx.Module):
    """``layers`` strided convolutions with ``channels`` times 1, 2, 4, at most 8 features.

    ``groups`` is the number of groups of the GroupNorm after each inner convolution (0: no norms).
    """

    def __init__(
        self,
        channels: int = 64,
        layers: int = 3,
        groups: int = 32,
        in_channels: int = 3,
        *,
        rngs: nnx.Rngs,
    ):
        widths = [in_channels] + [channels * min(2**i, 8) for i in range(layers + 1)]
        strides = [2] * layers + [1]
        self.convs = nnx.List(
            _conv(a, b, stride, rngs)
            for a, b, stride in zip(widths[:-1], widths[1:], strides, strict=True)
        )
        # As published, no norm follows the first and the last convolution.
        inner = widths[2:] if groups else []
        self.norms = nnx.List(GroupNorm(width, groups, rngs=rngs) for width in inner)
        self.conv_out = _conv(widths[-1], 1, 1, rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j 1"]:
        """Logits of images in [-1, 1], one per patch; positive means real."""
        for i, conv in enumerate(self.convs):
            x = conv(x)
            if self.norms and i > 0:
                x = self.norms[i - 1](x)
            x = nnx.leaky_relu(x, 0.2)
        return self.conv_out(x)


def _conv(inputs: int, outputs: int, stride: int, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(
        inputs, outputs, (4, 4), strides=stride, padding=1, kernel_init=_INIT, rngs=rngs
    )


def hinge_discriminator_loss(
    real: Float[Array, "..."], fake: Float[Array, "..."]
) -> Float[Array, ""]:
    """(E max(0, 1 - D(x)) + E max(0, 1 + D(x'))) / 2."""
    return (jnp.mean(nnx.relu(1.0 - real)) + jnp.mean(nnx.relu(1.0 + fake))) / 2


def hinge_generator_loss(fake: Float[Array, "..."]) -> Float[Array, ""]:
    """-E D(x'), the generator's hinge loss; its gradient never saturates."""
    return -jnp.mean(fake)
