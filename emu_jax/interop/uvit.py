"""diffusers' UVit2DModel, aMUSEd's transformer <-> the arguments of :class:`emu_jax.nn.uvit.UVit`.

The names of parameters are the same, so only config.json is translated. The public class computes
the sinusoids of its micro-conditions itself; in this package the conditioner computes them and
appends five to the pooled text.
"""

from collections.abc import Mapping
from typing import Any

from emu_jax.errors import UserError
from emu_jax.interop.configs import complete

CLASS = "UVit2DModel"
DEFAULTS: dict[str, Any] = dict(
    hidden_size=1024,
    use_bias=False,
    hidden_dropout=0.0,
    cond_embed_dim=768,
    micro_cond_encode_dim=256,
    micro_cond_embed_dim=1280,
    encoder_hidden_size=768,
    vocab_size=8256,
    codebook_size=8192,
    in_channels=768,
    block_out_channels=768,
    num_res_blocks=3,
    downsample=False,
    upsample=False,
    block_num_heads=12,
    num_hidden_layers=22,
    num_attention_heads=16,
    attention_dropout=0.0,
    intermediate_size=2816,
    layer_norm_eps=1e-6,
    ln_elementwise_affine=True,
    sample_size=64,
)
# Our argument -> the setting with the same value.
_SAME = dict(
    width="hidden_size",
    depth="num_hidden_layers",
    heads="num_attention_heads",
    mlp_width="intermediate_size",
    channels="block_out_channels",
    embed_width="in_channels",
    blocks="num_res_blocks",
    block_heads="block_num_heads",
    context_width="encoder_hidden_size",
    vocabulary="vocab_size",
    codes="codebook_size",
    eps="layer_norm_eps",
    resample="downsample",
)
# Settings that are read below, or (image size) do not change the network's function.
_READ = {
    *_SAME.values(),
    *("upsample", "cond_embed_dim", "micro_cond_encode_dim", "micro_cond_embed_dim"),
    "sample_size",
}
_CONDITIONS = 5


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments for a config.json.

    Raises:
      UserError: names a setting whose structure our network does not have.
    """
    c = complete(config, DEFAULTS, _READ, CLASS)
    if c["downsample"] != c["upsample"]:
        raise UserError(
            f"This {CLASS} has downsample = {c['downsample']} and upsample = {c['upsample']}; only "
            "equal values are supported."
        )
    if c["micro_cond_embed_dim"] != _CONDITIONS * c["micro_cond_encode_dim"]:
        raise UserError(
            f"This {CLASS} has micro_cond_embed_dim = {c['micro_cond_embed_dim']}; only five times "
            f"micro_cond_encode_dim = {c['micro_cond_encode_dim']} is supported."
        )
    found = {ours: c[theirs] for ours, theirs in _SAME.items()}
    return found | dict(vector_width=c["cond_embed_dim"] + c["micro_cond_embed_dim"])


def to_config(arguments: Mapping[str, Any], size_features: int) -> dict[str, Any]:
    """The complete config.json for a constructor's arguments and the conditioner's number of
    sinusoids per micro-condition.
    """
    embedded = _CONDITIONS * size_features
    same = {theirs: arguments[ours] for ours, theirs in _SAME.items() if ours in arguments}
    return DEFAULTS | dict(
        same,
        _class_name=CLASS,
        vocab_size=arguments.get("vocabulary") or arguments["codes"] + 1,
        upsample=arguments.get("resample", False),
        cond_embed_dim=arguments["vector_width"] - embedded,
        micro_cond_encode_dim=size_features,
        micro_cond_embed_dim=embedded,
    )


def measured(params: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that depend on the other networks, read from the parameters' shapes."""
    return dict(
        codes=params["mlm_layer/conv2/kernel"].shape[3],
        context_width=params["encoder_proj/kernel"].shape[0],
        vector_width=params["cond_embed/linear_1/kernel"].shape[0],
    )
