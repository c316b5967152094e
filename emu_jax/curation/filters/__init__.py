"""Filters: pure functions from a batch of images and columns to further columns.

A filter is a class of one file. What its constructor takes are its keys in a config; the
constructor loads what it needs, once in a worker process. ``columns`` are the types of the columns
that it computes. It throws nothing away. Of its class

    VERSION     changes with its results: scores of another version are computed anew
    PACKAGES    distributions that bring its weights, whose versions count likewise
    READS       keys whose values are columns of numbers that the source must keep

and the last two may be absent.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8
from PIL import Image

Pixels = UInt8[np.ndarray, "_ _ 3"]


class Batch(NamedTuple):
    """Images of any sizes, upright, on the config's background and reduced to its ``side``; and
    columns: ``captions`` (lists), ``width`` and ``height`` (of the stored image), and the source's.
    """

    images: Sequence[Pixels]
    columns: Mapping[str, Sequence[Any]]

    def first_captions(self) -> list[str]:
        """The first caption of every image; empty where it has none."""
        return [texts[0] if texts else "" for texts in self.columns["captions"]]


class Filter(Protocol):
    VERSION: ClassVar[int]
    columns: Mapping[str, pa.DataType]

    def __call__(self, batch: Batch) -> Mapping[str, Sequence[Any]]:
        """A value of every column for every image; None where there is none."""
        ...


def resized(image: Pixels, height: int, width: int) -> Pixels:
    """The image in another size (Lanczos)."""
    if image.shape[:2] == (height, width):
        return image
    pixels = Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(pixels)


def luma(image: Pixels) -> np.ndarray:
    """Luma, 0 to 1 (Rec. 709 of the stored values)."""
    return image @ (np.array([0.2126, 0.7152, 0.0722], np.float32) / 255)


def session(path: str) -> Any:
    """A network of ONNX on one thread: its sums have one order, and workers divide the cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def where_present(values: np.ndarray, present: Sequence[Any]) -> list[float | None]:
    """Values as numbers, None where ``present`` is empty."""
    return [float(x) if there else None for x, there in zip(values, present, strict=True)]
