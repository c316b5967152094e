"""BERT's tokens for networks that have the text encoder inside, such as ImageReward's BLIP.

It is a text encoder without a network: the state of a token is its id. So tokens reach a task, and
a cache, in the way that the states of all encoders do.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from emu_jax.checkpoint.foreign import described_by
from emu_jax.checkpoint.huggingface import find_folder
from emu_jax.errors import UserError
from emu_jax.nn.conditioner import Encoded
from emu_jax.nn.functional import Params
from emu_jax.text.encoder import Null, TextEncoder
from emu_jax.text.pretrained import NO_FOLDER, load_tokenizer

TOKENIZER_FILES = (("tokenizer.json",), ("vocab.txt",))


@dataclass(frozen=True)
class BertTokens(TextEncoder):
    """``vocabulary`` is the number of ids that the network has."""

    vocabulary: int = field(default=30524, kw_only=True)

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import BertTokenizer  # takes seconds

        if self.folder == NO_FOLDER:
            raise UserError(
                f"Set config.text.{self.name}.path to a folder with BERT's tokenizer: without it a "
                "step can only be planned."
            )
        return load_tokenizer(BertTokenizer, self.folder, TOKENIZER_FILES)

    def _tokenize(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        sides = dict(padding="max_length", truncation=True, max_length=self.length)
        with described_by(self.folder):
            rows = self._tokenizer(texts, **sides)
        ids = np.array(rows["input_ids"], np.int32).reshape(-1, self.length)
        if ids.size and ids.max() >= self.vocabulary:
            raise UserError(
                f"The tokenizer in {self.folder} gives the id {ids.max()}, but the network has "
                f"{self.vocabulary} ids; use tokenizer and weights of one model."
            )
        return ids, np.array(rows["attention_mask"], bool).reshape(-1, self.length)

    def apply(self, params: Params, ids: Int[Array, "b l"], mask: Bool[Array, "b l"]) -> Encoded:
        del params
        return Encoded(ids[..., None].astype(jnp.float32), mask)

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {}

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        return iter(())

    @property
    def weights(self) -> Path:
        return self.folder

    @property
    def fingerprint(self) -> str:
        return "none"

    @property
    def tokenizer_files(self) -> list[Path]:
        names = {name for names in TOKENIZER_FILES for name in names}
        return [self.folder / name for name in sorted(names) if (self.folder / name).is_file()]


def make_bert_tokens(
    name: str,
    length: int = 35,
    *,
    path: str | Path = "",
    vocabulary: int = 30524,
    dtype: str = "float32",
    null: Null = "empty",
) -> BertTokens:
    """The tokenizer in the folder ``path``. Without one a step can be planned."""
    folder = find_folder(path).absolute() if path else NO_FOLDER
    return BertTokens(name, folder, length, 1, null=null, dtype=dtype, vocabulary=vocabulary)
