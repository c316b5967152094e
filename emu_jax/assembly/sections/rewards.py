"""Rewards: the network, what it learns, and how it teaches a generator."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from emu_jax.assembly.schema import Section, key, required
from emu_jax.assembly.sections.trajectories import Teaching


@dataclass(frozen=True, kw_only=True)
class Tower(Section):
    """:class:`emu_jax.nn.reward.RewardTower`."""

    kind: Literal["tower"] = key("tower", "The network.")
    widths: tuple[int, ...] = key((48, 96, 192), "Channels of the stages.", at_least=1, filled=True)
    blocks: int = key(2, "Residual blocks of a stage.", at_least=1)
    heads: int = key(4, "Heads of the attention to the text.", at_least=1)
    groups: int = key(8, "Groups of group norms.", at_least=1)


@dataclass(frozen=True, kw_only=True)
class Blip(Section):
    """:class:`emu_jax.nn.blip.ImageReward`; its image size is data.image_size."""

    kind: Literal["blip"] = key("blip", "The network.")
    patch_size: int = key(16, "Side of a patch.", at_least=1)
    vision_width: int = key(1024, "Width of the image's tokens.", at_least=1)
    vision_layers: int = key(24, "Layers of the image's transformer.", at_least=1)
    vision_heads: int = key(16, "Attention heads of these layers.", at_least=1)
    width: int = key(768, "Width of the text's tokens.", at_least=1)
    layers: int = key(12, "Layers of the text's transformer.", at_least=1)
    heads: int = key(12, "Attention heads of these layers.", at_least=1)
    feed_forward: int = key(3072, "Hidden width of their MLPs.", at_least=1)
    positions: int = key(512, "Largest number of tokens.", at_least=1)


@dataclass(frozen=True, kw_only=True)
class Preferences(Section):
    """Pairs of images, and what is learned from them (:mod:`emu_jax.tasks.preferences`)."""

    dimensions: tuple[str, ...] = key(
        (), "Words of the manifest's column dimension; empty: it is not read."
    )
    dimension: str = key("", "The one that is learned; empty: all.")
    separate: bool = key(
        False, "One output for each dimension; False: all pairs are one preference."
    )
    indifference: float = key(
        0.0,
        "With separate, the weight of a loss that calls pairs of one dimension ties in the others.",
        at_least=0,
    )
    votes: Literal["majority", "share", "none"] = key(
        "majority",
        "Target of a pair: who has more votes, the share of the votes, or always the image.",
    )
    round_trip: float = key(
        0.0, "Share of training pairs that pass the codec first.", at_least=0, at_most=1
    )

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.dimension and self.dimension not in self.dimensions:
            yield "dimension", "one of preferences.dimensions, or an empty string for all"
        if self.separate and (self.dimension or not self.dimensions):
            yield "separate", "True only with dimensions and without a dimension"
        if self.indifference and not self.separate:
            yield "indifference", "0 without preferences.separate"


@dataclass(frozen=True, kw_only=True)
class Reward(Teaching):
    """A reward that images are to reach (:class:`emu_jax.tasks.rewards.Hinge`)."""

    kind: Literal["reward"] = key("reward", "The teacher.")
    weight: float = key(1e-3, "Weight of its loss; ReFL has 0.001.", at_least=0)
    path: str = required(
        "A reward: a run, an exported model, or a config file to plan with; of a published model "
        "its folder, and for laion_aesthetic the folder of both its parts.",
        filled=True,
        path=True,
    )
    model: Literal["", "image_reward", "pickscore", "hps", "laion_aesthetic"] = key(
        "", "The published model in path; empty: one of task=reward."
    )
    dimension: str = key("", "The output, of a reward that has several.")
    alpha: float | None = key(
        None,
        "Standardized score up to which images are better the higher it is; None: the mean of "
        "preferred validation images, which is stored with the reward.",
    )
    alpha_scale: float = key(1.0, "Alpha is multiplied by it.", above=0)


@dataclass(frozen=True, kw_only=True)
class Adversary(Teaching):
    """A reward that learns to tell the generator's images from real ones
    (:class:`emu_jax.tasks.adversary.Adversary`). Its parameters are the group "discriminator".
    """

    kind: Literal["adversary"] = key("adversary", "The teacher.")
    weight: float = key(1e-3, "Weight of its loss.", at_least=0)
    path: str = required(
        "The reward that it starts from: a run or an exported model; a config file, to plan with.",
        filled=True,
        path=True,
    )
    dimension: str = key("", "The output, of a reward that has several.")
    r1: float = key(0.0, "Weight of the penalty of its slope at real images; 0: none.", at_least=0)
