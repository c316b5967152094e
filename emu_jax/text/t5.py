"""T5 v1.1 as a frozen encoder, up to XXL: the states of a text's tokens.

``padding`` says whether T5 and the generator attend to padding tokens:

    padding     T5     generator
    masked      no     no           PixArt
    attended    no     yes          DeepFloyd IF
    read        yes    yes          Stable Diffusion 3

Folders of the encoder alone and of the whole model can be read; the decoder's weights are not
loaded. There is no pooled vector.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from emu_jax.checkpoint.foreign import like
from emu_jax.checkpoint.huggingface import read_config
from emu_jax.errors import UserError
from emu_jax.nn.conditioner import Encoded
from emu_jax.nn.functional import Network, Params
from emu_jax.nn.t5 import T5Encoder
from emu_jax.text.encoder import Null
from emu_jax.text.pretrained import SENTENCEPIECE, Pretrained, load_tokenizer

Padding = Literal["masked", "attended", "read"]
_TOKENIZER_FILES = (("tokenizer.json",), (SENTENCEPIECE,))
# The defaults of the published class, for keys that a config leaves out.
_DEFAULTS = dict(
    vocab_size=32128,
    d_model=512,
    d_kv=64,
    d_ff=2048,
    num_layers=6,
    num_heads=8,
    relative_attention_num_buckets=32,
    relative_attention_max_distance=128,
    layer_norm_epsilon=1e-6,
    feed_forward_proj="relu",
)


# The published sizes of v1.1.
_SIZES = {
    name: dict(
        d_model=width,
        d_kv=64,
        d_ff=feed_forward,
        num_layers=layers,
        num_heads=heads,
        feed_forward_proj="gated-gelu",
    )
    for name, width, feed_forward, layers, heads in (
        ("small", 512, 1024, 8, 6),
        ("base", 768, 2048, 12, 12),
        ("large", 1024, 2816, 24, 16),
        ("xl", 2048, 5120, 24, 32),
        ("xxl", 4096, 10240, 24, 64),
    )
}


@dataclass(frozen=True)
class T5(Pretrained):
    """The encoder of T5 v1.1. ``padding`` is a row of the table above. ``lowercase``: texts are
    converted to lower case and stripped of surrounding spaces.
    """

    padding: Padding = "masked"
    lowercase: bool = False
    defaults = _DEFAULTS
    sizes = _SIZES

    @classmethod
    def read_config(cls, folder: Path) -> dict[str, Any]:
        return read_t5_config(folder)

    def _make_tokenizer(self, folder: Path) -> Any:
        from transformers import T5Tokenizer  # takes seconds; a run on cached text needs none

        return load_tokenizer(T5Tokenizer, folder, _TOKENIZER_FILES)

    def _network(self, config: Mapping[str, Any]) -> Network:
        return network(config)

    @staticmethod
    def _rename(key: str) -> str | None:
        if key.startswith(("decoder.", "lm_head.")):
            return None
        return "shared.weight" if key == "encoder.embed_tokens.weight" else key

    def __post_init__(self):
        super().__post_init__()
        if self.padding not in get_args(Padding):
            raise UserError(
                f"Encoder {self.name}: padding is one of {', '.join(get_args(Padding))}, not "
                f"{self.padding!r}."
            )

    def _tokenize(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        return super()._tokenize(
            [text.lower().strip() for text in texts] if self.lowercase else texts
        )

    def spans(self, texts: Sequence[str]) -> Int[np.ndarray, "b l 2"]:
        if not self.lowercase:
            return super().spans(texts)
        spans = super().spans([text.lower().strip() for text in texts])
        for row, text in zip(spans, texts, strict=True):
            # Lower case may have more characters; of the spaces before the text none is left.
            origins = [i for i, letter in enumerate(text) for _ in letter.lower()]
            lower, real = text.lower(), row[:, 1] > row[:, 0]
            first = len(lower) - len(lower.lstrip())
            for token in np.flatnonzero(real):
                start, end = row[token] + first
                row[token] = origins[start], origins[end - 1] + 1
        return spans

    @property
    def masks_padding(self) -> bool:
        return self.padding == "masked"

    def apply(self, params: Params, ids: Int[Array, "b l"], mask: Bool[Array, "b l"]) -> Encoded:
        everything = jnp.ones_like(mask)
        states = self.network(params, ids, everything if self.padding == "read" else mask)
        return Encoded(states, mask if self.masks_padding else everything)


def make_t5(
    name: str,
    length: int = 77,
    *,
    path: str | Path = "",
    size: str = "",
    dtype: str = "float32",
    null: Null = "empty",
    padding: Padding = "masked",
    lowercase: bool = False,
) -> T5:
    """T5's encoder from a folder or hub name. For planning a published size is enough: small, base,
    large, xl or xxl. Positions are relative, so every length is possible.
    """
    if length < 2:
        raise UserError(f"Encoder {name} takes lengths from 2 on, not {length}.")
    folder, config = T5.find(name, path, size)
    return T5(
        *(name, folder, length, config["d_model"]),
        null=null,
        dtype=dtype,
        size=size,
        padding=padding,
        lowercase=lowercase,
    )


def read_t5_config(folder: Path) -> dict[str, Any]:
    """A folder's config with defaults filled in; only the gated form of v1.1 is supported."""
    config = like(read_config(folder, ("t5",)), _DEFAULTS, folder / "config.json")
    if config["feed_forward_proj"] != "gated-gelu":
        raise UserError(
            f"{folder} is a T5 with feed-forward layers {config['feed_forward_proj']}; only T5 "
            "v1.1, gated-gelu, is supported."
        )
    return config


def network(config: Mapping[str, Any]) -> Network:
    """The network of a complete config."""
    return Network(
        lambda rngs: T5Encoder(
            vocabulary=config["vocab_size"],
            width=config["d_model"],
            layers=config["num_layers"],
            heads=config["num_heads"],
            head_width=config["d_kv"],
            feed_forward=config["d_ff"],
            buckets=config["relative_attention_num_buckets"],
            max_distance=config["relative_attention_max_distance"],
            eps=config["layer_norm_epsilon"],
            rngs=rngs,
        )
    )
