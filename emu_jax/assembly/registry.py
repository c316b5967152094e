"""The kinds of codecs and of teachers, by the names that ``kind`` of their sections can have.

A codec's entry takes the name of the section and its keys, and returns the codec
(:mod:`emu_jax.tasks.codecs`) and its frozen weights:

    def make_mine(name: str, *, block: int = 8) -> tuple[Codec, dict[str, Frozen]]: ...
    CODECS["mine"] = make_mine

A teacher's entry returns a teacher (:mod:`emu_jax.tasks.teachers`) and its frozen weights; ``on``
says where networks run:

    def make_mine(on: Placement, *, path: str) -> tuple[Teacher, Frozen]: ...
    TEACHERS["mine"] = make_mine
"""

from collections.abc import Callable
from typing import Any

from emu_jax.registry import Lazy

CODECS: dict[str, Callable[..., Any]] = {
    "autoencoder": Lazy("emu_jax.assembly.codecs:make_autoencoder_codec"),
    "identity": Lazy("emu_jax.assembly.codecs:make_identity_codec"),
}

TEACHERS: dict[str, Callable[..., Any]] = {
    "layout": Lazy("emu_jax.assembly.teachers:make_layout"),
    "reward": Lazy("emu_jax.assembly.rewards:make_reward"),
    "structure": Lazy("emu_jax.assembly.teachers:make_structure"),
    "style": Lazy("emu_jax.assembly.teachers:make_style"),
    "adversary": Lazy("emu_jax.assembly.rewards:make_adversary"),
}
