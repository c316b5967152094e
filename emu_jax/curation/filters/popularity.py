"""How often people liked, shared or viewed the image: a column of the source."""

from typing import ClassVar

import numpy as np
import pyarrow as pa

from emu_jax.curation.filters import Batch


class Popularity:
    """``popularity``: log(1 + x) of a column of numbers, which spans orders of magnitude."""

    VERSION: ClassVar[int] = 1
    READS: ClassVar[tuple[str, ...]] = ("column",)
    columns: ClassVar[dict[str, pa.DataType]] = {"popularity": pa.float32()}

    def __init__(self, column: str) -> None:
        self._column = column

    def __call__(self, batch: Batch) -> dict[str, list[float | None]]:
        values = batch.columns[self._column]
        return {"popularity": [None if x is None else float(np.log1p(max(x, 0))) for x in values]}
