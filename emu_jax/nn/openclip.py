"""CLIP's towers in the files of OpenAI and OpenCLIP: their keys in the spelling of ours.

Both spell text keys alike; keys of the image tower begin with ``visual.``. Queries, keys and values
are one tensor there, and projections are stored transposed.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from emu_jax.errors import UserError
from emu_jax.nn.clip import ClipText, ClipVision
from emu_jax.nn.clip_resnet import ClipResNet
from emu_jax.nn.functional import Network

_HEAD = 64  # channels of a head
_NAMES = (
    (r"ln_(\d)\.", r"layer_norm\1."),
    (r"attn\.out_proj", "self_attn.out_proj"),
    (r"mlp\.c_fc", "mlp.fc1"),
    (r"mlp\.c_proj", "mlp.fc2"),
)
_TEXT = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
}
_VISION = {
    "class_embedding": "vision_model.embeddings.class_embedding",
    "positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    **{
        f"ln_{old}.{leaf}": f"vision_model.{new}.{leaf}"
        for old, new in (("pre", "pre_layrnorm"), ("post", "post_layernorm"))
        for leaf in ("weight", "bias")
    },
    "proj": "visual_projection.weight",
}

Tensors = dict[str, np.ndarray]


def text_tower(found: Mapping[str, Any], act: str) -> tuple[Network, Tensors]:
    """The text tower of a file's tensors: the network, whose sizes they give, and its tensors."""
    own = {key: x for key, x in found.items() if not key.startswith("visual.")}
    tensors = _spelled(own, "text_model", _TEXT)
    vocabulary, width = _shape(tensors, _TEXT["token_embedding.weight"])
    sizes: dict[str, Any] = dict(
        vocabulary=vocabulary,
        width=width,
        layers=_layers(tensors),
        heads=width // _HEAD,
        feed_forward=_shape(tensors, "text_model.encoder.layers.0.mlp.fc1.weight")[0],
        positions=_shape(tensors, _TEXT["positional_embedding"])[0],
        projection=_shape(tensors, "text_projection.weight")[0],
        eos=vocabulary - 1,
        act=act,
    )
    return Network(lambda rngs: ClipText(**sizes, rngs=rngs)), tensors


def image_tower(found: Mapping[str, Any], act: str) -> tuple[Network, Tensors, int]:
    """The image tower, its tensors, and its image size; a ResNet where the tensors are one's."""
    own = {key.removeprefix("visual."): x for key, x in found.items() if key.startswith("visual.")}
    if "attnpool.positional_embedding" in own:
        return _resnet(own)
    tensors = _spelled(own, "vision_model", _VISION)
    width, _, patch, _ = _shape(tensors, _VISION["conv1.weight"])
    size = patch * round((_shape(tensors, _VISION["positional_embedding"])[0] - 1) ** 0.5)
    sizes: dict[str, Any] = dict(
        image_size=size,
        patch_size=patch,
        width=width,
        layers=_layers(tensors),
        heads=16 if width == 1280 else width // _HEAD,  # ViT-H has heads of 80 channels
        feed_forward=_shape(tensors, "vision_model.encoder.layers.0.mlp.fc1.weight")[0],
        projection=_shape(tensors, "visual_projection.weight")[0],
        act=act,
    )
    return Network(lambda rngs: ClipVision(**sizes, rngs=rngs)), tensors, size


def _resnet(own: Tensors) -> tuple[Network, Tensors, int]:
    tensors = {key: x for key, x in own.items() if not key.endswith("num_batches_tracked")}
    depths = [
        len({key.split(".")[1] for key in tensors if key.startswith(f"layer{i}.")})
        for i in range(1, 5)
    ]
    size = 32 * round((_shape(tensors, "attnpool.positional_embedding")[0] - 1) ** 0.5)
    sizes: dict[str, Any] = dict(
        depths=depths,
        width=_shape(tensors, "layer1.0.conv1.weight")[0],
        image_size=size,
        projection=_shape(tensors, "attnpool.c_proj.weight")[0],
    )
    return Network(lambda rngs: ClipResNet(**sizes, rngs=rngs)), tensors, size


def _spelled(found: Mapping[str, Any], tower: str, names: Mapping[str, str]) -> Tensors:
    tensors = {}
    for key, x in found.items():
        if key in names:
            tensors[names[key]] = x.T if key in ("text_projection", "proj") else x
        elif match := re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)", key):
            prefix, rest = f"{tower}.encoder.layers.{match[1]}", match[2]
            if packed := re.fullmatch(r"attn\.in_proj_(weight|bias)", rest):
                for letter, part in zip("qkv", np.split(x, 3), strict=True):
                    tensors[f"{prefix}.self_attn.{letter}_proj.{packed[1]}"] = part
                continue
            for pattern, name in _NAMES:
                rest = re.sub(pattern, name, rest)
            tensors[f"{prefix}.{rest}"] = x
    return tensors


def _layers(tensors: Tensors) -> int:
    return len({key for key in tensors if key.endswith("layer_norm1.weight")})


def _shape(tensors: Mapping[str, Any], key: str) -> tuple[int, ...]:
    if key not in tensors:
        raise UserError(f"The weights lack {key}: they are not those of a CLIP.")
    return tuple(tensors[key].shape)
