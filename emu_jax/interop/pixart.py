"""diffusers' PixArtTransformer2DModel <-> the arguments of :class:`emu_jax.nn.pixart.PixArt`.

The names of parameters are the same, so only config.json is translated. The public class computes
position embeddings from ``sample_size``, ``patch_size`` and ``interpolation_scale``. They depend on
one number only, our argument

    span = sample_size // patch_size / interpolation_scale                                 (1)

If there are twice as many output as input channels, half of them predict a variance
(:func:`says_variance`).
"""

from collections.abc import Mapping
from typing import Any

from emu_jax.errors import UserError
from emu_jax.interop.configs import complete, square

CLASS = "PixArtTransformer2DModel"
# The name of the class in the published files.
OLD_CLASS = "Transformer2DModel"
DEFAULTS: dict[str, Any] = dict(
    num_attention_heads=16,
    attention_head_dim=72,
    in_channels=4,
    out_channels=8,
    num_layers=28,
    dropout=0.0,
    norm_num_groups=32,
    cross_attention_dim=1152,
    attention_bias=True,
    sample_size=128,
    patch_size=2,
    activation_fn="gelu-approximate",
    num_embeds_ada_norm=1000,
    upcast_attention=False,
    norm_type="ada_norm_single",
    norm_elementwise_affine=False,
    norm_eps=1e-6,
    interpolation_scale=None,
    use_additional_conditions=None,
    caption_channels=None,
    attention_type="default",
)
# Further settings of that older class.
_OLD: dict[str, Any] = dict(
    double_self_attention=False,
    num_vector_embeds=None,
    only_cross_attention=False,
    use_linear_projection=False,
)
# Our argument -> the setting with the same value.
_SAME = dict(
    in_channels="in_channels",
    context_width="caption_channels",
    patch="patch_size",
    depth="num_layers",
    heads="num_attention_heads",
)
# Settings that are read below, or (groups of a norm and rows of an embedding that the network does
# not have, precision) do not change the network's function.
_READ = {
    *_SAME.values(),
    *("attention_head_dim", "out_channels", "cross_attention_dim", "sample_size"),
    *("interpolation_scale", "use_additional_conditions"),
    *("norm_num_groups", "num_embeds_ada_norm", "upcast_attention"),
}


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments for a config.json.

    Raises:
      UserError: names a setting whose structure our network does not have.
    """
    c = complete(config, DEFAULTS | _OLD, _READ, CLASS)
    side = square(c)
    sizes = c["use_additional_conditions"]
    if sizes is None:  # the default of the class, for PixArt-alpha's weights
        sizes = side == 128
    width = c["num_attention_heads"] * c["attention_head_dim"]
    channels, out = c["in_channels"], c["out_channels"] or c["in_channels"]
    for refused, said in (
        (sizes, "is conditioned on sizes as PixArt-alpha (use_additional_conditions)"),
        (not c["caption_channels"], "has no projection of its text (caption_channels)"),
        (
            c["cross_attention_dim"] != width,
            f"has cross_attention_dim = {c['cross_attention_dim']} for a width of {width}",
        ),
        (
            out not in (channels, 2 * channels),
            f"has out_channels = {out} for {channels} input channels",
        ),
    ):
        if refused:
            raise UserError(f"This {CLASS} {said}, which is not supported.")
    scale = c["interpolation_scale"] or max(side // 64, 1)
    return {ours: c[theirs] for ours, theirs in _SAME.items()} | dict(
        out_channels=out,
        width=width,
        span=side // c["patch_size"] / scale,
    )


def says_variance(config: Mapping[str, Any]) -> bool:
    """Whether half of the output channels predict a variance, which its pipeline never uses."""
    c = {**DEFAULTS, **config}
    return c["out_channels"] == 2 * c["in_channels"]


def to_config(arguments: Mapping[str, Any], side: int) -> dict[str, Any]:
    """The complete config.json for a constructor's arguments and maps of ``side`` positions."""
    a = arguments
    scale = side // a["patch"] / a["span"]
    return (
        DEFAULTS
        | {theirs: a[ours] for ours, theirs in _SAME.items()}
        | dict(
            _class_name=CLASS,
            attention_head_dim=a["width"] // a["heads"],
            out_channels=a["out_channels"],
            cross_attention_dim=a["width"],
            sample_size=side,
            interpolation_scale=int(scale) if scale == int(scale) else scale,
            use_additional_conditions=False,
        )
    )


def measured(params: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that depend on the other networks, read from the parameters' shapes."""
    patch, _, channels, _ = params["pos_embed/proj/kernel"].shape
    return dict(
        in_channels=channels,
        out_channels=params["proj_out/kernel"].shape[1] // patch**2,
        context_width=params["caption_projection/linear_1/kernel"].shape[0],
    )
