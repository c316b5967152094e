"""Which pictures generators are measured against, by name."""

from dataclasses import dataclass

# Concepts that tuning never shows, among those that are things rather than signs.
KEPT = "part == kept and group == animals-nature|food-drink|objects|travel-places|activities"


@dataclass(frozen=True)
class Sets:
    """The pictures to measure against; each is ``DATASET`` or ``DATASET:CONDITION``.

    ``captions`` are of what is drawn, ``needles`` what was tuned on, ``haystack`` has the finish to
    leave behind; ``kept`` is what a loss is taken on. Concepts of the prompts are in neither
    needles nor haystack, so that what tells the finishes apart has not seen what it judges.
    """

    data_dir: str
    captions: str = f"emoji/fluent:{KEPT}"
    needles: str = "emoji/fluent:needle >= 0"
    haystack: str = "emoji/openmoji:part == tuned and group != flags|brands|extras|signs"
    kept: str = f"emoji/openmoji:{KEPT}"
