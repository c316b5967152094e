"""A perceptual hash: 64 bits that survive another size, quality and small changes of color.

The image is reduced to 32 x 32 gray values. Of the 8 x 8 lowest frequencies of their DCT-II each
bit says whether the coefficient lies above the median of all 64.
"""

from typing import ClassVar

import numpy as np
import pyarrow as pa
from PIL import Image
from scipy.fft import dctn

from emu_jax.curation.filters import Batch, Pixels

_SIDE, _LOW = 32, 8


class Hash:
    """``hash``, as int64; its Hamming distances are what :mod:`emu_jax.curation.duplicates`
    compares.
    """

    VERSION: ClassVar[int] = 1
    columns: ClassVar[dict[str, pa.DataType]] = {"hash": pa.int64()}

    def __call__(self, batch: Batch) -> dict[str, list[int]]:
        return {"hash": [perceptual_hash(image) for image in batch.images]}


def perceptual_hash(image: Pixels) -> int:
    """The bits of the lowest frequencies, row by row, the first one as the sign."""
    gray = Image.fromarray(image).convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    low = dctn(np.asarray(gray, np.float64))[:_LOW, :_LOW]
    # Flat areas leave coefficients of rounding noise, whose bits would be random.
    low = np.where(np.abs(low) < 1e-6, 0.0, low)
    bits = np.packbits((low > np.median(low)).ravel())
    return int(bits.view(">i8")[0])
