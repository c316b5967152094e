"""diffusers' UNet2DConditionModel <-> the arguments of :class:`emu_jax.nn.unet.UNet`.

The names of parameters are the same, so only config.json is translated. Two traps:
``attention_head_dim`` is the *number* of heads in blocks with transformers and the width of a head
in blocks with added keys and values; and a stage without attention still has an entry there.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from emu_jax.errors import UserError
from emu_jax.interop.configs import complete, joined, per_stage, plain

CLASS = "UNet2DConditionModel"
DEFAULTS: dict[str, Any] = dict(
    sample_size=None,
    in_channels=4,
    out_channels=4,
    center_input_sample=False,
    flip_sin_to_cos=True,
    freq_shift=0,
    down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    mid_block_type="UNetMidBlock2DCrossAttn",
    up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    only_cross_attention=False,
    block_out_channels=[320, 640, 1280, 1280],
    layers_per_block=2,
    downsample_padding=1,
    mid_block_scale_factor=1,
    dropout=0.0,
    act_fn="silu",
    norm_num_groups=32,
    norm_eps=1e-5,
    cross_attention_dim=1280,
    transformer_layers_per_block=1,
    reverse_transformer_layers_per_block=None,
    encoder_hid_dim=None,
    encoder_hid_dim_type=None,
    attention_head_dim=8,
    num_attention_heads=None,
    dual_cross_attention=False,
    use_linear_projection=False,
    class_embed_type=None,
    addition_embed_type=None,
    addition_time_embed_dim=None,
    num_class_embeds=None,
    upcast_attention=False,
    resnet_time_scale_shift="default",
    resnet_skip_time_act=False,
    resnet_out_scale_factor=1.0,
    time_embedding_type="positional",
    time_embedding_dim=None,
    time_embedding_act_fn=None,
    timestep_post_act=None,
    time_cond_proj_dim=None,
    conv_in_kernel=3,
    conv_out_kernel=3,
    projection_class_embeddings_input_dim=None,
    attention_type="default",
    class_embeddings_concat=False,
    mid_block_only_cross_attention=None,
    cross_attention_norm=None,
    addition_embed_type_num_heads=64,
)
# Read below, or without effect on the network's mathematics (image size, precision).
READ = {
    *("sample_size", "in_channels", "out_channels", "down_block_types", "mid_block_type"),
    *("up_block_types", "only_cross_attention", "block_out_channels", "layers_per_block"),
    *("mid_block_scale_factor", "act_fn", "norm_num_groups", "norm_eps", "cross_attention_dim"),
    *("transformer_layers_per_block", "encoder_hid_dim", "encoder_hid_dim_type"),
    *("attention_head_dim", "use_linear_projection", "class_embed_type", "addition_embed_type"),
    *("addition_time_embed_dim", "upcast_attention", "resnet_time_scale_shift"),
    *("resnet_skip_time_act", "resnet_out_scale_factor", "time_embedding_dim"),
    *("time_embedding_act_fn", "projection_class_embeddings_input_dim"),
    *("mid_block_only_cross_attention", "cross_attention_norm", "addition_embed_type_num_heads"),
}
# Kind of attention -> the blocks (without, with attention) of encoder and decoder, and the middle.
_BLOCKS = {
    "transformer": dict(
        down=("DownBlock2D", "CrossAttnDownBlock2D"),
        up=("UpBlock2D", "CrossAttnUpBlock2D"),
        mid="UNetMidBlock2DCrossAttn",
    ),
    "added_kv": dict(
        down=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up=("ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"),
        mid="UNetMidBlock2DSimpleCrossAttn",
    ),
}
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu"}


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments of a config.json.

    Raises:
      UserError: a structure that ours does not have, by the setting's name.
    """
    c = complete(config, DEFAULTS, READ, CLASS)
    widths = c["block_out_channels"]
    stages = len(widths)
    attention, attends = _attention(c, stages)
    depths = per_stage(c["transformer_layers_per_block"], stages)
    if any(isinstance(depth, list) for depth in depths):
        raise _unknown(c, "transformer_layers_per_block")
    found: dict[str, Any] = dict(
        in_channels=c["in_channels"],
        out_channels=c["out_channels"],
        widths=widths,
        blocks=joined(per_stage(c["layers_per_block"], stages)),
        transformer_depth=joined([d if a else 0 for d, a in zip(depths, attends, strict=True)]),
        mid_depth=depths[-1],
        context_width=c["cross_attention_dim"],
        act=_known(c, "act_fn", _ACTIVATIONS),
        groups=c["norm_num_groups"],
        eps=c["norm_eps"],
    )
    if isinstance(found["context_width"], list):
        raise _unknown(c, "cross_attention_dim")
    heads = joined(per_stage(c["attention_head_dim"], stages))
    if attention == "transformer":
        found |= dict(heads=heads, linear_projection=c["use_linear_projection"])
    else:
        found |= dict(attention=attention, resample="resnet", head_width=heads)
    return found | _conditions(c) | _residuals(c, stages)


