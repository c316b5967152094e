"""The keys of the original layout of Stable Diffusion 1.5 and XL base <-> the keys of diffusers and
transformers, which are ours.

The original layout numbers blocks consecutively (``input_blocks.7.1``) instead of by stage and
layer, stores the autoencoder's attention as 1 x 1 convolutions, and has OpenCLIP's queries, keys
and values in one matrix. For each network one function lists the pairs of places (original, ours)
from its config; both directions use this list.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from emu_jax.checkpoint.lazy import Lazy

# The result of an original key: our key -> the function that is applied to the tensor.
Pieces = dict[str, Callable[[np.ndarray], np.ndarray]]
Places = Iterable[tuple[str, str]]

_RESIDUAL = {
    **{"in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj"},
    **{"out_layers.0": "norm2", "out_layers.3": "conv2", "skip_connection": "conv_shortcut"},
}
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_OPENCLIP = {
    **{"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj"},
    **{"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"},
}


class Keys:
    """A network's keys, from the places (original, ours) of its modules or tensors. Below a place,
    and outside all places, the names of both layouts are the same."""

    def __init__(self, places: Places):
        self._ours: dict[str, list[str]] = {}
        self._original: dict[str, str] = {}
        for original, ours in places:
            self._ours.setdefault(original, []).append(ours)
            self._original[ours] = original

    def pieces(self, key: str) -> Pieces:
        """An original key's tensor in our layout: one tensor, or three for a fused one."""
        place, below = _place(key, self._ours)
        names = [name + below for name in self._ours.get(place, [place])]
        if len(names) > 1:
            return {name: partial(_third, i) for i, name in enumerate(names)}
        return {names[0]: np.transpose if key == "text_projection" else partial(_dense, key)}

    def originals(self, tensors: Lazy) -> Lazy:
        """The inverse: our tensors in the original layout; a fused one needs all of its three."""
        sources: dict[str, list[str]] = {}
        for key in tensors:
            place, below = _place(key, self._original)
            original = self._original.get(place, place)
            names = self._ours.get(original, [place])
            sources[original + below] = [name + below for name in names]

        def shape(key: str) -> jax.ShapeDtypeStruct:
            thirds = [tensors.shapes[name] for name in sources[key]]
            whole = _whole(key, [np.empty(x.shape, x.dtype) for x in thirds])
            return jax.ShapeDtypeStruct(whole.shape, whole.dtype)

        def read(key: str) -> np.ndarray:
            return np.ascontiguousarray(_whole(key, [tensors[name] for name in sources[key]]))

        return Lazy({key: shape(key) for key in sources}, read)


def _place(key: str, places: Mapping[str, Any]) -> tuple[str, str]:
    """(the longest known place that ``key`` is in, or else the whole key; the rest of the key)."""
    end = len(key)
    while end > 0 and key[:end] not in places:
        end = key.rfind(".", 0, end)
    return (key[:end], key[end:]) if end > 0 else (key, "")


def unet_places(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """A U-Net's, of its config.json. A stage has its blocks and one of resampling on its way down,
    and on its way up one block more, the last of which resamples."""
    stages, layers = len(config["block_out_channels"]), config["layers_per_block"]
    attends = ["CrossAttn" in kind for kind in config["up_block_types"]]
    for i in (0, 1):
        yield f"time_embed.{2 * i}", f"time_embedding.linear_{i + 1}"
        yield f"label_emb.0.{2 * i}", f"add_embedding.linear_{i + 1}"
        yield from _residual(f"middle_block.{2 * i}", f"mid_block.resnets.{i}")
    yield "middle_block.1", "mid_block.attentions.0"
    yield from (("input_blocks.0.0", "conv_in"), ("out.0", "conv_norm_out"), ("out.2", "conv_out"))
    for stage in range(stages):
        block = stage * (layers + 1)
        for layer in range(layers):
            down, place = f"down_blocks.{stage}", f"input_blocks.{block + layer + 1}"
            yield from _residual(f"{place}.0", f"{down}.resnets.{layer}")
            yield f"{place}.1", f"{down}.attentions.{layer}"
        yield f"input_blocks.{block + layers + 1}.0.op", f"{down}.downsamplers.0.conv"
        for layer in range(layers + 1):
            up, place = f"up_blocks.{stage}", f"output_blocks.{block + layer}"
            yield from _residual(f"{place}.0", f"{up}.resnets.{layer}")
            yield f"{place}.1", f"{up}.attentions.{layer}"
        after = f"output_blocks.{block + layers}.{1 + attends[stage]}.conv"
        yield after, f"{up}.upsamplers.0.conv"


def _residual(original: str, ours: str) -> Iterator[tuple[str, str]]:
    for inner, own in _RESIDUAL.items():
        yield f"{original}.{inner}", f"{ours}.{own}"


def autoencoder_places(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The places of an autoencoder with this config.json. Up stages are counted from the finest."""
    stages, layers = len(config["block_out_channels"]), config["layers_per_block"]
    for side in ("encoder", "decoder"):
        yield f"{side}.norm_out", f"{side}.conv_norm_out"
        for i in (0, 1):
            yield f"{side}.mid.block_{i + 1}", f"{side}.mid_block.resnets.{i}"
        for name, own in _ATTENTION.items():
            yield f"{side}.mid.attn_1.{name}", f"{side}.mid_block.attentions.0.{own}"
    for stage in range(stages):
        ways = (
            (f"encoder.down.{stage}", f"encoder.down_blocks.{stage}", "down", layers),
            (f"decoder.up.{stages - 1 - stage}", f"decoder.up_blocks.{stage}", "up", layers + 1),
        )
        for original, ours, way, blocks in ways:
            yield f"{original}.{way}sample", f"{ours}.{way}samplers.0"
            for i in range(blocks):
                yield f"{original}.block.{i}", f"{ours}.resnets.{i}"
                shortcut = f"{original}.block.{i}.nin_shortcut"
                yield shortcut, f"{ours}.resnets.{i}.conv_shortcut"


def openclip_places(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The places of an OpenCLIP text tower, from a CLIPTextModelWithProjection's config.json."""
    embeddings = "text_model.embeddings"
    yield "positional_embedding", f"{embeddings}.position_embedding.weight"
    yield "token_embedding", f"{embeddings}.token_embedding"
    yield "ln_final", "text_model.final_layer_norm"
    yield "text_projection", "text_projection.weight"
    for i in range(config["num_hidden_layers"]):
        original, ours = f"transformer.resblocks.{i}", f"text_model.encoder.layers.{i}"
        for name, own in _OPENCLIP.items():
            yield f"{original}.{name}", f"{ours}.{own}"
        for leaf in ("weight", "bias"):
            for x in "qkv":
                yield f"{original}.attn.in_proj_{leaf}", f"{ours}.self_attn.{x}_proj.{leaf}"


# Tensors -----------------------------------------------------------------------------------------


def _dense(key: str, x: np.ndarray) -> np.ndarray:
    """An autoencoder's attention as dense layers; every other tensor unchanged."""
    return x[:, :, 0, 0] if ".attn_1." in key and x.shape[2:] == (1, 1) else x


def _third(i: int, x: np.ndarray) -> np.ndarray:
    size = len(x) // 3
    return x[i * size : (i + 1) * size]


def _whole(key: str, pieces: list[np.ndarray]) -> np.ndarray:
    if len(pieces) > 1:
        return np.concatenate(pieces)
    (x,) = pieces
    if ".attn_1." in key and x.ndim == 2:
        return x[:, :, None, None]
    return x.T if key == "text_projection" else x
