"""CLIP as a frozen encoder: the text tower in every size, and the image tower.

The folder determines the model: ViT-L, SD 2.1's OpenCLIP-H and SDXL's OpenCLIP-bigG differ only in
their config.json. Folders of a text model, of a text model with projection and of a whole CLIP
(both towers) can be read. Keys may have the prefix ``text_model.``, as in public files, or not, as
transformers 5 writes a plain text model.

The returned mask is True at all positions. CLIP pads to a fixed length, and its generators have
always attended to every state, padding included. Inside CLIP no mask is needed: attention is
causal, so padding does not reach the states of the text and the pooled vector.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from emu_jax.checkpoint.foreign import entry, like
from emu_jax.checkpoint.huggingface import find_folder, read_config, stream_params, weights_of
from emu_jax.checkpoint.safetensors_io import read_shapes
from emu_jax.errors import UserError
from emu_jax.nn.clip import ClipText, ClipVision, Layer
from emu_jax.nn.conditioner import Encoded
from emu_jax.nn.functional import Network, Params
from emu_jax.text.encoder import Null
from emu_jax.text.pretrained import NO_FOLDER, Pretrained, load_tokenizer

TEXT_KINDS, VISION_KINDS = ("clip_text_model", "clip"), ("clip_vision_model", "clip")
TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
_SPECIAL_TOKENS = 2  # start and end of text
# The defaults of the published classes, for keys that a config leaves out.
_TEXT_DEFAULTS = dict(
    vocab_size=49408,
    hidden_size=512,
    intermediate_size=2048,
    num_hidden_layers=12,
    num_attention_heads=8,
    max_position_embeddings=77,
    hidden_act="quick_gelu",
    layer_norm_eps=1e-5,
    eos_token_id=49407,
)
# The published text towers, each with a projection as wide as itself.
_SIZES = dict(
    vit_l=dict(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        hidden_act="quick_gelu",
    ),
    openclip_h=dict(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=23,  # of 24: Stable Diffusion 2.1 leaves the last one out
        num_attention_heads=16,
        hidden_act="gelu",
    ),
    openclip_bigg=dict(
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=20,
        hidden_act="gelu",
    ),
)
_VISION_DEFAULTS = dict(
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    image_size=224,
    patch_size=32,
    hidden_act="quick_gelu",
    layer_norm_eps=1e-5,
)


@dataclass(frozen=True)
class Clip(Pretrained):
    """CLIP's text tower. ``layer`` selects the states: those of the last layer after the final
    norm, or those of the penultimate layer without a norm (SDXL).
    """

    layer: Layer = "last"
    defaults = _TEXT_DEFAULTS
    sizes = _SIZES

    @classmethod
    def read_config(cls, folder: Path) -> dict[str, Any]:
        return text_config(folder)

    def _make_tokenizer(self, folder: Path) -> Any:
        from transformers import CLIPTokenizer  # takes seconds; a run on cached text needs none

        return load_tokenizer(CLIPTokenizer, folder, TOKENIZER_FILES)

    def _network(self, config: Mapping[str, Any]) -> Network:
        return text_network(config, _text_projection(self.folder, config))

    @staticmethod
    def _rename(key: str) -> str | None:
        return tower_key("text", key)

    @property
    def masks_padding(self) -> bool:
        return False

    def apply(self, params: Params, ids: Int[Array, "b l"], mask: Bool[Array, "b l"]) -> Encoded:
        states, pooled = self.network(params, ids, layer=self.layer)
        return Encoded(states, jnp.ones_like(mask), pooled if self.pooled_width else None)


def make_clip(
    name: str,
    length: int = 77,
    *,
    path: str | Path = "",
    size: str = "",
    layer: Layer = "last",
    pooled: bool = True,
    dtype: str = "float32",
    null: Null = "empty",
) -> Clip:
    """CLIP's text tower from a folder or hub name. For planning a published size is enough: vit_l,
    openclip_h or openclip_bigg. ``pooled`` False: no pooled vector is returned.
    """
    folder, config = Clip.find(name, path, size)
    longest = config["max_position_embeddings"]
    if not _SPECIAL_TOKENS < length <= longest:
        raise UserError(
            f"Encoder {name} takes lengths from {_SPECIAL_TOKENS + 1} to {longest}, not {length}."
        )
    if layer not in get_args(Layer):
        raise UserError(f"Encoder {name}: layer is {' or '.join(get_args(Layer))}, not {layer!r}.")
    width = config["hidden_size"]
    pooled_width = (_text_projection(folder, config) or width) if pooled else 0
    return Clip(name, folder, length, width, pooled_width, null, dtype, layer, size=size)


@dataclass(frozen=True)
class ClipImages:
    """CLIP's image tower: from square images of ``image_size`` pixels, normalized as in the
    folder's preprocessor config, to embeddings in the space of the projected text.
    """

    folder: Path
    image_size: int
    network: Network
    dtype: str = "float32"

    def apply(self, params: Params, x: Float[Array, "b s s 3"]) -> Float[Array, "b d"]:
        return self.network(params, x)

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """(path, array in ``dtype``) of every parameter, one in memory at a time."""
        shapes = self.network.shapes()
        rename = partial(tower_key, "vision")
        return stream_params(weights_of(self.folder), shapes, jnp.dtype(self.dtype), rename)


def make_clip_images(path: str | Path, dtype: str = "float32") -> ClipImages:
    """CLIP's image tower from a folder or hub name, of an image model or of a whole CLIP."""
    folder = find_folder(path)
    config = vision_config(folder)
    network = vision_network(config, _projection(folder, "visual"))
    return ClipImages(folder, config["image_size"], network, dtype)


