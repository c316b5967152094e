"""``config.denoiser``: one section for every kind of network.

The keys are those arguments of the network's constructor that a config chooses, and have the
constructor's defaults. Channels, codes and widths of the text follow from other sections. A kind
of :data:`emu_jax.nn.denoisers.DENOISERS` that has no section here has its constructor's arguments.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from emu_jax.assembly.kinds import Kinds
from emu_jax.assembly.schema import Section, key, required
from emu_jax.nn.denoisers import DENOISERS, GIVEN

Remat = Literal["none", "block", "dots"]

_KIND = "The network."
_REMAT = (
    "What the backward pass recomputes: nothing (none), layers (block), or all of a layer but "
    "matrix products (dots)."
)
_SCAN = "Compute a stack of transformer layers as one loop."
_POOL = "Heads of the attention that pools the text; None: a pooled vector is given."
_TIME = "Width of the timestep embedding; None: 4 times the finest width."


@dataclass(frozen=True, kw_only=True)
class UNet(Section):
    """:class:`emu_jax.nn.unet.UNet`. A tuple has one value for each stage, the finest first."""

    kind: Literal["unet"] = key("unet", _KIND)
    widths: tuple[int, ...] = required("Channels.", at_least=1, filled=True)
    blocks: int | tuple[int, ...] = key(2, "Residual blocks.", at_least=1)
    transformer_depth: int | tuple[int, ...] = key(
        1, "Attention layers after each residual block; 0: none.", at_least=0
    )
    mid_depth: int = key(1, "Attention layers in the middle; 0: none.", at_least=0)
    heads: int | tuple[int, ...] | None = key(
        None, "Attention heads. Give either heads or head_width.", at_least=1
    )
    head_width: int | tuple[int, ...] | None = key(
        None, "Channels of an attention head. Give either heads or head_width.", at_least=1
    )
    context_width: int | None = key(
        None, "Width to which the text is projected; None: no projection.", at_least=1
    )
    text_pool_heads: int | None = key(None, _POOL, at_least=1)
    time_width: int | None = key(None, _TIME, at_least=1)
    attention: Literal["transformer", "added_kv"] = key(
        "transformer", "Transformer layers, or one attention over text and pixels (added_kv)."
    )
    linear_projection: bool = key(True, "Project by dense layers; False: by 1 x 1 convolutions.")
    only_cross_attention: bool | tuple[bool, ...] = key(False, "Pixels attend to the text alone.")
    context_norm: bool = key(False, "Normalize the text of added_kv attention.")
    resample: Literal["conv", "resnet"] = key("conv", "How maps are halved and doubled.")
    scale_shift: bool = key(False, "The timestep scales and shifts; False: it is added.")
    output_scale_factor: float = key(1.0, "Divisor of residual sums.", above=0)
    act: Literal["silu", "gelu", "gelu_tanh", "quick_gelu"] = key("silu", "Activation.")
    groups: int = key(32, "Groups of group norms.", at_least=1)
    eps: float = key(1e-5, "Epsilon of group norms.", above=0)
    scan: bool = key(False, _SCAN)
    remat: Remat = key("none", _REMAT)


@dataclass(frozen=True, kw_only=True)
class EfficientUNet(Section):
    """:class:`emu_jax.nn.efficient_unet.EfficientUNet`. Tuples have one value for each stage."""

    kind: Literal["efficient_unet"] = key("efficient_unet", _KIND)
    widths: tuple[int, ...] = required("Channels.", at_least=1, filled=True)
    blocks: tuple[int, ...] = required("Residual blocks.", at_least=1, filled=True)
    attention: tuple[Literal["none", "cross", "full"], ...] = required(
        "Attention: none, to the text (cross), or to text and pixels (full).", filled=True
    )
    head_width: int = required("Channels of an attention head.", at_least=1)
    text_pool_heads: int | None = key(None, _POOL, at_least=1)
    middle: int = key(0, "Residual blocks in the middle.", at_least=0)
    time_width: int | None = key(None, _TIME, at_least=1)
    groups: int = key(32, "Groups of group norms.", at_least=1)
    remat: Remat = key("none", _REMAT)


@dataclass(frozen=True, kw_only=True)
class DiffusionTransformer(Section):
    """:class:`emu_jax.nn.diffusion_transformer.DiffusionTransformer`."""

    kind: Literal["transformer"] = key("transformer", _KIND)
    patch: int = required("Side of a patch.", at_least=1)
    width: int = required("Width of a token.", at_least=1)
    depth: int = required("Layers.", at_least=1)
    heads: int = required("Attention heads.", at_least=1)
    mlp_width: int = required("Hidden width of the MLPs.", at_least=1)
    remat: Remat = key("none", _REMAT)


@dataclass(frozen=True, kw_only=True)
class PixArt(Section):
    """:class:`emu_jax.nn.pixart.PixArt`."""

    kind: Literal["pixart"] = key("pixart", _KIND)
    patch: int = required("Side of a patch.", at_least=1)
    width: int = required("Width of a token.", at_least=1)
    depth: int = required("Layers.", at_least=1)
    heads: int = required("Attention heads.", at_least=1)
    span: float = required("Largest position along a side, whatever the size.", above=0)
    scan: bool = key(False, _SCAN)
    remat: Remat = key("none", _REMAT)


@dataclass(frozen=True, kw_only=True)
class MMDiT(Section):
    """:class:`emu_jax.nn.mmdit.MMDiT`, Stable Diffusion 3's."""

    kind: Literal["mmdit"] = key("mmdit", _KIND)
    patch: int = required("Side of a patch.", at_least=1)
    width: int = required("Width of a token.", at_least=1)
    depth: int = required("Layers.", at_least=1)
    heads: int = required("Attention heads.", at_least=1)
    table: int = required("Rows and columns of the table of positions.", at_least=1)
    span: float = required("Largest position of the table.", above=0)
    qk_norm: bool = key(False, "Normalize queries and keys.")
    scan: bool = key(False, _SCAN)
    remat: Remat = key("none", _REMAT)


