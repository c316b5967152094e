"""ControlNet: a trained copy of a U-Net's encoder half, which reads a further image, the hint.

With the U-Net's encoder half E, its copy E', the hint c and the encoder h of hints, the features of
level i are (Zhang et al. 2023, arXiv:2302.05543)

    y_i = E(x, t, text)_i + Z_i E'(conv_in(x) + h(c), t, text)_i                             (1)

for every skip connection and for the middle block, whose decoder half stays as it is. Z_i are 1 x 1
convolutions. They and the last layer of h start at zero, so exactly zero is added at first.
Parameters are named as in diffusers' ControlNetModel.

A smaller copy leaves out all attention and one residual block of the middle (``attention=False``);
the published small ControlNets for Stable Diffusion XL are such copies.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from emu_jax.nn.functional import Network, Params, nest, subtree
from emu_jax.nn.layers import conv
from emu_jax.nn.unet import UNet

PREFIX, BASE = "control", "denoiser"  # of the parameters among those of a generator
_HINT = "controlnet_cond_embedding"


class HintEncoder(nnx.Module):
    """An image in [0, 1] to features of ``outputs`` channels, all zero at first.

    ``widths`` are the channels at full size and after each halving.
    """

    def __init__(self, channels: int, widths: Sequence[int], outputs: int, *, rngs: nnx.Rngs):
        self.conv_in = conv(channels, widths[0], rngs=rngs)
        self.blocks = nnx.List()
        for before, after in pairwise(widths):
            self.blocks.append(conv(before, before, rngs=rngs))
            self.blocks.append(conv(before, after, stride=2, rngs=rngs))
        self.conv_out = conv(widths[-1], outputs, zero=True, rngs=rngs)

    def __call__(self, hint: Float[Array, "b H W k"]) -> Float[Array, "b h w c"]:
        x = jax.nn.silu(self.conv_in(hint))
        for block in self.blocks:
            x = jax.nn.silu(block(x))
        return self.conv_out(x)


class ControlNet(UNet):
    """``control(x, timestep, context, mask, vector, hint=control.embed(image))`` -> the residuals
    of (1), which :class:`emu_jax.nn.unet.UNet` takes.

    ``unet`` are the arguments of the U-Net without ``out_channels``. ``bgr``: the channels of hints
    are reversed first.
    """

    def __init__(
        self,
        *,
        hint_channels: int = 3,
        hint_widths: Sequence[int] = (16, 32, 96, 256),
        attention: bool = True,
        bgr: bool = False,
        rngs: nnx.Rngs,
        **unet: Any,
    ):
        if not attention:
            unet |= dict(transformer_depth=0, mid_depth=0, scan=False)
        super().__init__(**unet, out_channels=None, rngs=rngs)
        if not attention:
            self.mid_block.resnets = nnx.List([self.mid_block.resnets[0]])
        self.bgr = bgr
        *skips, last = self.skip_widths
        self.controlnet_cond_embedding = HintEncoder(
            hint_channels, hint_widths, skips[0], rngs=rngs
        )
        self.controlnet_down_blocks = nnx.List(
            [conv(width, width, 1, zero=True, rngs=rngs) for width in skips]
        )
        self.controlnet_mid_block = conv(last, last, 1, zero=True, rngs=rngs)

    def embed(self, hint: Float[Array, "b H W k"]) -> Float[Array, "b h w c"]:
        """The features of images in [0, 1], which do not depend on x."""
        if self.bgr:
            hint = hint[..., ::-1]
        return self.gathered(self.controlnet_cond_embedding)(hint)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        timestep: Float[Array, "b"],
        context: Float[Array, "b l d"] | None = None,
        mask: Bool[Array, "b l"] | None = None,
        vector: Float[Array, "b p"] | None = None,
        *,
        hint: Float[Array, "b h w d2"],
    ) -> list[Float[Array, "b _ _ _"]]:
        temb, text = self.conditioned(x, timestep, context, mask, vector, None)
        x = self.constrain(self.gathered(self.conv_in)(x) + hint)
        x, skips = self.down(x, temb, text)
        outputs = zip(
            (*self.controlnet_down_blocks, self.controlnet_mid_block),
            (*skips, self.middle(x, temb, text)),
            strict=True,
        )
        return [self.gathered(layer)(features) for layer, features in outputs]


@dataclass(frozen=True)
class ControlAdapter:
    """A ControlNet laid over a frozen generator (:class:`emu_jax.tasks.adapting.Adapter`)."""

    hint_channels: int
    hint_widths: tuple[int, ...]

    def init(self, key: jax.Array, shapes: Mapping[str, Any]) -> Params:
        """Fresh parameters of the hint's encoder, and zeros: of the copy too, which starts from the
        values that :meth:`copied` names.
        """
        own = subtree(dict(shapes), PREFIX)
        (outputs,) = own[f"{_HINT}/conv_out/bias"].shape
        encoder = Network(
            lambda rngs: HintEncoder(self.hint_channels, self.hint_widths, outputs, rngs=rngs)
        )
        zeros = {path: jnp.zeros(x.shape, x.dtype) for path, x in own.items()}
        return nest(PREFIX, zeros | nest(_HINT, encoder.init(key)))

    def merged(self, base: Mapping[str, Any], adapter: Mapping[str, Any]) -> Params:
        own = {path: x for path, x in adapter.items() if path.startswith(f"{PREFIX}/")}
        return {**base, **own}

    def copied(self, shapes: Mapping[str, Any]) -> dict[str, str]:
        """Path of a parameter -> path of the base's parameter that it starts from."""
        pairs = {f"{PREFIX}/{path}": f"{BASE}/{path}" for path in subtree(dict(shapes), BASE)}
        return {own: base for own, base in pairs.items() if own in shapes}
