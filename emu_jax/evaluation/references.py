"""The data sets that generators are evaluated against."""

from dataclasses import dataclass

# Concepts that tuning never contains, of things rather than signs.
KEPT = "part == kept and group == animals-nature|food-drink|objects|travel-places|activities"


@dataclass(frozen=True)
class Sets:
    """Images to evaluate against; each is ``DATASET`` or ``DATASET:CONDITION``.

    The captions of ``captions`` are the prompts; ``needles`` are the images of quality-tuning;
    ``haystack`` has the finish of pre-training; ``kept`` is for a loss; ``references`` are for
    metrics that compare with a set, and are the needles where it is empty. Concepts of the prompts
    are in neither needles nor haystack, so that the probe has not seen the concepts that it judges.
    """

    data_dir: str
    captions: str = f"emoji/fluent:{KEPT}"
    needles: str = "emoji/fluent:needle >= 0"
    haystack: str = "emoji/openmoji:part == tuned and group != flags|brands|extras|signs"
    kept: str = f"emoji/openmoji:{KEPT}"
    references: str = ""
