"""Models that give a vector of a prompt, by path.

    a folder, a hub name, FILE.gguf, builtin:smollm2   a language model (language_model.py)
    builtin:minilm                                     the pooled vector of MiniLM
    FILE.pt                                            vectors by prompt that others computed

The last one is the form of the SUR-adapter's authors, ``prompt2vec/<LLM>/<layer>.pt``: a dict from
a prompt to a tensor [width]. Only its tensors are read, no code in it runs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int

from emu_jax.checkpoint.safetensors_io import fingerprint
from emu_jax.errors import UserError
from emu_jax.nn.functional import Params
from emu_jax.nn.pickles import read_pickle
from emu_jax.parallel.placement import ONE_DEVICE, Placement
from emu_jax.text.encoder import TextEncoder, Tokens, make_encoder
from emu_jax.text.language_model import make_language_model
from emu_jax.text.llama_files import BUILTIN

MINILM = "builtin:minilm"
TABLES = (".pt", ".pth", ".bin")
_MINILM_LENGTH = 128  # tokens; longer prompts are cut


class VectorModel(Protocol):
    """A frozen model; ``vectors`` is pure and takes the arrays of ``tokenize`` by name."""

    @property
    def layers(self) -> tuple[int, ...]:
        """The places of its vectors in the model; one vector for each."""
        ...

    @property
    def width(self) -> int: ...

    @property
    def dtype(self) -> str:
        """Of parameters and computation; the vectors are float32."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the weights."""
        ...

    @property
    def settings(self) -> dict[str, str]:
        """Everything except the weights that vectors depend on."""
        ...

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and dtype of every array of ``tensors``."""
        ...

    def stacks(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The parameters that are stacks of several arrays of ``tensors``."""
        ...

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]: ...

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """``ids`` int32, ``mask`` and ``counted`` bool, all [b, l]."""
        ...

    def vectors(
        self,
        params: Params,
        ids: Int[Array, "b l"],
        mask: Bool[Array, "b l"],
        counted: Bool[Array, "b l"],
    ) -> Float32[Array, "b k width"]:
        """The vectors of ``layers``; zeros for the empty text."""
        ...


def make_vector_model(
    path: str = BUILTIN,
    layers: Sequence[int] = (),
    dtype: str = "float32",
    placement: Placement = ONE_DEVICE,
) -> VectorModel:
    """The model at ``path``; ``layers`` are blocks of a language model, by default the last.

    Raises:
      UserError: no such model, no such block, or blocks of what has none.
    """
    table = Path(path).suffix in TABLES
    if layers and (table or path == MINILM):
        raise UserError(f"{path} has one vector of a prompt and no blocks: name no layers.")
    if table:
        return VectorTable(Path(path).expanduser().absolute())
    if path == MINILM:
        return PooledEncoder(make_encoder("minilm", _MINILM_LENGTH, dtype=dtype))
    return make_language_model(path, layers, dtype, placement)


@dataclass(frozen=True)
class PooledEncoder:
    """The pooled vector of a text encoder."""

    encoder: TextEncoder
    layers: tuple[int, ...] = (0,)

    @property
    def width(self) -> int:
        return self.encoder.pooled_width

    @property
    def dtype(self) -> str:
        return self.encoder.dtype

    @property
    def fingerprint(self) -> str:
        return self.encoder.fingerprint

    @property
    def settings(self) -> dict[str, str]:
        own = {name: str(value) for name, value in self.encoder.settings().items()}
        return own | {"tokenizer": self.encoder.tokenizer_fingerprint, "layers": "0"}

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        return self.encoder.shapes()

    def stacks(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {}

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        return self.encoder.tensors()

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        tokens = self.encoder.tokenize(texts)
        empty = np.array([not text for text in texts])
        return tokens | {"counted": tokens["mask"] & ~empty[:, None]}

    def vectors(
        self,
        params: Params,
        ids: Int[Array, "b l"],
        mask: Bool[Array, "b l"],
        counted: Bool[Array, "b l"],
    ) -> Float32[Array, "b k width"]:
        pooled = self.encoder.apply(params, ids, mask).pooled
        assert pooled is not None, "the encoder has a pooled vector"
        kept = jnp.any(counted, axis=1, keepdims=True)
        return jnp.where(kept, pooled.astype(jnp.float32), 0)[:, None]


@dataclass(frozen=True)
class VectorTable:
    """The vectors in a file, by prompt; white space in prompts is normalized as in captions."""

    path: Path
    dtype: str = "float32"

    @property
    def layers(self) -> tuple[int, ...]:
        """The block that the file's name says."""
        return (int(self.path.stem) if self.path.stem.isdecimal() else 0,)

    @property
    def width(self) -> int:
        return self._table.shape[1]

    @property
    def fingerprint(self) -> str:
        return fingerprint(str(self.path))

    @property
    def settings(self) -> dict[str, str]:
        return {"layers": str(self.layers[0])}

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {"table": jax.ShapeDtypeStruct(self._table.shape, jnp.float32)}

    def stacks(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {}

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        yield "table", self._table

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """The rows of the texts, as one token each.

        Raises:
          UserError: the file has no vector of a text.
        """
        unknown = [text for text in texts if text not in self._rows]
        if unknown:
            raise UserError(
                f"{self.path} has no vector of the prompt {unknown[0][:80]!r}: leave such records "
                "out by select, or compute vectors with a language model."
            )
        ids = np.array([[self._rows[text]] for text in texts], np.int32)
        return {"ids": ids, "mask": ids > 0, "counted": ids > 0}

    def vectors(
        self,
        params: Params,
        ids: Int[Array, "b 1"],
        mask: Bool[Array, "b 1"],
        counted: Bool[Array, "b 1"],
    ) -> Float32[Array, "b k width"]:
        return params["table"][ids]

    @property
    def _rows(self) -> dict[str, int]:
        return self._read[0]

    @property
    def _table(self) -> np.ndarray:
        return self._read[1]

    @cached_property
    def _read(self) -> tuple[dict[str, int], np.ndarray]:
        """(prompt -> row, float32 [rows, width]); row 0 is zero, the empty text's."""
        if not self.path.is_file():
            raise UserError(f"There is no file {self.path} of vectors.")
        found = {" ".join(text.split()): x for text, x in read_pickle(self.path).items()}
        found.pop("", None)
        sizes = {text: tuple(x.shape) for text, x in found.items()}
        first = next(iter(sizes.values()), ())
        if not found:
            raise UserError(f"{self.path} has no vectors: it must be a dict from prompts to them.")
        for text, size in sizes.items():
            if len(size) != 1 or size != first:
                raise UserError(
                    f"{self.path} has a tensor of shape {list(size)} for {text[:40]!r}; it must be "
                    "a vector of the same width for every prompt."
                )
        table = np.zeros((len(found) + 1, *first), np.float32)
        for row, vector in zip(table[1:], found.values(), strict=True):
            row[:] = vector.float().numpy()
        return {"": 0} | {text: i for i, text in enumerate(found, 1)}, table
