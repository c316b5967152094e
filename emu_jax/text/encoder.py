"""What every frozen text encoder offers, and the registry that makes one by name.

An encoder is a small picklable object: tokenizing happens on the host, in the data workers;
``apply`` is pure and happens inside the jitted step, with parameters as arguments. Weights stay on
disk until ``load``, and a checkpoint names them by ``fingerprint``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Array, Bool, Int

from emu_jax.checkpoint.safetensors_io import fingerprint
from emu_jax.errors import UserError
from emu_jax.nn.conditioner import Encoded
from emu_jax.nn.functional import Params

Tokens = dict[str, np.ndarray]


@dataclass(frozen=True)
class TextEncoder(ABC):
    """``length`` tokens a text; states of ``width``; a pooled vector of ``pooled_width`` (0: none).

    ``null`` says what stands for "no text" in classifier-free guidance: the encoded empty string,
    or zeros in place of states and pooled vector. ``dtype`` is what ``load`` gives.
    """

    name: str
    folder: Path
    length: int
    width: int
    pooled_width: int = 0
    null: Literal["empty", "zeros"] = "empty"
    dtype: str = "float32"

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """``{"ids": int32 [b, length], "mask": bool [b, length]}``; longer texts are cut."""
        ids, mask = self._tokenize(list(texts))
        empty = [text for text, row in zip(texts, mask, strict=True) if not row.any()]
        if empty:
            # Attention over nothing would silently average the padding.
            raise UserError(
                f"Encoder {self.name} finds no token in the text {empty[0]!r}: "
                "leave it out, or write a caption."
            )
        return {"ids": ids, "mask": mask}

    @abstractmethod
    def _tokenize(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """(ids int32 [b, length], mask bool [b, length])."""

    @abstractmethod
    def apply(self, params: Params, ids: Int[Array, "b l"], mask: Bool[Array, "b l"]) -> Encoded:
        """Pure; computes in the dtype of ``params``."""

    @abstractmethod
    def load(self) -> dict[str, np.ndarray]:
        """The flat parameters, in ``dtype``, as numpy arrays."""

    @property
    @abstractmethod
    def weights(self) -> Path:
        """The safetensors file, or folder of them, that ``load`` reads."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the weights."""
        return fingerprint(str(self.weights))


# Name -> (module, function); imported when asked for, as the modules import the class above.
_MAKERS = {"minilm": ("emu_jax.text.minilm", "make_minilm")}


def make_encoder(
    name: str, length: int = 16, *, path: str | Path | None = None, dtype: str = "float32"
) -> TextEncoder:
    """The encoder called ``name``, its weights from ``path`` (None: where pip put them).

    ``dtype`` is what its parameters are loaded as, and so what it computes in.
    """
    if name not in _MAKERS:
        raise UserError(f"No text encoder is called {name!r}; there is {', '.join(_MAKERS)}.")
    module, function = _MAKERS[name]
    maker: Callable[..., TextEncoder] = getattr(import_module(module), function)
    return maker(name, length, path=path, dtype=dtype)
