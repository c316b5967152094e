"""Conversion between torch's names and layouts and the flat parameters of our networks.

Submodules have the same names as in the public checkpoints. So a key differs by its separator ("."
-> "/") and by the name of a ``weight``: ``kernel`` (convolutions OIHW -> HWIO, dense layers
transposed), ``scale`` (norms) or ``embedding`` (tables). Transposing copies bits, so the conversion
is exact in both directions.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from emu_jax.errors import UserError

_WEIGHT_NAMES = ("kernel", "scale", "embedding")


def torch_paths(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, str]:
    """The path in ``wanted`` of each torch key in ``found``. Both map names to anything with a
    shape.

    Raises:
      UserError: names the keys that are unknown, missing or of another shape.
    """
    paths = {torch_key(path): path for path in wanted}
    unknown = set(found) - set(paths)
    if unknown:
        raise UserError(
            f"The weights hold keys this network does not have: {_list(unknown)}; use weights of "
            "the same architecture."
        )
    missing = set(paths) - set(found)
    if missing:
        raise UserError(
            f"The weights lack keys this network needs: {_list(missing)}; use weights of the same "
            "architecture."
        )
    for key, path in paths.items():
        shape, own = _shape_from_layout(path, tuple(found[key].shape)), tuple(wanted[path].shape)
        if shape != own:
            raise UserError(
                f"The weights' {key} has shape {shape}, but this network's {path} has {own}; use "
                "weights of the same size."
            )
    return paths


def to_torch(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Torch's keys, and contiguous arrays in torch's layout."""
    return {torch_key(path): to_layout(path, np.asarray(v)) for path, v in params.items()}


def torch_key(path: str) -> str:
    """Torch's key of the parameter ``path``."""
    *parents, leaf = path.split("/")
    return ".".join([*parents, "weight" if leaf in _WEIGHT_NAMES else leaf])


def _is_kernel(path: str) -> bool:
    return path.rpartition("/")[2] == "kernel"


def from_layout(path: str, value: np.ndarray) -> np.ndarray:
    """The parameter ``path`` from torch's array. A kernel is [out, in, *size] in torch and
    [*size, in, out] here.
    """
    if not _is_kernel(path):
        return value
    return np.ascontiguousarray(value.transpose(*range(2, value.ndim), 1, 0))


def _shape_from_layout(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[2:], *shape[1::-1]) if _is_kernel(path) else shape


def shape_to_layout(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the result of :func:`to_layout`."""
    return (*shape[:-3:-1], *shape[:-2]) if _is_kernel(path) else shape


def to_layout(path: str, value: np.ndarray) -> np.ndarray:
    """The inverse of :func:`from_layout`: [*size, in, out] -> [out, in, *size]."""
    if not _is_kernel(path):
        return value
    return np.ascontiguousarray(value.transpose(-1, -2, *range(value.ndim - 2)))


def _list(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