def _attention(c: Mapping[str, Any], stages: int) -> tuple[str, list[bool]]:
    """(kind of attention, whether each stage has it)."""
    down, up = c["down_block_types"], c["up_block_types"]
    for kind, blocks in _BLOCKS.items():
        if set(down) <= set(blocks["down"]):
            attends = [name == blocks["down"][1] for name in down]
            wanted = mirrored(down)
            if up != wanted or len(down) != stages:
                raise UserError(
                    f"This {CLASS} has up_block_types = {up}; with its down_block_types only "
                    f"{wanted} is supported."
                )
            if c["mid_block_type"] != blocks["mid"]:
                raise _unknown(c, "mid_block_type")
            return kind, attends
    raise _unknown(c, "down_block_types")


def mirrored(down: Sequence[str]) -> list[str]:
    """The blocks of a decoder for those of an encoder; "" for one that is unknown."""
    pairs = [zip(blocks["down"], blocks["up"], strict=True) for blocks in _BLOCKS.values()]
    ups = dict(pair for kind in pairs for pair in kind)
    return [ups.get(name, "") for name in reversed(down)]


def _conditions(c: Mapping[str, Any]) -> dict[str, Any]:
    """Conditioning other than the timestep and the text states."""
    found: dict[str, Any] = {}
    if c["class_embed_type"] not in (None, "timestep"):
        raise _unknown(c, "class_embed_type")
    if c["class_embed_type"]:
        found["level"] = True
    if c["encoder_hid_dim"]:
        if c["encoder_hid_dim_type"] not in (None, "text_proj"):
            raise _unknown(c, "encoder_hid_dim_type")
        found["text_width"] = c["encoder_hid_dim"]
    match c["addition_embed_type"]:
        case None:
            pass
        case "text_time":
            found["vector_width"] = c["projection_class_embeddings_input_dim"]
        case "text":
            found["text_pool_heads"] = c["addition_embed_type_num_heads"]
        case _:
            raise _unknown(c, "addition_embed_type")
    if c["cross_attention_norm"] not in (None, "group_norm"):
        raise _unknown(c, "cross_attention_norm")
    if c["cross_attention_norm"]:
        found["context_norm"] = True
    return found


def _residuals(c: Mapping[str, Any], stages: int) -> dict[str, Any]:
    """Residual blocks, and which stages have cross-attention only."""
    found: dict[str, Any] = {}
    if c["resnet_time_scale_shift"] not in ("default", "scale_shift"):
        raise _unknown(c, "resnet_time_scale_shift")
    if c["resnet_time_scale_shift"] == "scale_shift":
        found["scale_shift"] = True
    if c["resnet_out_scale_factor"] != c["mid_block_scale_factor"]:
        raise _unknown(c, "mid_block_scale_factor")
    if c["resnet_out_scale_factor"] != 1:
        found["output_scale_factor"] = c["resnet_out_scale_factor"]
    # Ours applies the activation to the time embedding once for all blocks, which is equivalent.
    activations = c["resnet_skip_time_act"], c["time_embedding_act_fn"]
    if activations not in ((False, None), (True, c["act_fn"])):
        raise _unknown(c, "time_embedding_act_fn")
    if c["time_embedding_dim"]:
        found["time_width"] = c["time_embedding_dim"]
    only = per_stage(c["only_cross_attention"], stages)
    middle = c["mid_block_only_cross_attention"]
    if middle is None:
        middle = c["only_cross_attention"] is True
    if bool(middle) != only[-1]:
        raise _unknown(c, "mid_block_only_cross_attention")
    if any(only):
        found["only_cross_attention"] = joined(only)
    return found


