"""Inception's features: what FID, KID, precision, recall and the Inception Score read.

Images of any size are resized as by TensorFlow 1 and torch-fidelity: bilinear, without half-pixel
centers and without a filter. pytorch-fid resizes with half-pixel centers, which gives other values
for images that are not 299 pixels wide.
"""

from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Float

from emu_jax.evaluation.frozen import (
    DEFAULT_WEIGHTS_DIR,
    Frozen,
    Images,
    Remembered,
    by_shape,
    find_weights,
    read_tensors,
    to_params,
)
from emu_jax.evaluation.measuring import Batch
from emu_jax.nn.functional import Network
from emu_jax.nn.inception import SIZE, Inception
from emu_jax.nn.resizing import bilinear

FILES = (
    "weights-inception-2015-12-05-6726825d.pth",
    "pt_inception-2015-12-05-6726825d.pth",
    "inception.safetensors",
)
_POOLED = 2048


@cache
def open_inception(file: Path) -> Remembered:
    """From images to rows of pooled features and logits side by side."""
    network = Network(lambda rngs: Inception(rngs=rngs))

    def features(params, images):
        x = bilinear(images.astype(np.float32), (SIZE, SIZE), half_pixel=False)
        return tuple(network(params, (x - 128) / 128))

    run = Frozen(features, to_params(network, read_tensors(file), file))
    return Remembered(lambda images: by_shape(images, lambda x: np.concatenate(run(x), axis=1)))


class Pooled:
    """[n, 2048] of a batch's images."""

    def __init__(self, weights: str = DEFAULT_WEIGHTS_DIR):
        source = "the TensorFlow Inception of 2015-12-05 (torch-fidelity or pytorch-fid)"
        self._features = open_inception(find_weights(weights, FILES, source))

    def __call__(self, batch: Batch) -> Float[np.ndarray, "n 2048"]:
        return self._rows(batch.images)[:, :_POOLED]

    def _rows(self, images: Images) -> Float[np.ndarray, "n f"]:
        return self._features(images)


class Logits(Pooled):
    """[n, 1008] of a batch's images."""

    def __call__(self, batch: Batch) -> Float[np.ndarray, "n 1008"]:
        return self._rows(batch.images)[:, _POOLED:]
