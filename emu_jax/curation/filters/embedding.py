"""A vector of the image: near-duplicates and searches."""

from typing import ClassVar

import numpy as np
import pyarrow as pa

from emu_jax.curation.filters import Batch
from emu_jax.curation.filters.towers import open_tower

_BITS = 64


class Embedding:
    """``embedding``, of length one, by ``model`` (:mod:`emu_jax.curation.filters.towers`), and
    ``embedding_hash``: 64 signs of it along fixed random directions.
    """

    VERSION: ClassVar[int] = 2

    def __init__(self, model: str = "builtin:judge_64") -> None:
        self._tower = open_tower(model)
        probe = self._tower.images([np.zeros((64, 64, 3), np.uint8)])
        width = probe.shape[1]
        self._directions = np.random.default_rng(0).normal(size=(width, _BITS)).astype(np.float32)
        self.columns = {
            "embedding": pa.list_(pa.float16(), width),
            "embedding_hash": pa.int64(),
        }

    def __call__(self, batch: Batch) -> dict[str, object]:
        vectors = self._tower.images(batch.images)
        signs = np.packbits(vectors @ self._directions > 0, axis=1).view(">i8")[:, 0]
        return {
            "embedding": list(vectors.astype(np.float16)),
            "embedding_hash": signs.tolist(),
        }
