"""The LAION aesthetic predictor (:class:`emu_jax.evaluation.clip_metrics.Aesthetic`)."""

from typing import ClassVar

import pyarrow as pa

from emu_jax.curation.filters import Batch


class Aesthetic:
    """``aesthetic``: 1 to 10, by the head on CLIP ViT-L/14, both in the folder ``weights``."""

    VERSION: ClassVar[int] = 1
    columns: ClassVar[dict[str, pa.DataType]] = {"aesthetic": pa.float32()}

    def __init__(self, weights: str = "") -> None:
        from emu_jax.evaluation.clip_metrics import Aesthetic as Metric
        from emu_jax.evaluation.frozen import DEFAULT_WEIGHTS_DIR

        self._measure = Metric(weights or DEFAULT_WEIGHTS_DIR)

    def __call__(self, batch: Batch) -> dict[str, list[float]]:
        from emu_jax.evaluation.measuring import Batch as Measured

        scores = self._measure(Measured(tuple(batch.images), [""] * len(batch.images)))
        return {"aesthetic": [float(score) for score in scores]}
