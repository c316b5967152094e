"""The sections of a config of curation (``configs/curation.py``)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

from ml_collections import ConfigDict

from emu_jax.assembly.kinds import Kinds
from emu_jax.assembly.schema import Ordered, Section, key, required
from emu_jax.curation.registry import FILTERS, SOURCES, STEPS


def steps(**entries: Mapping[str, object]) -> ConfigDict:
    """``config.steps``: the steps in their order."""
    return Ordered({name: dict(entry) for name, entry in entries.items()})


SourceSection = Annotated[Section, Kinds(SOURCES)]
FilterSection = Annotated[Section, Kinds(FILTERS)]
StepSection = Annotated[Section, Kinds(STEPS)]


@dataclass(frozen=True, kw_only=True)
class Upsample(Section):
    """What enlarges chosen images that are too small."""

    checkpoint: str = key(
        "", "A super-resolution run or model, A+B for a cascade; empty: no image.", path=True
    )
    short_side: int = key(0, "Images with a smaller short side are enlarged; 0: none.", at_least=0)
    seed: int = key(0, "Seed of the noise.", at_least=0)
    steps: int = key(0, "Number of sampling steps; 0: the model's own.", at_least=0)


@dataclass(frozen=True, kw_only=True)
class Report(Section):
    """What the report shows."""

    by: str = key("", "Column of text by which the funnel is counted; empty: none.")
    images: int = key(12, "Images in a row.", at_least=2, at_most=40)
    groups: int = key(12, "Groups of near-duplicates.", at_least=0, at_most=200)
    shards: int = key(8, "Shards from which images are taken.", at_least=1)
    side: int = key(96, "Side of an image, pixels.", at_least=16, at_most=512)
    seed: int = key(0, "Seed of the images that are shown.", at_least=0)


@dataclass(frozen=True, kw_only=True)
class Curation(Section):
    """A pool, how its images are scored, and how they are chosen."""

    name: str = key("needles", "The data set that is built is curated/NAME.", filled=True)
    source: SourceSection = required("The pool.")
    side: int = key(
        768, "Longer side in pixels to which images are reduced for filters.", at_least=32
    )
    background: tuple[int, int, int] = key(
        (255, 255, 255), "Color behind transparent images, RGB.", at_least=0, at_most=255
    )
    batch_size: int = key(32, "Images that a filter gets at once.", at_least=1, at_most=4096)
    filters: dict[str, FilterSection] = key(dict, "What is computed of every image.")
    steps: dict[str, StepSection] = required("How images are chosen, in this order.", ordered=True)
    upsample: Upsample = key(Upsample, "What enlarges chosen images that are too small.")
    labels: str = key(
        "", "Column of text with known faults, against which steps are measured; empty: none."
    )
    report: Report = key(Report, "What the report shows.")

    def problems(self) -> Iterator[tuple[str, str]]:
        if not self.name.isidentifier():
            yield "name", "letters, digits and _"
        for name in self.filters:
            if not name.isidentifier():
                yield f"filters.{name}", "a name of letters, digits and _"
