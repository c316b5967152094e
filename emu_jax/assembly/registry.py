"""The kinds of codecs, by the names that ``codec.kind`` of a config can have: one line an entry.

An entry takes the name of the section and its keys, and returns the codec
(:mod:`emu_jax.tasks.codecs`) and its frozen weights:

    def make_mine(name: str, *, block: int = 8) -> tuple[Codec, dict[str, Frozen]]: ...
    CODECS["mine"] = make_mine
"""

from collections.abc import Callable
from typing import Any

from emu_jax.registry import Lazy

CODECS: dict[str, Callable[..., Any]] = {
    "autoencoder": Lazy("emu_jax.assembly.codecs:make_autoencoder_codec"),
    "identity": Lazy("emu_jax.assembly.codecs:make_identity_codec"),
}
