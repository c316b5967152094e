"""diffusers' ControlNetModel <-> the arguments of :class:`emu_jax.nn.control.ControlNet`.

A ControlNet's config.json has the settings of its U-Net's, except those of the decoder half, and
four of its own. The first are translated as the U-Net's (:mod:`emu_jax.interop.unet`). The names of
parameters are the same.
"""

from collections.abc import Mapping
from typing import Any

from emu_jax.errors import UserError
from emu_jax.interop import unet
from emu_jax.interop.configs import complete, plain

CLASS = "ControlNetModel"
_OWN: dict[str, Any] = dict(
    conditioning_channels=3,
    controlnet_conditioning_channel_order="rgb",
    conditioning_embedding_out_channels=[16, 32, 96, 256],
    global_pool_conditions=False,
)
# Settings of a U-Net that a ControlNet does not have.
_DECODER = {
    *("sample_size", "out_channels", "center_input_sample", "up_block_types", "dropout"),
    *("reverse_transformer_layers_per_block", "dual_cross_attention", "resnet_skip_time_act"),
    *("resnet_out_scale_factor", "time_embedding_type", "time_embedding_dim", "conv_in_kernel"),
    *("time_embedding_act_fn", "timestep_post_act", "time_cond_proj_dim", "conv_out_kernel"),
    *("attention_type", "class_embeddings_concat", "mid_block_only_cross_attention"),
    "cross_attention_norm",
}
DEFAULTS = {key: x for key, x in unet.DEFAULTS.items() if key not in _DECODER} | _OWN
# They must have their defaults: hints are images in color, residuals are maps.
_UNREAD = {"global_pool_conditions", "conditioning_channels"}
_UNREAD |= {"mid_block_scale_factor", "class_embed_type"}
_READ = {*unet.READ, *_OWN} - _UNREAD
_WHOLE, _SMALL = "UNetMidBlock2DCrossAttn", "UNetMidBlock2D"
_ORDERS = {"rgb": False, "bgr": True}


def arguments(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the arguments of the U-Net without ``out_channels``, those of the ControlNet alone).

    Raises:
      UserError: a structure that ours does not have, by the setting's name.
    """
    c = complete(config, DEFAULTS, _READ, CLASS)
    small = c["mid_block_type"] == _SMALL
    if small and {*c["down_block_types"]} != {"DownBlock2D"}:
        raise UserError(
            f"This {CLASS} has mid_block_type = {_SMALL!r} and attention in other blocks, which is "
            "not supported."
        )
    order = c["controlnet_conditioning_channel_order"]
    if order not in _ORDERS:
        raise UserError(
            f"This {CLASS} has controlnet_conditioning_channel_order = {order!r}, which is not "
            "supported."
        )
    own = {key: x for key, x in c.items() if key not in _OWN}
    own |= dict(mid_block_type=_WHOLE, up_block_types=unet.mirrored(c["down_block_types"]))
    found = unet.arguments(own)
    del found["out_channels"]
    return found, dict(
        hint_channels=c["conditioning_channels"],
        hint_widths=c["conditioning_embedding_out_channels"],
        attention=not small,
        bgr=_ORDERS[order],
    )


def to_config(unet_arguments: Mapping[str, Any], control: Mapping[str, Any]) -> dict[str, Any]:
    """The complete config.json for the arguments of the U-Net and of the ControlNet alone.

    Raises:
      UserError: a structure that the public class does not have.
    """
    given = {key: x for key, x in unet_arguments.items() if x is not None}
    whole = unet.to_config(given | dict(out_channels=given["in_channels"]))
    for key in sorted(_DECODER - {"sample_size", "up_block_types", "out_channels"}):
        if plain(whole[key]) != plain(unet.DEFAULTS[key]):
            raise UserError(
                f"{CLASS} has no {key}, which is {whole[key]!r} in the U-Net of this ControlNet: "
                "it cannot be exported to it."
            )
    found = {key: whole[key] for key in DEFAULTS if key in whole}
    if not control["attention"]:
        found |= dict(
            mid_block_type=_SMALL,
            down_block_types=["DownBlock2D"] * len(found["block_out_channels"]),
        )
    return found | dict(
        _class_name=CLASS,
        conditioning_channels=control["hint_channels"],
        conditioning_embedding_out_channels=plain(control["hint_widths"]),
        controlnet_conditioning_channel_order="bgr" if control["bgr"] else "rgb",
        global_pool_conditions=False,
    )
