"""Encoders whose config, weights and tokenizer are in a folder in the format of the Hugging Face
libraries. Subclasses read the config and map the keys of one kind of network.

Without a folder, a published model can be named by its size. That is enough to plan a step, which
needs no weights.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from emu_jax.checkpoint.foreign import described_by, read_json
from emu_jax.checkpoint.huggingface import (
    find_folder,
    stream_params,
    tokenizer_folder_of,
    weights_of,
)
from emu_jax.checkpoint.paths import refuse_links_out
from emu_jax.errors import UserError
from emu_jax.nn.functional import Network
from emu_jax.text.encoder import TextEncoder

SENTENCEPIECE = "spiece.model"
_TOKENIZER_JSON = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json"),
)
_TOKENIZER_FILES = (*_TOKENIZER_JSON, "merges.txt", SENTENCEPIECE)
NO_FOLDER = Path()


@dataclass(frozen=True)
class Pretrained(TextEncoder):
    """A text encoder from ``folder``, or, without one (``NO_FOLDER``), of a published ``size``.

    ``sizes``: for each published size the keys of config.json that differ from ``defaults``.
    """

    size: str = field(default="", kw_only=True)
    defaults: ClassVar[Mapping[str, Any]] = {}
    sizes: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    @classmethod
    def find(cls, name: str, path: str | Path, size: str) -> tuple[Path, dict[str, Any]]:
        """(folder, config with defaults filled in) of the encoder ``name`` of the run's config.

        Raises:
          UserError: neither path nor size, an unknown size, or a folder of another size.
        """
        known = ", ".join(cls.sizes)
        if size and size not in cls.sizes:
            raise UserError(f"Encoder {name}: size is {size!r}; use one of {known}.")
        if not (path or size):
            raise UserError(
                f"Encoder {name} needs path, a model's folder or hub name; to plan a step, size is "
                f"enough: {known}."
            )
        folder = find_folder(path).absolute() if path else NO_FOLDER
        config = cls.config_of(folder, size)
        for key, value in cls.sizes.get(size, {}).items():
            if config[key] != value:
                raise UserError(
                    f"Encoder {name}: {folder} is not {size}: its {key} is {config[key]}, not "
                    f"{value}; use another folder, or an empty size to accept this one."
                )
        return folder, config

    @classmethod
    def config_of(cls, folder: Path, size: str) -> dict[str, Any]:
        """The config of the folder, without a folder of the size, with defaults filled in."""
        if folder == NO_FOLDER:
            return {**cls.defaults, **cls.sizes[size]}
        return cls.read_config(folder)

    @classmethod
    @abstractmethod
    def read_config(cls, folder: Path) -> dict[str, Any]:
        """The folder's config with defaults filled in."""

    @cached_property
    def network(self) -> Network:
        with described_by(self.folder):
            return self._network(self.config_of(self.folder, self.size))

    @abstractmethod
    def _network(self, config: Mapping[str, Any]) -> Network:
        """The network of a complete config."""

    @staticmethod
    def _rename(key: str) -> str | None:
        """The parameter name of a file's key, None for keys that our network does not have."""
        return key

    @property
    def weights(self) -> Path:
        return weights_of(self._existing_folder())

    @property
    def fingerprint(self) -> str:
        return "none" if self.folder == NO_FOLDER else super().fingerprint

    @property
    def tokenizer_files(self) -> list[Path]:
        """Those in its folder and in the neighbor that may have the tokenizer, each once: a copy of
        the folder has the same, whatever its name.
        """
        if self.folder == NO_FOLDER:
            return []
        places = {self.folder, _neighbor(self.folder)}  # the same where there is no neighbor
        files = (place / name for place in places for name in _TOKENIZER_FILES)
        return [file for file in files if file.is_file()]

    def _existing_folder(self) -> Path:
        if self.folder == NO_FOLDER:
            raise UserError(
                f"The config gives only the size ({self.size}) of the text encoder {self.name}. It "
                "is enough to plan a step, not to run one; set a folder or hub model as "
                f"config.text.{self.name}.path."
            )
        return self.folder

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            path: jax.ShapeDtypeStruct(x.shape, jnp.dtype(self.dtype))
            for path, x in self.network.shapes().items()
        }

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        return stream_params(self.weights, self.shapes(), jnp.dtype(self.dtype), self._rename)

    @cached_property
    def _tokenizer(self) -> Any:
        return self._make_tokenizer(self._existing_folder())

    @abstractmethod
    def _make_tokenizer(self, folder: Path) -> Any:
        """The folder's own tokenizer; it determines the padding token."""

    def _tokenize(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        sides = dict(padding="max_length", truncation=True, max_length=self.length)
        with described_by(self.folder):
            rows = self._tokenizer(texts, **sides)
            return self._arrays(rows["input_ids"], rows["attention_mask"])

    def spans(self, texts: Sequence[str]) -> Int[np.ndarray, "b l 2"]:
        if not getattr(self._tokenizer, "is_fast", False):
            return super().spans(texts)
        sides = dict(padding="max_length", truncation=True, max_length=self.length)
        with described_by(self.folder):
            rows = self._tokenizer(list(texts), return_offsets_mapping=True, **sides)
        return np.array(rows["offset_mapping"], np.int32).reshape(-1, self.length, 2)

    def _arrays(self, ids: Any, mask: Any) -> tuple[np.ndarray, np.ndarray]:
        """A tokenizer's rows as arrays; refuses ids that are outside the network's vocabulary."""
        ids = np.array(ids, np.int32).reshape(-1, self.length)
        if ids.size and not 0 <= ids.min() <= ids.max() < self._vocabulary:
            raise UserError(
                f"The tokenizer of the encoder {self.name} gives the id {ids.max()}, but its "
                f"network has {self._vocabulary} ids; use tokenizer and weights of one model."
            )
        return ids, np.array(mask, bool).reshape(-1, self.length)

    @cached_property
    def _vocabulary(self) -> int:
        return self.config_of(self.folder, self.size)["vocab_size"]


def open_tokenizer(place: Path, make: Callable[[str], Any]) -> Any:
    """``make(place)``, the tokenizer of a folder.

    Raises:
      UserError: a file is damaged, or the tokenizer's library refuses it for any reason.
    """
    for name in _TOKENIZER_JSON:
        if (place / name).is_file():
            read_json(place / name)
    try:
        return make(str(place))
    except (KeyboardInterrupt, MemoryError, SystemExit, UserError):
        raise
    except BaseException as error:
        # The library raises plain Exception, and a panic in its Rust code is a BaseException.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(f"The tokenizer in {place} cannot be read: {reason}.") from error


def _neighbor(folder: Path) -> Path:
    """Where a pipeline keeps the tokenizer of the encoder in ``folder``."""
    return folder.parent / tokenizer_folder_of(folder.name)


def load_tokenizer(kind: Any, folder: Path, files: tuple[tuple[str, ...], ...]) -> Any:
    """A transformers tokenizer of class ``kind`` from the model's folder or its sibling folder.

    ``files``: sets of files, each of which is enough for a tokenizer, the preferred one first.
    """
    for place in (folder, _neighbor(folder)):
        found = [names for names in files if all((place / name).is_file() for name in names)]
        if not found:
            continue
        refuse_links_out(place)  # of the neighbour too
        if found[0] == (SENTENCEPIECE,) and find_spec("sentencepiece") is None:
            raise UserError(
                f"The tokenizer in {place} has only a {SENTENCEPIECE}; run "
                "`pip install sentencepiece protobuf`, or put a tokenizer.json beside it."
            )
        return open_tokenizer(place, partial(kind.from_pretrained, local_files_only=True))
    choices = ", or ".join(" and ".join(names) for names in files)
    raise UserError(f"{folder} has no tokenizer: it needs {choices}.")
