"""Nudity by body parts: NudeNet's detector. Its package ``nudenet`` has the weights inside, and a
license (AGPL-3.0) that is not everybody's, so it is in no extra of this package.
"""

from typing import ClassVar

import numpy as np
import pyarrow as pa

from emu_jax.curation.filters import Batch
from emu_jax.errors import UserError

_EXPOSED = ("BUTTOCKS", "FEMALE_BREAST", "FEMALE_GENITALIA", "MALE_GENITALIA", "ANUS")


class Nudity:
    """``nudity``: the highest confidence of an exposed part, 0 without one. ``path``: another file
    of the detector.
    """

    VERSION: ClassVar[int] = 1
    PACKAGES: ClassVar[tuple[str, ...]] = ("nudenet", "onnxruntime")
    columns: ClassVar[dict[str, pa.DataType]] = {"nudity": pa.float32()}

    def __init__(self, path: str = "") -> None:
        try:
            from nudenet import NudeDetector  # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError as error:
            raise UserError(
                f"The filter nudity needs the package {error.name}: pip install nudenet."
            ) from error
        self._detect = NudeDetector(path or None, providers=["CPUExecutionProvider"]).detect

    def __call__(self, batch: Batch) -> dict[str, list[float]]:
        return {"nudity": [self._highest(image) for image in batch.images]}

    def _highest(self, image: np.ndarray) -> float:
        found = self._detect(np.ascontiguousarray(image[:, :, ::-1]))  # BGR
        parts = {f"{part}_EXPOSED" for part in _EXPOSED}
        return max((float(x["score"]) for x in found if x["class"] in parts), default=0.0)
