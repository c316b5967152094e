"""The concept that an image shows, zero-shot: of named texts the nearest one."""

from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from emu_jax.curation.filters import Batch
from emu_jax.curation.filters.towers import open_tower


class Concept:
    """``concept``, one of ``names``, and ``concept_probability``, the softmax over their cosines
    times the network's scale.

    ``texts`` are what the names mean, in the same order, several for one name separated by ``|``
    (their mean vector counts); without them ``template`` says it, with {} for the name.
    """

    VERSION: ClassVar[int] = 1
    columns: ClassVar[dict[str, pa.DataType]] = {
        "concept": pa.string(),
        "concept_probability": pa.float32(),
    }

    def __init__(
        self,
        names: tuple[str, ...],
        texts: tuple[str, ...] = (),
        template: str = "a photo of {}",
        model: str = "builtin:judge_64",
    ) -> None:
        self._names, self._tower = names, open_tower(model)
        said = texts or tuple(template.replace("{}", name) for name in names)
        vectors = [np.mean(self._tower.texts(text.split("|")), axis=0) for text in said]
        self._vectors = np.stack([x / np.linalg.norm(x) for x in vectors])

    def __call__(self, batch: Batch) -> dict[str, list[Any]]:
        logits = self._tower.scale * (self._tower.images(batch.images) @ self._vectors.T)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        best = shares.argmax(axis=1)
        return {
            "concept": [self._names[i] for i in best],
            "concept_probability": [float(row[i]) for row, i in zip(shares, best, strict=True)],
        }
