"""What a stream is mixed from: selected records of several sources, and their captions."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from jaxtyping import Int, UInt64

from emu_jax.data.plan import mix
from emu_jax.data.source import Source
from emu_jax.errors import UserError

_CAPTION = 3  # first coordinate of the caption's draw; images.py has 0 to 2


@dataclass(frozen=True)
class Selection:
    """A share of a mixture: some records of a source, and how often they come."""

    source: Source
    weight: float = 1.0
    select: str = ""  # a condition on the manifest's columns; empty: every record

    def records(self) -> Int[np.ndarray, "n"]:
        """The selected records, in ascending order."""
        chosen = self.source.manifest.select(self.select)
        if not len(chosen):
            raise UserError(f"No record of {self.source.name} is selected by {self.select!r}.")
        return chosen


class Captions:
    """All captions of a mixture: the distinct ones, and which of them each record has.

    Number 0 is always the empty text: the caption of a record without any, and the one whose
    states guidance needs from a cache.
    """

    def __init__(self, parts: Sequence[Selection]):
        of_record: list[Sequence[str]] = []
        for part in parts:
            start = len(of_record)
            of_record += [()] * len(part.source.manifest)
            column = part.source.manifest.column("captions")
            for record in part.records():
                of_record[start + record] = column[record]
        self.texts = ["", *sorted({*chain.from_iterable(of_record)} - {""})]
        number = {text: i for i, text in enumerate(self.texts)}
        self._counts = np.array([len(captions) for captions in of_record])
        self._ends = np.cumsum(self._counts)
        numbers = [number[text] for text in chain.from_iterable(of_record)]
        self._numbers = np.array([*numbers, 0])  # one more, so that bare records point at something

    def choose(
        self, records: Int[np.ndarray, "b"], seeds: UInt64[np.ndarray, "b"]
    ) -> Int[np.ndarray, "b"]:
        """The number of one caption for each row, drawn by its seed."""
        counts = self._counts[records]
        drawn = mix(_CAPTION, seeds) % np.maximum(counts, 1).astype(np.uint64)
        places = self._ends[records] - counts + drawn.astype(np.int64)
        return np.where(counts > 0, self._numbers[places], 0)


def captions_fingerprint(texts: Sequence[str]) -> dict[str, str]:
    """Which texts a text cache holds, in their order."""
    return {"captions": hashlib.sha256("\0".join(texts).encode()).hexdigest()}
