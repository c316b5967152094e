"""The shape of the stored image."""

from typing import ClassVar

import numpy as np
import pyarrow as pa

from emu_jax.curation.filters import Batch


class Shape:
    """``short_side`` in pixels, and ``aspect``, the long side by the short one, 1 or more."""

    VERSION: ClassVar[int] = 1
    columns: ClassVar[dict[str, pa.DataType]] = {
        "short_side": pa.int32(),
        "aspect": pa.float32(),
    }

    def __call__(self, batch: Batch) -> dict[str, np.ndarray]:
        sides = np.sort(np.stack([batch.columns["width"], batch.columns["height"]], 1), axis=1)
        return {"short_side": sides[:, 0], "aspect": sides[:, 1] / sides[:, 0]}
