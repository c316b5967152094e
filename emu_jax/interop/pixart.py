"""diffusers' PixArtTransformer2DModel <-> the arguments of :class:`emu_jax.nn.pixart.PixArt`.

The names of parameters are the same, so only config.json is translated. The public class scales
positions by ``sample_size``, ``patch_size`` and ``interpolation_scale``. They have an effect only
through one number, ours:

    span = sample_size // patch_size / interpolation_scale                                 (1)

With twice as many output as input channels, a variance is predicted too
(:func:`predicts_variance`).
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
# Further settings of the old class.
_OLD: dict[str, Any] = dict(
    double_self_attention=False,
    num_vector_embeds=None,
    only_cross_attention=False,
    use_linear_projection=False,
)
# Our argument -> the setting that is the same number.
_SAME = dict(
    in_channels="in_channels",
    context_width="caption_channels",
    patch="patch_size",
    depth="num_layers",
    heads="num_attention_heads",
)
# Read below, or without effect on the network's mathematics: groups of a norm and rows of an
# embedding that it does not have, a precision.
_READ = {
    *_SAME.values(),
    *("attention_head_dim", "out_channels", "cross_attention_dim", "sample_size"),
    *("interpolation_scale", "use_additional_conditions"),
    *("norm_num_groups", "num_embeds_ada_norm", "upcast_attention"),
}


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments of a config.json.

    Raises:
      UserError: a structure that ours does not have, by the setting's name.
    """
    c = complete(config, DEFAULTS | _OLD, _READ, CLASS)
    side = square(c)
    sizes = c["use_additional_conditions"]
    if sizes is None:  # the default of the class, made for the weights of PixArt-alpha
        sizes = side == 128
    width = c["num_attention_heads"] * c["attention_head_dim"]
    channels, out = c["in_channels"], c["out_channels"] or c["in_channels"]
    for refused, reason in (
        (sizes, "has size conditioning (use_additional_conditions), as PixArt-alpha has"),
        (not c["caption_channels"], "has no projection of its text (caption_channels)"),
        (c["cross_attention_dim"] != width, "attends to its text in another width than its own"),
        (out not in (channels, 2 * channels), f"has out_channels = {out} for {channels} in"),
    ):
        if refused:
            raise UserError(f"This {CLASS} {reason}, which is not supported.")
    scale = c["interpolation_scale"] or max(side // 64, 1)
    return {ours: c[theirs] for ours, theirs in _SAME.items()} | dict(
        out_channels=out,
        width=width,
        span=side // c["patch_size"] / scale,
    )


def predicts_variance(config: Mapping[str, Any]) -> bool:
    """Whether half of the output channels are a variance, which its pipeline never uses."""
    c = {**DEFAULTS, **config}
    return c["out_channels"] == 2 * c["in_channels"]


def to_config(arguments: Mapping[str, Any], side: int) -> dict[str, Any]:
    """config.json, complete, of a constructor's arguments, for maps of ``side`` positions."""
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
    """Arguments that follow from the networks around it, read from the parameters."""
    patch, _, channels, _ = params["pos_embed/proj/kernel"].shape
    return dict(
        in_channels=channels,
        out_channels=params["proj_out/kernel"].shape[1] // patch**2,
        context_width=params["caption_projection/linear_1/kernel"].shape[0],
    )
