"""The tensors in a file of torch, and nothing else of it.

Such a file is a pickle, and a pickle can run code when it is read. torch's restricted unpickler
admits tensors and plain containers only; before torch 2.6 it could be bypassed (CVE-2025-32434).
"""

import re
import zipfile
from pathlib import Path
from typing import Any

from emu_jax.errors import UserError

_SAFE = (2, 6)


def read_pickle(file: Path) -> dict[str, Any]:
    """Name -> torch.Tensor, on the CPU, of the entry ``state_dict`` where there is one.

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
    if not isinstance(found, dict):
        raise UserError(f"{file} holds no tensors by name, but a {type(found).__name__}.")
    tensors = {
        name: value
        for name, value in found.items()
        if isinstance(name, str) and isinstance(value, torch.Tensor)
    }
    return {name: value.detach() for name, value in tensors.items()}
