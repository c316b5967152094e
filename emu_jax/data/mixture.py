"""A mixture: selected records of several sources, and their captions."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt64

from emu_jax.data.hashing import mix
from emu_jax.data.plan import PlannedBatch
from emu_jax.data.source import Source
from emu_jax.errors import UserError

_CAPTION = 3  # first coordinate of the caption's random number; images.py has 0 to 2


@dataclass(frozen=True)
class Selection:
    """One source of a mixture: its selected records, and their share of all rows."""

    source: Source
    weight: float = 1.0
    select: str = ""  # a condition for Manifest.select; empty: every record
    captions: str = "captions"  # the manifest's column of a text, or of several

    def records(self) -> Int[np.ndarray, "n"]:
        """The selected records, in ascending order."""
        chosen = self.source.manifest.select(self.select)
        if not len(chosen):
            raise UserError(f"No record of {self.source.name} matches {self.select!r}.")
        return chosen

    def texts(self) -> list[Sequence[str]]:
        """The captions of every record, selected or not."""
        column = self.source.manifest.column(self.captions)
        if column.dtype != object:
            raise UserError(
                f"The column {self.captions!r} of {self.source.name} contains integers; a column "
                "of text is needed."
            )
        return [[value] if isinstance(value, str) else value for value in column]


class Vocabulary(NamedTuple):
    """Numbers the words of a manifest's column of a text, or of several, such as the things of a
    scene. An empty word, and what follows a record's last one, has the number -1.
    """

    words: tuple[str, ...]
    most: int  # texts of a record

    def numbers(self, selection: Selection, column: str) -> Int[np.ndarray, "n most"]:
        """The numbers of every selected record's words.

        Raises UserError for a column of integers, and for a record of more than `most` words or of
        a word that is not in `words`.
        """
        manifest = selection.source.manifest
        number = {word: i for i, word in enumerate(self.words)} | {"": -1}
        found = np.full((len(manifest), self.most), -1, np.int32)
        texts = replace(selection, captions=column).texts()
        for record in selection.records():
            own = texts[record]
            unknown = [text for text in own if text not in number]
            if len(own) > self.most or unknown:
                problem = (
                    f"has {unknown[0]!r} in its column {column}, which is not one of the "
                    f"{len(self.words)} words that the stream takes"
                    if unknown
                    else f"has {len(own)} {column}; the stream takes {self.most} at most"
                )
                raise UserError(
                    f"Record {manifest.column('key')[record]!r} of {selection.source.name} "
                    f"{problem}: leave such records out by select, or change the config."
                )
            found[record, : len(own)] = [number[text] for text in own]
        return found


class Integers(NamedTuple):
    """The whole numbers of a manifest's column, such as votes."""

    most: int = 1  # numbers of a record

    def numbers(self, selection: Selection, column: str) -> Int[np.ndarray, "n 1"]:
        """The number of every record. Raises UserError for a column of text."""
        values = selection.source.manifest.column(column)
        if values.dtype == object:
            raise UserError(
                f"The column {column!r} of {selection.source.name} contains text; a column of "
                "integers is needed."
            )
        return values.astype(np.int32)[:, None]


Column = Vocabulary | Integers


class Captions:
    """All distinct captions of a mixture, and which of them each record has.

    Number 0 is always the empty text: the caption of a record that has none, and the one whose
    text states guidance needs from a cache.
    """

    def __init__(self, selections: Sequence[Selection]):
        of_record: list[Sequence[str]] = []
        for selection in selections:
            start = len(of_record)
            of_record += [()] * len(selection.source.manifest)
            texts = selection.texts()
            for record in selection.records():
                of_record[start + record] = texts[record]
        self.texts = ["", *sorted({*chain.from_iterable(of_record)} - {""})]
        number = {text: i for i, text in enumerate(self.texts)}
        self._counts = np.array([len(captions) for captions in of_record])
        self._ends = np.cumsum(self._counts)
        numbers = [number[text] for text in chain.from_iterable(of_record)]
        # One more: records without captions index past the end.
        self._numbers = np.array([*numbers, 0])
        lengths = [len(selection.source.manifest) for selection in selections]
        self._offsets = np.cumsum([0, *lengths[:-1]])

    def choose(
        self, records: Int[np.ndarray, "b"], seeds: UInt64[np.ndarray, "b"]
    ) -> Int[np.ndarray, "b"]:
        """The number of one caption for each row, chosen at random by its seed."""
        counts = self._counts[records]
        places = self._ends[records] - counts + _drawn(counts, seeds)
        return np.where(counts > 0, self._numbers[places], 0)

    def numbers(self, rows: PlannedBatch) -> Int[np.ndarray, "b"]:
        """The number of one caption for each row."""
        return self.choose(self._offsets[rows.sources] + rows.records, rows.seeds)

    def draw(self, rows: PlannedBatch) -> list[str]:
        """One caption for each row."""
        return [self.texts[i] for i in self.numbers(rows)]


class RecordCaptions:
    """As `Captions`, of data sets whose captions do not fit into memory: they are read with the
    records. So they have no numbers, which caches need.
    """

    def __init__(self, selections: Sequence[Selection]):
        self._sources = [selection.source for selection in selections]
        self._texts = [None if _with_records(s) else s.texts() for s in selections]

    @staticmethod
    def wanted(selections: Sequence[Selection]) -> bool:
        return any(map(_with_records, selections))

    def draw(self, rows: PlannedBatch) -> list[str]:
        """One caption for each row."""
        found = [self._of(s, int(r)) for s, r in zip(rows.sources, rows.records, strict=True)]
        drawn = _drawn(np.array([len(texts) for texts in found]), rows.seeds)
        return [texts[int(i)] if texts else "" for texts, i in zip(found, drawn, strict=True)]

    def _of(self, source: int, record: int) -> Sequence[str]:
        texts = self._texts[source]
        return self._sources[source].captions(record) if texts is None else texts[record]


def _with_records(selection: Selection) -> bool:
    """Whether captions are read with the records, which hold the column `captions`."""
    return selection.captions == "captions" and len(selection.source.manifest.starts) > 1


def _drawn(counts: Int[np.ndarray, "b"], seeds: UInt64[np.ndarray, "b"]) -> Int[np.ndarray, "b"]:
    """A number below the count for each row, 0 where the count is 0."""
    return (mix(_CAPTION, seeds) % np.maximum(counts, 1).astype(np.uint64)).astype(np.int64)


def captions_fingerprint(texts: Sequence[str]) -> dict[str, str]:
    """Identifies the texts of a text cache and their order."""
    return {"captions": hashlib.sha256("\0".join(texts).encode()).hexdigest()}
