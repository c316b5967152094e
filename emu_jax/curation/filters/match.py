"""How well the caption fits by the shipped judge, which ranks it among others."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import pyarrow as pa

from emu_jax.curation.filters import Batch, where_present
from emu_jax.curation.filters.towers import open_tower
from emu_jax.errors import UserError


class Match:
    """``match``: the cosine of an image and its best caption by ``model``, and ``match_rank``: the
    share of the texts ``among`` that fit the image better than it, 0 at best. A cosine alone says
    little of a small network: some texts are near every image.
    """

    VERSION: ClassVar[int] = 1
    columns: ClassVar[dict[str, pa.DataType]] = {"match": pa.float32(), "match_rank": pa.float32()}

    def __init__(self, among: tuple[str, ...], model: str = "builtin:judge_64") -> None:
        if not among:
            raise UserError("config.filters: match needs among, texts that captions compete with.")
        self._tower = open_tower(model)
        self._among = self._tower.texts(list(among))

    def __call__(self, batch: Batch) -> dict[str, list[float | None]]:
        captions: Sequence[list[str]] = batch.columns["captions"]
        flat = [text for texts in captions for text in texts] or [""]
        images, texts = self._tower.images(batch.images), self._tower.texts(flat)
        starts = np.cumsum([0, *map(len, captions)])
        best = np.array(
            [
                np.max(image @ texts[start:stop].T, initial=-1.0)
                for image, start, stop in zip(images, starts[:-1], starts[1:], strict=True)
            ]
        )
        rank = np.mean(images @ self._among.T > best[:, None] + 1e-6, axis=1)
        return {"match": where_present(best, captions), "match_rank": where_present(rank, captions)}
