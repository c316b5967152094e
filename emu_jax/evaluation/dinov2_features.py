"""DINOv2's features, which FD-DINOv2 compares (Stein et al. 2023, arXiv:2306.04675).

Images are resized to 224 x 224 by PIL's bicubic filter whatever their aspect ratio, as in
dgm-eval. torch-fidelity's feature extractor resizes as TensorFlow 1 instead.
"""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from emu_jax.checkpoint.foreign import like
from emu_jax.checkpoint.huggingface import read_config, weights_of
from emu_jax.evaluation.frozen import (
    DEFAULT_WEIGHTS_DIR,
    Frozen,
    Remembered,
    find_weights,
    read_tensors,
    to_params,
)
from emu_jax.evaluation.measuring import Batch
from emu_jax.evaluation.preprocessing import normalized, squashed
from emu_jax.nn.dinov2 import Dinov2
from emu_jax.nn.functional import Network
from emu_jax.nn.resnet50 import IMAGENET_MEAN, IMAGENET_STD

FOLDER = "dinov2-large"
_SIDE = 224
_DEFAULTS = dict(
    image_size=224, patch_size=14, hidden_size=768, num_hidden_layers=12, num_attention_heads=12
)


@cache
def open_dinov2(folder: Path, side: int = _SIDE) -> Remembered:
    """From images to the states of the class token."""
    config: dict[str, Any] = like(
        read_config(folder, ("dinov2",)), _DEFAULTS, folder / "config.json"
    )
    network = Network(
        lambda rngs: Dinov2(
            image_size=config["image_size"],
            patch_size=config["patch_size"],
            width=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            rngs=rngs,
        )
    )
    tensors = read_tensors(weights_of(folder))
    tensors.pop("embeddings.mask_token", None)  # of its training only
    run = Frozen(network, to_params(network, tensors, folder))
    return Remembered(
        lambda images: run(normalized(squashed(images, side), IMAGENET_MEAN, IMAGENET_STD))
    )


class Features:
    """[n, 1024] of a batch's images."""

    def __init__(self, weights: str = DEFAULT_WEIGHTS_DIR):
        source = "the folder facebook/dinov2-large (config.json and model.safetensors)"
        self._features = open_dinov2(find_weights(weights, (FOLDER,), source))

    def __call__(self, batch: Batch) -> Float[np.ndarray, "n d"]:
        return self._features(batch.images)
