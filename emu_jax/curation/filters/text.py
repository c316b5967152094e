"""Text in the image by OCR: RapidOCR's PP-OCR (package ``rapidocr``, Apache-2.0; the weights come
inside it).
"""

import logging
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from emu_jax.curation.filters import Batch, Pixels, resized
from emu_jax.errors import UserError


class Text:
    """``words``, how many were read, and ``text_share``, the share of the area that text covers.

    Images are read at a shorter side of ``side`` pixels, enlarged if need be. ``recognize=False``
    only detects text: three times as fast, and ``words`` is then the number of lines.
    """

    VERSION: ClassVar[int] = 1
    PACKAGES: ClassVar[tuple[str, ...]] = ("rapidocr", "onnxruntime")
    columns: ClassVar[dict[str, pa.DataType]] = {"words": pa.int32(), "text_share": pa.float32()}

    def __init__(self, side: int = 320, recognize: bool = True, confidence: float = 0.6) -> None:
        try:
            from rapidocr import RapidOCR
        except ModuleNotFoundError as error:
            raise UserError(
                f"The filter text needs the package {error.name}: pip install 'emu_jax[curation]'."
            ) from error
        threads = "EngineConfig.onnxruntime."
        self._ocr = RapidOCR(
            params={
                "Global.log_level": "critical",
                "Global.use_cls": False,
                "Global.text_score": confidence,
                "Det.limit_side_len": side,
                f"{threads}intra_op_num_threads": 1,
                f"{threads}inter_op_num_threads": 1,
            }
        )
        logging.getLogger("RapidOCR").setLevel(logging.CRITICAL)
        self._side, self._recognize = side, recognize

    def __call__(self, batch: Batch) -> dict[str, list[Any]]:
        rows = [self._measure(image) for image in batch.images]
        return {"words": [row[0] for row in rows], "text_share": [row[1] for row in rows]}

    def _measure(self, image: Pixels) -> tuple[int, float]:
        height, width = image.shape[:2]
        scale = self._side / min(height, width)
        if max(height, width) * scale <= 4 * self._side:  # a longer strip stays as it is
            image = resized(image, round(height * scale), round(width * scale))
        bgr = np.ascontiguousarray(image[:, :, ::-1])
        found = self._ocr(bgr, use_det=True, use_cls=False, use_rec=self._recognize)
        boxes = getattr(found, "boxes", None)
        if boxes is None or not len(boxes):
            return 0, 0.0
        texts = getattr(found, "txts", None)
        words = sum(len(text.split()) for text in texts) if texts is not None else len(boxes)
        return words, _covered(np.asarray(boxes, np.float64), image.shape[:2])


def _covered(boxes: np.ndarray, shape: tuple[int, ...]) -> float:
    """The share of an image that quadrilaterals [n, 4, 2] cover; overlaps count once."""
    from PIL import Image, ImageDraw

    height, width = shape
    mask = Image.new("1", (width, height))
    for box in boxes:
        ImageDraw.Draw(mask).polygon([tuple(point) for point in box.tolist()], fill=1)
    return float(np.mean(np.asarray(mask)))
