"""diffusers' AutoencoderKL <-> our autoencoding model: network, latent shift and scale.

Ours takes latents to zero mean and unit variance by z = (raw - shift) / scale, a figure a channel;
the public ones by z = (raw - shift_factor) * scaling_factor, one figure for all.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from emu_jax.errors import UserError
from emu_jax.interop.configs import complete, plain

CLASS = "AutoencoderKL"
DEFAULTS: dict[str, Any] = dict(
    in_channels=3,
    out_channels=3,
    down_block_types=["DownEncoderBlock2D"],
    up_block_types=["UpDecoderBlock2D"],
    block_out_channels=[64],
    layers_per_block=1,
    act_fn="silu",
    latent_channels=4,
    norm_num_groups=32,
    sample_size=32,
    scaling_factor=0.18215,
    shift_factor=None,
    latents_mean=None,
    latents_std=None,
    force_upcast=True,
    use_quant_conv=True,
    use_post_quant_conv=True,
    mid_block_add_attention=True,
)
# Settings that are read below, or (image size, precision) do not change the network's function.
_READ = {
    *("down_block_types", "up_block_types", "block_out_channels", "layers_per_block"),
    *("latent_channels", "norm_num_groups", "sample_size", "scaling_factor", "shift_factor"),
    *("force_upcast", "use_quant_conv", "use_post_quant_conv", "mid_block_add_attention"),
}
# How files older than today's attention class spell its four layers.
_OLD = {
    ".query.": ".to_q.",
    ".key.": ".to_k.",
    ".value.": ".to_v.",
    ".proj_attn.": ".to_out.0.",
}


def current_key(key: str) -> str:
    """A file's key in today's spelling."""
    if ".attentions." in key:
        for old, new in _OLD.items():
            key = key.replace(old, new)
    return key


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of :class:`emu_jax.nn.autoencoder.Autoencoder` of a config.json."""
    c = complete(config, DEFAULTS, _READ, CLASS)
    require_stages(c, CLASS)
    if c["use_quant_conv"] != c["use_post_quant_conv"]:
        raise UserError(f"This {CLASS} has a quant_conv on one side of its latents only.")
    return dict(
        latent_channels=c["latent_channels"],
        widths=c["block_out_channels"],
        blocks=c["layers_per_block"],
        groups=c["norm_num_groups"],
        mid_attention=c["mid_block_add_attention"],
        quant_conv=c["use_quant_conv"],
    )


def require_stages(c: Mapping[str, Any], kind: str) -> None:
    """Refuses a ``kind`` whose stages are not all of one block's kind down, and of one up."""
    for key, block in (
        ("down_block_types", "DownEncoderBlock2D"),
        ("up_block_types", "UpDecoderBlock2D"),
    ):
        if c[key] != [block] * len(c["block_out_channels"]):
            raise UserError(f"This {kind} has {key} = {c[key]}, which is not known here.")


def latent_figures(config: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """(shift, scale), fp32 [channels], of a config.json."""
    c = {**DEFAULTS, **config}
    shape = (c["latent_channels"],)
    shift, factor = c["shift_factor"] or 0.0, c["scaling_factor"]
    return np.full(shape, shift, np.float32), np.full(shape, 1 / factor, np.float32)


def to_config(
    arguments: Mapping[str, Any], shift: np.ndarray, scale: np.ndarray, side: int
) -> dict[str, Any]:
    """config.json, complete, of an autoencoder's arguments and its latent figures [channels].

    Raises:
      UserError: a network or a latent space that the public class does not have.
    """
    a = require_symmetric(arguments, CLASS)
    if a.get("zero_to_one"):
        raise UserError(f"{CLASS} has images in [-1, 1], not in [0, 1] (zero_to_one).")
    if np.ptp(shift) or np.ptp(scale):
        raise UserError(
            f"{CLASS} has one shift and one scale for all latent channels: this autoencoder's, "
            "measured after its training, differ from channel to channel."
        )
    return DEFAULTS | dict(
        _class_name=CLASS,
        **stages(a),
        latent_channels=a["latent_channels"],
        sample_size=side,
        scaling_factor=_shortest(1 / scale[0]),
        shift_factor=_shortest(shift[0]) if shift[0] else None,
        use_quant_conv=a.get("quant_conv", False),
        use_post_quant_conv=a.get("quant_conv", False),
    )


def require_symmetric(arguments: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """An autoencoder's arguments as in JSON.

    Raises:
      UserError: Fourier features, or a decoder that is not the encoder's mirror image, of which
        ``kind`` knows nothing.
    """
    a: dict[str, Any] = {key: plain(value) for key, value in arguments.items() if value is not None}
    widths, blocks = a["widths"], a["blocks"]
    if a.get("fourier_bands"):
        raise UserError(
            f"{kind} has no Fourier features: export an autoencoder with fourier_bands=0."
        )
    if a.get("decoder_widths", widths) != widths or a.get("decoder_blocks", blocks + 1) != (
        blocks + 1
    ):
        raise UserError(
            f"{kind} has a decoder of the encoder's widths and one block a stage more: this "
            "autoencoder's is another."
        )
    return a


def stages(a: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of encoder and decoder that public autoencoders share."""
    widths = a["widths"]
    return dict(
        down_block_types=["DownEncoderBlock2D"] * len(widths),
        up_block_types=["UpDecoderBlock2D"] * len(widths),
        block_out_channels=widths,
        layers_per_block=a["blocks"],
        norm_num_groups=a.get("groups", 32),
        mid_block_add_attention=a.get("mid_attention", True),
    )


def _shortest(value: Any) -> float:
    """The fewest digits that are the same number in fp32."""
    return float(str(np.float32(value)))
