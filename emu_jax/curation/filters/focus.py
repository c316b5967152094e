"""Blur and exposure, from pixels alone."""

from typing import ClassVar

import numpy as np
import pyarrow as pa
from scipy.ndimage import laplace, maximum_filter

from emu_jax.curation.filters import Batch, Pixels, luma, resized

_EDGE = 0.1  # of luma: the weakest difference to a neighbor that counts as an edge


class Focus:
    """At a longer side of ``side`` pixels (larger images are reduced, none is enlarged):

    sharpness    the variance of the Laplacian of luma
    acutance     the mean over the strongest edges of the Laplacian by the local contrast: an
                 edge that blur has widened has a weak one whatever its contrast
    brightness   the mean of luma
    clipped      the share of pixels within 2 % of black or white
    """

    VERSION: ClassVar[int] = 1
    columns: ClassVar[dict[str, pa.DataType]] = dict.fromkeys(
        ("sharpness", "acutance", "brightness", "clipped"), pa.float32()
    )

    def __init__(self, side: int = 512) -> None:
        self._side = side

    def __call__(self, batch: Batch) -> dict[str, list[float | None]]:
        rows = [self._measure(image) for image in batch.images]
        return {name: [row[i] for row in rows] for i, name in enumerate(self.columns)}

    def _measure(self, image: Pixels) -> tuple[float, float | None, float, float]:
        height, width = image.shape[:2]
        scale = min(1.0, self._side / max(height, width))
        small = resized(image, max(1, round(height * scale)), max(1, round(width * scale)))
        gray = luma(small)
        edges = laplace(gray, mode="nearest")
        clipped = np.mean((gray < 0.02) | (gray > 0.98))
        return float(edges.var()), _acutance(gray, edges), float(gray.mean()), float(clipped)


def _acutance(gray: np.ndarray, edges: np.ndarray) -> float | None:
    """None for an image without edges."""
    contrast = maximum_filter(gray, 5, mode="nearest") + maximum_filter(-gray, 5, mode="nearest")
    strong = contrast > max(_EDGE, 0.5 * float(contrast.max()))
    if not strong.any():
        return None
    peak = maximum_filter(np.abs(edges), 5, mode="nearest")
    return float(np.mean(peak[strong] / contrast[strong]))
