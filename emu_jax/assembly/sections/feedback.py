"""Feedback learning: what looks at images, and at which of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from emu_jax.assembly.kinds import Kinds
from emu_jax.assembly.registry import TEACHERS
from emu_jax.assembly.schema import Section, key, required
from emu_jax.assembly.sections.rewards import Adversary, Reward
from emu_jax.assembly.sections.trajectories import Teaching, Trajectory

BLOCKS = 5  # of VGG-16


@dataclass(frozen=True, kw_only=True)
class Structure(Teaching):
    """The loss of a trained segmenter with the true instances."""

    kind: Literal["structure"] = key("structure", "The teacher.")
    path: str = required(
        "A segmenter: a run, an exported model, builtin:NAME, or a config file to plan with.",
        filled=True,
        path=True,
    )


@dataclass(frozen=True, kw_only=True)
class Layout(Teaching):
    """The cross-entropy of a trained segmenter with the true labels of pixels."""

    kind: Literal["layout"] = key("layout", "The teacher.")
    path: str = required(
        "A segmenter of pixels: a run, an exported model, a config file to plan with, or a file of "
        "torchvision's DeepLab-V3.",
        filled=True,
        path=True,
    )
    column: str = key(
        "classes", "Of a file: the manifest's column of the instances' classes.", filled=True
    )
    classes: tuple[str, ...] = key(
        (), "Of a file: the words in column; empty: labels are those of the further image mask."
    )
    most: int = key(
        100, "Of a file: the largest number of instances in an image.", at_least=1, at_most=255
    )


@dataclass(frozen=True, kw_only=True)
class Style(Teaching):
    """The distance to the original's Gram matrices of VGG-16."""

    kind: Literal["style"] = key("style", "The teacher.")
    path: str = key(
        "",
        "VGG-16 in a file or folder; empty: the installed package; random: random filters of 3, 7, "
        "11, 15 and 19 pixels in place of its blocks.",
        path=True,
    )
    blocks: tuple[float, ...] = key(
        (1.0, 1.0, 1.0, 1.0, 0.0), "Weights of the blocks; 0: left out.", at_least=0, filled=True
    )

    def problems(self) -> Iterator[tuple[str, str]]:
        if len(self.blocks) != BLOCKS or not any(self.blocks):
            yield "blocks", f"{BLOCKS} weights, of which one at least is above 0"


Teacher = Annotated[
    Section, Kinds(TEACHERS, Structure, Layout, Style, Reward, Adversary, given=("name", "on"))
]


@dataclass(frozen=True, kw_only=True)
class Feedback(Trajectory):
    """The images that teachers get, and the loss beside theirs (:mod:`emu_jax.tasks.feedback`)."""

    diffusion: float = key(1.0, "Weight of the generator's own loss; 0: none.", at_least=0)


@dataclass(frozen=True, kw_only=True)
class Dpo(Section):
    """Learning from pairs of images (:mod:`emu_jax.tasks.dpo`)."""

    beta: float = key(
        5000.0, "Strength of the tie to the reference; about 0.1 for tokens.", above=0
    )
    votes: Literal["majority", "none"] = key(
        "majority", "Which image is preferred: who has more votes, or always the image."
    )
