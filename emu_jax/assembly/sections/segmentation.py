"""The parts of a segmenter."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from emu_jax.assembly.schema import Section, key

LEVELS = 5  # as published


@dataclass(frozen=True, kw_only=True)
class Solo(Section):
    """:class:`emu_jax.nn.solo.Solo`."""

    backbone: Literal["small", "resnet50", "resnet101"] = key(
        "resnet50", "The network below the feature pyramid."
    )
    widths: tuple[int, ...] = key(
        (32, 64, 128), "Channels of the small backbone's stages.", at_least=1, filled=True
    )
    grids: tuple[int, ...] = key(
        (40, 36, 24, 16, 12), "Cells along a side at each level, finest first.", at_least=1
    )
    width: int = key(256, "Channels of pyramid and branches.", at_least=1)
    depth: int = key(7, "Convolutions of a branch.", at_least=1)
    groups: int = key(32, "Groups of group norms.", at_least=1)

    def problems(self) -> Iterator[tuple[str, str]]:
        if len(self.grids) not in (1, LEVELS):
            yield "grids", f"one level, or the published {LEVELS}"
        if self.backbone == "small" and len(self.grids) > 1:
            yield "grids", "one level with the small backbone"


@dataclass(frozen=True, kw_only=True)
class Labeled(Section):
    """Which objects are found."""

    column: str = key("things", "The manifest's column of the instances' classes.", filled=True)
    classes: tuple[str, ...] = key((), "Names of the classes, in the order of their numbers.")
    most: int = key(6, "The largest number of instances in an image.", at_least=1, at_most=255)
    score: float = key(0.3, "Score above which an instance counts.", at_least=0, below=1)
    agnostic: bool = key(
        False, "An instance suppresses overlapping ones of all classes, not only of its own."
    )
    round_trip: float = key(
        0.0, "Share of training images that pass the codec first.", at_least=0, at_most=1
    )
