"""Named tensors that are read one at a time, on access.

The conversion of a model is a chain of such mappings from the input file to the output file. So
only one tensor is in memory at a time, whatever the size of the model.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np


class Lazy(Mapping[str, np.ndarray]):
    """``read(name)`` for every name of ``shapes`` (name -> shape and dtype), in its order."""

    def __init__(self, shapes: Mapping[str, Any], read: Callable[[str], np.ndarray]):
        self.shapes = {
            name: jax.ShapeDtypeStruct(tuple(x.shape), x.dtype) for name, x in shapes.items()
        }
        self._read = read

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.shapes:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def __contains__(self, name: object) -> bool:
        return name in self.shapes


def shapes_of(tensors: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes; reads no tensor of a :class:`Lazy`."""
    if isinstance(tensors, Lazy):
        return tensors.shapes
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in tensors.items()}
