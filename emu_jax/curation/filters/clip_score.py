"""How well the caption fits by CLIP (:class:`emu_jax.evaluation.clip_metrics.ClipScore`)."""

from typing import ClassVar

import pyarrow as pa

from emu_jax.curation.filters import Batch, where_present


class ClipScore:
    """``clip_score``: the cosine of an image and its first caption by CLIP ViT-B/32 in the folder
    ``weights``; none where there is no caption.
    """

    VERSION: ClassVar[int] = 1
    columns: ClassVar[dict[str, pa.DataType]] = {"clip_score": pa.float32()}

    def __init__(self, weights: str = "") -> None:
        from emu_jax.evaluation.clip_metrics import ClipScore as Metric
        from emu_jax.evaluation.frozen import DEFAULT_WEIGHTS_DIR

        self._measure = Metric(weights or DEFAULT_WEIGHTS_DIR)

    def __call__(self, batch: Batch) -> dict[str, list[float | None]]:
        from emu_jax.evaluation.measuring import Batch as Measured

        captions = batch.first_captions()
        scores = self._measure(Measured(tuple(batch.images), captions))
        return {"clip_score": where_present(scores, captions)}
