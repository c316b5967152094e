"""The kinds of denoisers, by the names that ``denoiser.kind`` of a config can have.

All denoisers are called with the same argument names:

    denoiser(x, timestep, context, mask, vector, level=..., low=..., residuals=...)

    context [b, l, d]   the text's states
    mask [b, l]         which of the states may be attended to
    vector [b, p]       pooled text and sizes; None for a denoiser without a vector
    level [b]           the noise level of a low-resolution image
    low [b, h, w]       low-resolution tokens
    residuals           the outputs of a ControlNet; only the U-Net accepts them

The last three are left out if the denoiser has no such input.

All constructors take ``context_width``, ``vector_width`` (None for no vector; a pixart accepts no
other value), ``remat``, ``attend``, ``constrain`` and ``gather``, and further arguments by the kind
of data:

    continuous      in_channels, out_channels
    tokens          codes
    coarse tokens   codes, low_codes, low_side; the denoiser draws tokens given coarser ones
"""

from dataclasses import dataclass
from typing import Literal

from flax import nnx

from emu_jax.nn.diffusion_transformer import DiffusionTransformer
from emu_jax.nn.efficient_unet import EfficientUNet
from emu_jax.nn.mmdit import MMDiT
from emu_jax.nn.pixart import PixArt
from emu_jax.nn.super_resolution import SuperResolutionTransformer
from emu_jax.nn.token_transformer import TokenTransformer
from emu_jax.nn.unet import UNet
from emu_jax.nn.uvit import UVit


@dataclass(frozen=True)
class DenoiserKind:
    """A denoiser's ``module`` and the optional arguments of its constructor.

    - ``level``: takes ``level=True`` for a super-resolution stage, which has a noise level;
    - ``side``: takes ``side``, the number of positions along the longest side of an image;
    - ``text_width``: takes ``text_width`` if the text is to be projected to ``context_width``.

    ``fixed`` is a regular expression for the paths of parameters that never train, "" for none.
    """

    module: type[nnx.Module]
    data: Literal["continuous", "tokens", "coarse tokens"]
    level: bool = False
    side: bool = False
    text_width: bool = False
    fixed: str = ""


DENOISERS: dict[str, DenoiserKind] = {
    "unet": DenoiserKind(UNet, "continuous", level=True, text_width=True),
    "efficient_unet": DenoiserKind(EfficientUNet, "continuous", level=True),
    "transformer": DenoiserKind(DiffusionTransformer, "continuous", level=True),
    "pixart": DenoiserKind(PixArt, "continuous"),
    "mmdit": DenoiserKind(MMDiT, "continuous", fixed="pos_embed/pos_embed"),
    "token_transformer": DenoiserKind(TokenTransformer, "tokens", side=True),
    "uvit": DenoiserKind(UVit, "tokens"),
    "super_resolution_transformer": DenoiserKind(
        SuperResolutionTransformer, "coarse tokens", side=True
    ),
}