# Reading configs and keys ------------------------------------------------------------------------


def text_config(folder: Path) -> dict[str, Any]:
    """The text tower's section of a folder's config, with defaults filled in."""
    return like(_section(folder, TEXT_KINDS, "text"), _TEXT_DEFAULTS, folder / "config.json")


def vision_config(folder: Path) -> dict[str, Any]:
    """The image tower's section of a folder's config, with defaults filled in."""
    return like(_section(folder, VISION_KINDS, "vision"), _VISION_DEFAULTS, folder / "config.json")


def _section(folder: Path, kinds: Sequence[str], tower: str) -> dict[str, Any]:
    config = read_config(folder, kinds)
    if config["model_type"] != "clip":
        return config
    # Old files of whole CLIPs have two such sections, and this order gives the effective one.
    for name in (f"{tower}_config_dict", f"{tower}_config"):
        if config.get(name):
            return entry(config, name, dict, folder / "config.json")
    return {}


def text_network(config: Mapping[str, Any], projection: int | None) -> Network:
    """The network of a complete text config; ``projection``: width of the projected pooled vector,
    None without projection.
    """
    return Network(
        lambda rngs: ClipText(
            vocabulary=config["vocab_size"],
            positions=config["max_position_embeddings"],
            eos=config["eos_token_id"],
            projection=projection,
            **_shared(config),
            rngs=rngs,
        )
    )


def vision_network(config: Mapping[str, Any], projection: int | None) -> Network:
    """The network of a complete image config; ``projection`` as in :func:`text_network`."""
    return Network(
        lambda rngs: ClipVision(
            image_size=config["image_size"],
            patch_size=config["patch_size"],
            projection=projection,
            **_shared(config),
            rngs=rngs,
        )
    )


def _shared(config: Mapping[str, Any]) -> dict[str, Any]:
    return dict(
        width=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        feed_forward=config["intermediate_size"],
        act=config["hidden_act"],
        eps=config["layer_norm_eps"],
    )


def tower_key(tower: str, key: str) -> str | None:
    """The parameter name of a file's key in the network of ``tower`` ("text" or "vision"). None for
    keys of the other tower and for constants that old files contain.
    """
    other = {"text": ("vision_model.", "visual_"), "vision": ("text_model.", "text_")}[tower]
    if key.startswith(other) or key == "logit_scale" or key.endswith("position_ids"):
        return None
    own = (f"{tower}_model.", "text_projection.", "visual_projection.")
    return key if key.startswith(own) else f"{tower}_model.{key}"


def _text_projection(folder: Path, config: Mapping[str, Any]) -> int | None:
    return config["hidden_size"] if folder == NO_FOLDER else _projection(folder, "text")


def _projection(folder: Path, tower: str) -> int | None:
    """The width of a tower's projected pooled vector, None without projection. It is read from the
    weights: a whole CLIP has the number outside the tower's config, and a plain text model has the
    number but no projection.
    """
    key = f"{tower}_projection.weight"
    shapes: Mapping[str, jax.ShapeDtypeStruct] = read_shapes(str(weights_of(folder)))
    return shapes[key].shape[0] if key in shapes else None
