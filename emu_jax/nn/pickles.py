"""The tensors in a pickle, and nothing else of it.

A pickle can run code when it is read. For files of torch, torch's restricted unpickler admits
tensors and plain containers only; before torch 2.6 it could be bypassed (CVE-2025-32434). For
pickles of numpy arrays, the unpickler here finds the three names that make an array, and no other.
"""

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from emu_jax.errors import UserError

_SAFE = (2, 6)


def read_pickle(file: Path) -> dict[str, Any]:
    """Name -> torch.Tensor, on the CPU, of the entry ``state_dict`` where there is one.

    The names in a tuple are "0", "1", ...

    Raises:
      UserError: torch is missing or too old, or the file is damaged or holds more than tensors.
    """
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{file} is a pickle: to read it, `pip install torch`, or convert it to .safetensors."
        ) from None
    if tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < _SAFE:
        raise UserError(
            f"{file} is a pickle, which torch {torch.__version__} may execute: "
            "`pip install 'torch>=2.6'`, or convert it to .safetensors."
        )
    try:
        mapped = zipfile.is_zipfile(file)  # before torch 1.6 it was no archive, which cannot be
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # whatever damaged bytes raise; nothing in them was executed
        raise UserError(
            f"{file} is refused: it holds more than tensors, or is damaged "
            f"({type(error).__name__}); fetch it again, or take a .safetensors file."
        ) from error
    if isinstance(found, dict):
        found = found.get("state_dict", found)
    if isinstance(found, tuple):
        found = {str(i): value for i, value in enumerate(found)}
    if not isinstance(found, dict):
        raise UserError(f"{file} holds no tensors by name, but a {type(found).__name__}.")
    tensors = {
        name: value
        for name, value in found.items()
        if isinstance(name, str) and isinstance(value, torch.Tensor)
    }
    return {name: value.detach() for name, value in tensors.items()}


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """Path ("a/b/c") -> array, of a pickle of nested dicts of numpy arrays; it needs no torch.

    Raises:
      UserError: the file is damaged or holds more than numbers.
    """
    try:
        with file.open("rb") as stream:
            arrays = dict(_leaves(_Arrays(stream).load()))
    except Exception as error:  # whatever damaged bytes raise; nothing in them was executed
        raise UserError(
            f"{file} is refused: it holds more than numpy arrays, or is damaged "
            f"({type(error).__name__}); fetch it again, or use a .safetensors file."
        ) from error
    return arrays


def _leaves(tree: Any, path: str = ""):
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from _leaves(value, f"{path}/{name}" if path else str(name))
    elif type(tree) is np.ndarray and tree.dtype.kind in "fiu":
        yield path, tree
    else:
        raise pickle.UnpicklingError(type(tree).__name__)


class _Arrays(pickle.Unpickler):
    """Unpickles containers, numbers and numpy arrays."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core", "numpy._core")  # its name before numpy 2
        if (module, name) == ("numpy._core.multiarray", "_reconstruct"):
            return super().find_class(module, name)
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name}")
