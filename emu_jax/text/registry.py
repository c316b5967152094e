"""The kinds of text encoders, by the names that a config can give: one line an entry.

An entry builds an encoder from a name and the keys of its section.
"""

from collections.abc import Callable
from typing import Any

from emu_jax.registry import Lazy

ENCODERS: dict[str, Callable[..., Any]] = {
    "bert_tokens": Lazy("emu_jax.text.bert_tokens:make_bert_tokens"),
    "minilm": Lazy("emu_jax.text.minilm:make_minilm"),
    "clip": Lazy("emu_jax.text.clip:make_clip"),
    "t5": Lazy("emu_jax.text.t5:make_t5"),
}
