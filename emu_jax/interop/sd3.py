"""diffusers' SD3Transformer2DModel <-> the arguments of :class:`emu_jax.nn.mmdit.MMDiT`.

The names of parameters are the same, so only config.json is translated.
"""

from collections.abc import Mapping
from typing import Any

from emu_jax.errors import UserError
from emu_jax.interop.configs import complete, square

CLASS = "SD3Transformer2DModel"
DEFAULTS: dict[str, Any] = dict(
    sample_size=128,
    patch_size=2,
    in_channels=16,
    num_layers=18,
    attention_head_dim=64,
    num_attention_heads=18,
    joint_attention_dim=4096,
    caption_projection_dim=1152,
    pooled_projection_dim=2048,
    out_channels=16,
    pos_embed_max_size=96,
    dual_attention_layers=[],
    qk_norm=None,
)
# Our argument -> the setting with the same value.
_SAME = dict(
    in_channels="in_channels",
    context_width="joint_attention_dim",
    vector_width="pooled_projection_dim",
    patch="patch_size",
    depth="num_layers",
    heads="num_attention_heads",
    table="pos_embed_max_size",
)
_READ = {
    *_SAME.values(),
    *("sample_size", "attention_head_dim", "caption_projection_dim", "out_channels", "qk_norm"),
}


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments for a config.json.

    Raises:
      UserError: names a setting whose structure our network does not have.
    """
    c = complete(config, DEFAULTS, _READ, CLASS)
    width = c["num_attention_heads"] * c["attention_head_dim"]
    channels, out = c["in_channels"], c["out_channels"] or c["in_channels"]
    for refused, said in (
        (
            c["caption_projection_dim"] != width,
            f"has caption_projection_dim = {c['caption_projection_dim']} for a width of {width}",
        ),
        (out != channels, f"has out_channels = {out} for {channels} input channels"),
        (c["qk_norm"] not in (None, "rms_norm"), f"has qk_norm = {c['qk_norm']!r}"),
    ):
        if refused:
            raise UserError(f"This {CLASS} {said}, which is not supported.")
    return {ours: c[theirs] for ours, theirs in _SAME.items()} | dict(
        out_channels=channels,
        width=width,
        span=float(square(c) // c["patch_size"]),
        qk_norm=bool(c["qk_norm"]),
    )


def to_config(arguments: Mapping[str, Any], side: int) -> dict[str, Any]:
    """The complete config.json for a constructor's arguments and maps of ``side`` positions."""
    a = arguments
    return (
        DEFAULTS
        | {theirs: a[ours] for ours, theirs in _SAME.items()}
        | dict(
            _class_name=CLASS,
            attention_head_dim=a["width"] // a["heads"],
            caption_projection_dim=a["width"],
            out_channels=a["out_channels"],
            sample_size=side,
            qk_norm="rms_norm" if a.get("qk_norm") else None,
        )
    )


def measured(params: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that depend on the other networks, read from the parameters' shapes."""
    channels = params["pos_embed/proj/kernel"].shape[2]
    return dict(
        in_channels=channels,
        out_channels=channels,
        context_width=params["context_embedder/kernel"].shape[0],
        vector_width=params["time_text_embed/text_embedder/linear_1/kernel"].shape[0],
    )