def to_config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The complete config.json for a constructor's arguments, without how it is computed.

    Raises:
      UserError: a structure that the public class does not have.
    """
    a: dict[str, Any] = {key: plain(value) for key, value in arguments.items() if value is not None}
    widths = a["widths"]
    stages = len(widths)
    depths = per_stage(a.get("transformer_depth", 1), stages)
    kind = a.get("attention", "transformer")
    if (kind == "added_kv") != (a.get("resample", "conv") == "resnet"):
        raise UserError(
            f"{CLASS} has both attention=added_kv and resample=resnet, or neither; this denoiser "
            "has one of them, and cannot be exported to it."
        )
    blocks = _BLOCKS[kind]
    attends = [depth > 0 for depth in depths]
    middle = a.get("mid_depth", 1)
    layers = [depth or 1 for depth in depths[:-1]] + [depths[-1] or middle]
    if layers[-1] != middle:
        raise UserError(
            f"{CLASS} has as many layers of attention in the middle as in the coarsest stage; this "
            "denoiser has not, and cannot be exported to it."
        )
    scale = a.get("output_scale_factor", 1.0)
    only = joined(per_stage(a.get("only_cross_attention", False), stages))
    found = DEFAULTS | dict(
        _class_name=CLASS,
        in_channels=a["in_channels"],
        out_channels=a["out_channels"],
        block_out_channels=widths,
        down_block_types=[blocks["down"][x] for x in attends],
        up_block_types=[blocks["up"][x] for x in reversed(attends)],
        mid_block_type=blocks["mid"],
        layers_per_block=joined(per_stage(a.get("blocks", 2), stages)),
        transformer_layers_per_block=joined(layers),
        cross_attention_dim=a["context_width"],
        attention_head_dim=joined(_heads(a, kind, widths)),
        use_linear_projection=kind == "transformer" and a.get("linear_projection", True),
        act_fn=a.get("act", "silu"),
        norm_num_groups=a.get("groups", 32),
        norm_eps=a.get("eps", 1e-5),
        only_cross_attention=only,
        mid_block_only_cross_attention=None if isinstance(only, bool) else only[-1],
        resnet_time_scale_shift="scale_shift" if a.get("scale_shift") else "default",
        resnet_out_scale_factor=scale,
        mid_block_scale_factor=scale,
        time_embedding_dim=a.get("time_width"),
        cross_attention_norm="group_norm" if a.get("context_norm") else None,
        class_embed_type="timestep" if a.get("level") else None,
        encoder_hid_dim=a.get("text_width"),
        encoder_hid_dim_type="text_proj" if a.get("text_width") else None,
    )
    if a.get("vector_width"):
        found |= dict(
            addition_embed_type="text_time",
            projection_class_embeddings_input_dim=a["vector_width"],
        )
    elif a.get("text_pool_heads"):
        found |= dict(
            addition_embed_type="text", addition_embed_type_num_heads=a["text_pool_heads"]
        )
    return found


def measured(params: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that follow from the networks around it, read from the parameters."""
    ends = ("/attn2/to_k/kernel", "/add_k_proj/kernel")
    context = [value.shape[0] for path, value in params.items() if path.endswith(ends)]
    vector = params.get("add_embedding/linear_1/kernel")
    text = params.get("encoder_hid_proj/kernel")
    return dict(
        in_channels=params["conv_in/kernel"].shape[2],
        out_channels=params["conv_out/kernel"].shape[3] if "conv_out/kernel" in params else None,
        context_width=context[0] if context else None,
        text_width=None if text is None else text.shape[0],
        vector_width=None if vector is None else vector.shape[0],
        level="class_embedding/linear_1/kernel" in params,
    )


def _heads(a: Mapping[str, Any], kind: str, widths: list[int]) -> list[int]:
    """``attention_head_dim``: the number of heads with transformers, else their width."""
    stages = len(widths)
    if (kind == "transformer" and "heads" in a) or (kind != "transformer" and "head_width" in a):
        return per_stage(a["heads" if kind == "transformer" else "head_width"], stages)
    other = per_stage(a["head_width" if kind == "transformer" else "heads"], stages)
    return [width // n for width, n in zip(widths, other, strict=True)]


def _known(c: Mapping[str, Any], key: str, names: Mapping[str, Any]) -> Any:
    if c[key] not in names:
        raise _unknown(c, key)
    return names[c[key]]


def _unknown(c: Mapping[str, Any], key: str) -> UserError:
    return UserError(f"This {CLASS} has {key} = {c[key]!r}, which is not supported.")
