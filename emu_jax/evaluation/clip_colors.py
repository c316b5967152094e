"""The color of an instance by CLIP, as GenEval publishes it.

The pixels below an instance's mask, on gray #999 and cut out to its box, are compared with texts
for each of ten colors. A color's direction is the mean of the unit embeddings of three texts.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
from jaxtyping import Float, UInt8

from emu_jax.evaluation.clip_metrics import AESTHETIC_CLIP, clip_folder, open_clip
from emu_jax.evaluation.frozen import DEFAULT_WEIGHTS_DIR
from emu_jax.evaluation.instances import Instance, Pixels

COLORS = "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"
_TEXTS = ("a photo of a {0} {1}", "a photo of a {0}-colored {1}", "a photo of a {0} object")
_GRAY = 0x99


class ClipColors:
    """Reads colors with CLIP ViT-L/14, whose folder is in ``weights`` (docs/metrics.md)."""

    def __init__(self, weights: str = DEFAULT_WEIGHTS_DIR):
        self._clip = open_clip(clip_folder(weights, AESTHETIC_CLIP))
        self._directions = cache(self._directions_of)

    def __call__(self, image: Pixels, instances: Sequence[Instance]) -> list[str]:
        if not instances:
            return []
        embedded = self._clip.images([cut_out(image, one) for one in instances])
        directions = np.stack([self._directions(one.label) for one in instances])
        chosen = np.argmax(np.einsum("nd,ncd->nc", embedded, directions), axis=1)
        return [COLORS[i] for i in chosen]

    def _directions_of(self, thing: str) -> Float[np.ndarray, "c d"]:
        texts = [text.format(color, thing) for color in COLORS for text in _TEXTS]
        means = self._clip.texts(texts).reshape(len(COLORS), len(_TEXTS), -1).mean(1)
        return means / np.linalg.norm(means, axis=1, keepdims=True)


def cut_out(image: Pixels, one: Instance) -> UInt8[np.ndarray, "i j 3"]:
    """An instance alone, on gray."""
    left, top, right, bottom = map(int, one.box)
    pixels = np.where(one.mask[..., None], image, np.uint8(_GRAY))
    return pixels[top:bottom, left:right]
