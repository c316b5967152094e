"""The kinds of denoisers, by the names that ``denoiser.kind`` of a config can have.

All denoisers are called with the same argument names:

    denoiser(x, timestep, context, mask, vector, level=..., low=..., residuals=...)

    context [b, l, d]   the text's states
    mask [b, l]         which of the states may be attended to
    vector [b, p]       pooled text and sizes; None for a denoiser without a vector
    level [b]           the noise level of a low-resolution image
    low [b, h, w]       low-resolution tokens
    residuals           the outputs of a ControlNet; only the U-Net accepts them

The last three are left out if the denoiser has no such input. A kind with ``attention`` also takes
``attention=True``, returns the attention of its middle block beside its output, and has a method
``require_attention()`` that refuses a network without it.

All constructors take ``context_width``, ``vector_width`` (None for no vector; a pixart accepts no
other value), ``remat``, ``attend``, ``constrain`` and ``gather``, and further arguments by the kind
of data:

    continuous      in_channels, out_channels
    tokens          codes
    coarse tokens   codes, low_codes, low_side; the denoiser draws tokens given coarser ones
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from emu_jax.registry import Lazy

# Arguments of constructors that follow from other sections of a config or from the devices. The
# others are the keys of ``config.denoiser``.
GIVEN = frozenset(
    {
        *("context_width", "vector_width", "text_width", "level", "side"),
        *("in_channels", "out_channels", "codes", "low_codes", "low_side"),
        *("attend", "constrain", "gather", "rngs"),
    }
)


@dataclass(frozen=True)
class DenoiserKind:
    """What builds a denoiser, an ``nnx.Module``, and the optional arguments that it takes.

    - ``level``: takes ``level=True`` for a super-resolution stage, which has a noise level;
    - ``side``: takes ``side``, the number of positions along the longest side of an image;
    - ``text_width``: takes ``text_width`` if the text is to be projected to ``context_width``;
    - ``attention``: can return its attention, for self-attention guidance.

    ``fixed`` is a regular expression for the paths of parameters that never train, "" for none.
    """

    build: Callable[..., Any]
    data: Literal["continuous", "tokens", "coarse tokens"]
    level: bool = False
    side: bool = False
    text_width: bool = False
    attention: bool = False
    fixed: str = ""


DENOISERS: dict[str, DenoiserKind] = {
    "unet": DenoiserKind(
        Lazy("emu_jax.nn.unet:UNet"), "continuous", level=True, text_width=True, attention=True
    ),
    "efficient_unet": DenoiserKind(
        Lazy("emu_jax.nn.efficient_unet:EfficientUNet"), "continuous", level=True
    ),
    "transformer": DenoiserKind(
        Lazy("emu_jax.nn.diffusion_transformer:DiffusionTransformer"), "continuous", level=True
    ),
    "pixart": DenoiserKind(Lazy("emu_jax.nn.pixart:PixArt"), "continuous"),
    "mmdit": DenoiserKind(
        Lazy("emu_jax.nn.mmdit:MMDiT"), "continuous", fixed="pos_embed/pos_embed"
    ),
    "token_transformer": DenoiserKind(
        Lazy("emu_jax.nn.token_transformer:TokenTransformer"), "tokens", side=True
    ),
    "uvit": DenoiserKind(Lazy("emu_jax.nn.uvit:UVit"), "tokens"),
    "super_resolution_transformer": DenoiserKind(
        Lazy("emu_jax.nn.super_resolution:SuperResolutionTransformer"), "coarse tokens", side=True
    ),
}
