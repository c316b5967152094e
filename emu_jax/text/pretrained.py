"""Encoders whose config, weights and tokenizer lie in a folder as the Hugging Face libraries write
it. A kind of network says how its config is read and how its keys are spelt; the rest is here.
"""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emu_jax.checkpoint.huggingface import stream_params, tokenizer_folder_of, weights_of
from emu_jax.errors import UserError
from emu_jax.nn.functional import Network
from emu_jax.text.encoder import TextEncoder

SENTENCEPIECE = "spiece.model"


@dataclass(frozen=True)
class Pretrained(TextEncoder):
    """A text encoder read from ``folder``."""

    @cached_property
    def network(self) -> Network:
        return self._network()

    @abstractmethod
    def _network(self) -> Network:
        """The network that the folder's config describes."""

    @staticmethod
    def _rename(key: str) -> str | None:
        """A file's key as our network spells it, None for what it does not have."""
        return key

    @property
    def weights(self) -> Path:
        return weights_of(self.folder)

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            path: jax.ShapeDtypeStruct(x.shape, jnp.dtype(self.dtype))
            for path, x in self.network.shapes().items()
        }

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        return stream_params(self.weights, self.shapes(), jnp.dtype(self.dtype), self._rename)

    @cached_property
    def _tokenizer(self) -> Any:
        return self._make_tokenizer()

    @abstractmethod
    def _make_tokenizer(self) -> Any:
        """The folder's own tokenizer: which token pads is its choice."""

    def _tokenize(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        rows = self._tokenizer(texts, padding="max_length", truncation=True, max_length=self.length)
        ids = np.array(rows["input_ids"], np.int32).reshape(-1, self.length)
        return ids, np.array(rows["attention_mask"], bool).reshape(-1, self.length)


def load_tokenizer(kind: Any, folder: Path, files: tuple[tuple[str, ...], ...]) -> Any:
    """A transformers tokenizer of class ``kind`` from the model's folder or its neighbour.

    ``files``: the sets of files any one of which makes a tokenizer, the preferred one first.
    """
    neighbour = folder.parent / tokenizer_folder_of(folder.name)
    for place in (folder, neighbour):
        found = [names for names in files if all((place / name).is_file() for name in names)]
        if not found:
            continue
        if found[0] == (SENTENCEPIECE,) and find_spec("sentencepiece") is None:
            raise UserError(
                f"The tokenizer in {place} is a {SENTENCEPIECE} alone: "
                "`pip install sentencepiece protobuf`, or put a tokenizer.json beside it."
            )
        try:
            return kind.from_pretrained(str(place), local_files_only=True)
        except (ImportError, OSError, ValueError) as error:
            reason = str(error).strip().split("\n")[0].rstrip(".")
            raise UserError(f"The tokenizer in {place} cannot be read: {reason}.") from error
    choices = ", or ".join(" and ".join(names) for names in files)
    raise UserError(f"{folder} has no tokenizer: it needs {choices}.")
