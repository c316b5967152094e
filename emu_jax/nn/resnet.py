"""The residual block of U-Nets and autoencoders.

    h = conv1(act(norm1(x)))                                                               (1)
    h = norm2(h + e),    with scale_shift:    h = norm2(h) (1 + s) + b                     (2)
    out = (shortcut(x) + conv2(act(h))) / output_scale_factor                              (3)

e or (s, b) is a linear map of the time embedding. With ``resample`` x and act(norm1(x)) are
resampled before (1). conv2 starts at zero, so a new block equals its shortcut.
"""

from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from emu_jax.nn.layers import (
    GroupNorm,
    activation,
    conv,
    downsample_mean,
    linear,
    upsample_nearest,
)


class ResnetBlock(nnx.Module):
    """Two 3 x 3 convolutions and a shortcut; ``temb_channels=None`` has no time embedding."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        temb_channels: int | None = None,
        groups: int = 32,
        eps: float = 1e-5,
        act: str = "silu",
        scale_shift: bool = False,
        output_scale_factor: float = 1.0,
        resample: Literal["up", "down"] | None = None,
        rngs: nnx.Rngs,
    ):
        self.act = activation(act)
        self.scale_shift = scale_shift
        self.output_scale_factor = output_scale_factor
        self.resample = {"up": upsample_nearest, "down": downsample_mean, None: None}[resample]
        self.norm1 = GroupNorm(in_channels, groups, eps=eps, rngs=rngs)
        self.conv1 = conv(in_channels, out_channels, rngs=rngs)
        self.time_emb_proj = (
            None
            if temb_channels is None
            else linear(temb_channels, out_channels * (2 if scale_shift else 1), rngs=rngs)
        )
        self.norm2 = GroupNorm(out_channels, groups, eps=eps, rngs=rngs)
        self.conv2 = conv(out_channels, out_channels, zero=True, rngs=rngs)
        self.conv_shortcut = (
            None if in_channels == out_channels else conv(in_channels, out_channels, 1, rngs=rngs)
        )

    def __call__(
        self, x: Float[Array, "b h w c"], temb: Float[Array, "b t"] | None = None
    ) -> Float[Array, "b h2 w2 c2"]:
        """``temb`` is the time embedding after its activation, which all blocks share."""
        h = self.act(self.norm1(x))
        if self.resample is not None:
            x, h = self.resample(x), self.resample(h)
        h = self.conv1(h)
        shift = None
        if self.time_emb_proj is not None:
            assert temb is not None, "this block was built with temb_channels"
            shift = self.time_emb_proj(temb)[:, None, None, :]
        if shift is None:
            h = self.norm2(h)
        elif self.scale_shift:
            scale, shift = jnp.split(shift, 2, axis=-1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + shift)
        h = self.conv2(self.act(h))
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
        return (x + h) / self.output_scale_factor
