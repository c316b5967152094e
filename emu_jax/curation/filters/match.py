"""How well the captions fit by the shipped judge, or another network of two towers."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import pyarrow as pa

from emu_jax.curation.filters import Batch, where_present
from emu_jax.curation.filters.towers import open_tower


class Match:
    """``match``: the cosine of an image and the caption that fits it best, by ``model``
    (:mod:`emu_jax.curation.filters.towers`); none where there is no caption.
    """

    VERSION: ClassVar[int] = 1
    columns: ClassVar[dict[str, pa.DataType]] = {"match": pa.float32()}

    def __init__(self, model: str = "builtin:judge_64") -> None:
        self._tower = open_tower(model)

    def __call__(self, batch: Batch) -> dict[str, list[float | None]]:
        captions: Sequence[list[str]] = batch.columns["captions"]
        flat = [text for texts in captions for text in texts] or [""]
        images, texts = self._tower.images(batch.images), self._tower.texts(flat)
        starts = np.cumsum([0, *map(len, captions)])
        best = [
            np.max(image @ texts[start:stop].T, initial=-1.0)
            for image, start, stop in zip(images, starts[:-1], starts[1:], strict=True)
        ]
        return {"match": where_present(np.array(best), captions)}