@dataclass(frozen=True, kw_only=True)
class TokenTransformer(Section):
    """:class:`emu_jax.nn.token_transformer.TokenTransformer`."""

    kind: Literal["token_transformer"] = key("token_transformer", _KIND)
    width: int = required("Width of a token.", at_least=1)
    depth: int = required("Layers.", at_least=1)
    heads: int = required("Attention heads.", at_least=1)
    mlp_width: int = required("Hidden width of the MLPs.", at_least=1)
    remat: Remat = key("none", _REMAT)


@dataclass(frozen=True, kw_only=True)
class UVit(Section):
    """:class:`emu_jax.nn.uvit.UVit`, aMUSEd's."""

    kind: Literal["uvit"] = key("uvit", _KIND)
    width: int = key(1024, "Width of a token in the transformer.", at_least=1)
    depth: int = key(22, "Layers of the transformer.", at_least=1)
    heads: int = key(16, "Attention heads of the transformer.", at_least=1)
    mlp_width: int = key(2816, "Hidden width of the transformer's MLPs.", at_least=1)
    channels: int = key(768, "Channels of the convolutional blocks.", at_least=1)
    embed_width: int = key(768, "Width of the token embedding.", at_least=1)
    blocks: int = key(3, "Convolutional blocks on either side of the transformer.", at_least=1)
    block_heads: int = key(12, "Attention heads of the convolutional blocks.", at_least=1)
    vocabulary: int | None = key(
        None, "Rows of the token embedding; None: the codes and [MASK].", at_least=1
    )
    resample: bool = key(False, "Halve the map before the transformer, double it behind.")
    eps: float = key(1e-6, "Epsilon of the norms.", above=0)
    scan: bool = key(False, _SCAN)
    remat: Remat = key("none", _REMAT)


@dataclass(frozen=True, kw_only=True)
class SuperResolutionTransformer(Section):
    """:class:`emu_jax.nn.super_resolution.SuperResolutionTransformer`."""

    kind: Literal["super_resolution_transformer"] = key("super_resolution_transformer", _KIND)
    width: int = required("Width of a token; conditioner.width is the same.", at_least=1)
    depth: int = required("Layers of the fine tokens.", at_least=1)
    low_depth: int = required("Layers of the coarse tokens.", at_least=1)
    heads: int = required("Attention heads, an even number.", at_least=1)
    mlp_width: int = required("Hidden width of the MLPs.", at_least=1)
    block: int = required("Side of a block of multi-axis attention, in tokens.", at_least=1)
    remat: Remat = key("none", _REMAT)


Denoiser = Annotated[
    Section,
    Kinds(
        DENOISERS,
        UNet,
        EfficientUNet,
        DiffusionTransformer,
        PixArt,
        MMDiT,
        TokenTransformer,
        UVit,
        SuperResolutionTransformer,
        given=GIVEN,
    ),
]
