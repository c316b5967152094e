"""Segment Anything as a published network: a folder in transformers' layout, and masks of images.

The folder is that of a SamModel of any size (ViT-B, ViT-L, ViT-H): its config says which. An image
is resized so that its longer side has the network's size (bilinear), normalized by ImageNet's mean
and deviation and padded with zeros.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, UInt8
from PIL import Image

from emu_jax.checkpoint.foreign import described_by, entry, like
from emu_jax.checkpoint.huggingface import find_folder, read_config, stream_params, weights_of
from emu_jax.nn.functional import Network
from emu_jax.nn.sam import INSIDE, Sam
from emu_jax.nn.sam_vision import SamVision

MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
_VISION = dict(
    hidden_size=768,
    output_channels=256,
    num_hidden_layers=12,
    num_attention_heads=12,
    image_size=1024,
    patch_size=16,
    hidden_act="gelu",
    mlp_ratio=4.0,
    window_size=14,
    global_attn_indexes=[2, 5, 8, 11],
)
_DECODER = dict(
    hidden_size=256,
    mlp_dim=2048,
    num_hidden_layers=2,
    num_attention_heads=8,
    attention_downsample_rate=2,
    num_multimask_outputs=3,
    iou_head_depth=3,
    iou_head_hidden_dim=256,
)
_SHARED = "shared_image_embedding.positional_embedding"


def network_of(config: Mapping[str, Any], source: Any = "config.json") -> tuple[Network, int]:
    """The network of a published config, and its image size."""
    sections = (
        (entry(config, name, dict, source) if config.get(name) else {}, defaults)
        for name, defaults in (("vision_config", _VISION), ("mask_decoder_config", _DECODER))
    )
    vision, decoder = (like(section, defaults, source) for section, defaults in sections)
    feed_forward = vision.get("mlp_dim") or int(vision["hidden_size"] * vision["mlp_ratio"])

    def build(rngs: nnx.Rngs) -> Sam:
        tower = SamVision(
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
            width=vision["hidden_size"],
            layers=vision["num_hidden_layers"],
            heads=vision["num_attention_heads"],
            feed_forward=feed_forward,
            window=vision["window_size"],
            global_layers=tuple(vision["global_attn_indexes"]),
            channels=vision["output_channels"],
            act=vision["hidden_act"],
            rngs=rngs,
        )
        return Sam(
            tower,
            image_size=vision["image_size"],
            channels=decoder["hidden_size"],
            layers=decoder["num_hidden_layers"],
            heads=decoder["num_attention_heads"],
            feed_forward=decoder["mlp_dim"],
            downsample=decoder["attention_downsample_rate"],
            masks=decoder["num_multimask_outputs"] + 1,
            iou_depth=decoder["iou_head_depth"],
            iou_width=decoder["iou_head_hidden_dim"],
            rngs=rngs,
        )

    return Network(build), vision["image_size"]


def our_key(key: str) -> str | None:
    """A published key in our spelling; None: masks as prompts, which we do not read."""
    if key.startswith("prompt_encoder.mask_embed."):
        return None
    # The same numbers under a second name.
    return _SHARED if key == "prompt_encoder.shared_embedding.positional_embedding" else key


class SegmentAnything:
    """Masks from points and boxes, by the weights in a folder."""

    def __init__(self, path: str):
        folder = find_folder(path)
        config = read_config(folder, ("sam",))
        with described_by(folder / "config.json"):
            network, self.image_size = network_of(config, folder / "config.json")
        shapes = network.shapes()
        loaded = stream_params(weights_of(folder), shapes, jnp.float32, our_key)
        self._params = {name: jnp.asarray(value) for name, value in loaded}
        self._run = jax.jit(network)

    def __call__(
        self,
        image: UInt8[np.ndarray, "h w 3"],
        points: Sequence[tuple[float, float]] = (),
        box: Sequence[float] | None = None,
    ) -> Bool[np.ndarray, "h w"]:
        """The mask that the network rates best, of the thing at ``points`` (x, y) or within ``box``
        (left, top, right, bottom), in pixels.
        """
        height, width = image.shape[:2]
        scale = self.image_size / max(height, width)
        h, w = (int(n * scale + 0.5) for n in (height, width))
        resized = Image.fromarray(image).resize((w, h), Image.Resampling.BILINEAR)
        x = np.zeros((1, self.image_size, self.image_size, 3), np.float32)
        x[0, :h, :w] = (np.asarray(resized, np.float32) - MEAN) / DEVIATION
        factors = np.array([w / width, h / height], np.float32)
        at = np.array(points, np.float32).reshape(1, -1, 2) * factors
        kinds = np.full(at.shape[:2], INSIDE)
        edges = None if box is None else (np.array(box, np.float32).reshape(2, 2) * factors)
        corners = None if edges is None else edges.reshape(1, 4)
        masks, quality = self._run(self._params, x, at, kinds, corners)
        best = np.asarray(masks[0, int(np.argmax(quality[0]))])
        side = (self.image_size, self.image_size)
        logits = Image.fromarray(best).resize(side, Image.Resampling.BILINEAR).crop((0, 0, w, h))
        return np.asarray(logits.resize((width, height), Image.Resampling.BILINEAR)) > 0
