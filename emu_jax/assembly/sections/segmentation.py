"""The parts of a segmenter and of a tagger."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from emu_jax.assembly.schema import Section, key

LEVELS = 5  # as published
STAGES = 4  # of a ResNet


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
class DeepLab(Section):
    """:class:`emu_jax.nn.deeplab.DeepLab`; the defaults are the published network's."""

    depths: tuple[int, ...] = key((3, 4, 6, 3), "Blocks of the ResNet's stages.", at_least=1)
    width: int = key(64, "Channels inside the first stage's blocks.", at_least=1)
    rates: tuple[int, ...] = key((12, 24, 36), "Dilations of the pyramid.", at_least=1)
    channels: int = key(256, "Channels of the pyramid.", at_least=1)

    def problems(self) -> Iterator[tuple[str, str]]:
        if len(self.depths) != STAGES:
            yield "depths", f"{STAGES} numbers"


@dataclass(frozen=True, kw_only=True)
class Objects(Section):
    """Which objects are known in the training images."""

    column: str = key("things", "The manifest's column of the instances' classes.", filled=True)
    classes: tuple[str, ...] = key((), "Names of the classes, in the order of their numbers.")
    most: int = key(6, "The largest number of instances in an image.", at_least=1, at_most=255)
    round_trip: float = key(
        0.0, "Share of training images that pass the codec first.", at_least=0, at_most=1
    )


@dataclass(frozen=True, kw_only=True)
class Labeled(Objects):
    """Which objects are found."""

    score: float = key(0.3, "Score above which an instance counts.", at_least=0, below=1)
    agnostic: bool = key(
        False, "An instance suppresses overlapping ones of all classes, not only of its own."
    )


@dataclass(frozen=True, kw_only=True)
class Pixels(Objects):
    """The labels of pixels: 0 for the background and 1 + c for the class c."""

    mask: int = key(
        0,
        "Labels are those of the further image mask, 0 to mask - 1; 0: they follow from instances.",
        at_least=0,
        at_most=255,
    )

    def problems(self) -> Iterator[tuple[str, str]]:
        if not self.mask and not self.classes:
            yield "classes", "the names of the classes, or mask: the number of labels"


@dataclass(frozen=True, kw_only=True)
class Tagger(Section):
    """:class:`emu_jax.nn.tagger.Tagger`."""

    widths: tuple[int, ...] = key(
        (48, 96, 192), "Channels of the image tower's stages.", at_least=1, filled=True
    )
    blocks: int = key(2, "Residual blocks of a stage.", at_least=1)
    groups: int = key(8, "Groups of group norms.", at_least=1)


@dataclass(frozen=True, kw_only=True)
class Tags(Section):
    """Which words are known of the training images."""

    column: str = key("dimensions", "The manifest's column of the words.", filled=True)
    words: tuple[str, ...] = key((), "The words, in the order of the network's outputs.")
    most: int = key(4, "The largest number of words of an image.", at_least=1, at_most=255)
    noise: float = key(0.05, "Largest strength of the noise that images get.", at_least=0)
    round_trip: float = key(
        0.0, "Share of training images that pass the codec first.", at_least=0, at_most=1
    )

    def problems(self) -> Iterator[tuple[str, str]]:
        if not self.words:
            yield "words", "the words"
