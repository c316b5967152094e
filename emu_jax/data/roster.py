"""Which records of which source are in which bucket, without a list of them.

A source's records are an array of one byte each, the number of the record's bucket, in memory or
memory-mapped, and a table of how many of every bucket lie before each block of records. From these
two follow, in a time that does not depend on the number of records,

    pick(k, i)      the i-th record of bucket k: a search in the table, a count in a block    (1)
    position(k, r)  how many of bucket k lie before record r: its entry, a count in a block   (2)

So a billion records in nine buckets cost 1 GB and a table of 70 MB; lists of record numbers would
cost 8 GB.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, Shaped, UInt32

from emu_jax.data.buckets import Shape

BLOCK = 512  # records
FILES = ("buckets.npy", "before.npy")


class Members:
    """The records of one source by bucket. It pickles without what is memory-mapped.

    `codes`: the bucket of every record, block by block; the number of buckets for a record that is
    left out and for what lies beyond the last one. `before[k, b]`: the records of bucket k before
    block b; one more block than there are.
    """

    def __init__(self, codes: Shaped[np.ndarray, "_ block"], before: UInt32[np.ndarray, "_ _"]):
        self._codes, self._before, self._folder = codes, before, None
        self.counts = before[:, -1].astype(np.int64)

    @classmethod
    def of(cls, bucket_of: Int[np.ndarray, "n"], buckets: int) -> "Members":
        """From the bucket of every record, -1 for a record that is left out."""
        codes, before = empty(len(bucket_of), buckets)
        codes.reshape(-1)[: len(bucket_of)] = np.where(bucket_of < 0, buckets, bucket_of)
        count_blocks(codes, before)
        return cls(codes, before)

    @classmethod
    def open(cls, folder: Path) -> "Members":
        """Memory-mapped, from the files of a folder: see `empty`."""
        members = cls(*(np.load(folder / name, mmap_mode="r") for name in FILES))
        members._folder = folder
        return members

    def __reduce__(self):
        if self._folder is not None:
            return Members.open, (self._folder,)
        return Members, (self._codes, self._before)

    def pick(self, bucket: int, index: Int[np.ndarray, "b"]) -> Int[np.ndarray, "b"]:
        """Eq. (1)."""
        before = self._before[bucket]
        block = np.searchsorted(before, index.astype(before.dtype), side="right") - 1
        found = np.cumsum(self._codes[block] == bucket, axis=1, dtype=np.int16)
        rest = index - before[block].astype(np.int64)
        # The first place in the block at which one more than `rest` have been counted.
        return block * BLOCK + (found <= rest[:, None]).sum(1)

    def position(self, bucket: int, records: Int[np.ndarray, "b"]) -> Int[np.ndarray, "b"]:
        """Eq. (2)."""
        block, offset = np.divmod(records, BLOCK)
        own = (self._codes[block] == bucket) & (np.arange(BLOCK) < offset[:, None])
        return self._before[bucket][block].astype(np.int64) + own.sum(1)

    def all(self, bucket: int) -> Int[np.ndarray, "m"]:
        """Every record of a bucket, in ascending order."""
        return np.flatnonzero(self._codes == bucket)


class Everything:
    """The records of a source that are all in one bucket: nothing is stored."""

    def __init__(self, records: int, bucket: int = 0, buckets: int = 1):
        self._records = records
        self.counts = np.zeros(buckets, np.int64)
        self.counts[bucket] = records

    def pick(self, bucket: int, index: Int[np.ndarray, "b"]) -> Int[np.ndarray, "b"]:
        return index

    position = pick

    def all(self, bucket: int) -> Int[np.ndarray, "m"]:
        return np.arange(self.counts[bucket])


def empty(
    records: int, buckets: int, folder: Path | None = None
) -> tuple[Shaped[np.ndarray, "_ block"], UInt32[np.ndarray, "_ _"]]:
    """The arrays of `Members` before any record is in a bucket; with a folder, as its files."""
    blocks, code = -(-records // BLOCK), np.uint8 if buckets < 2**8 else np.uint16
    shapes = ((blocks, BLOCK), code), ((buckets, blocks + 1), np.uint32)
    if folder is None:
        codes, before = (np.zeros(shape, dtype) for shape, dtype in shapes)
    else:
        codes, before = (
            np.lib.format.open_memmap(folder / name, "w+", dtype, shape)
            for name, (shape, dtype) in zip(FILES, shapes, strict=True)
        )
    codes.reshape(-1)[records:] = buckets
    return codes, before


def count_blocks(
    codes: Shaped[np.ndarray, "_ block"], before: UInt32[np.ndarray, "k _"], step: int = 2**13
) -> None:
    """Fills the table `before` of these codes."""
    buckets = len(before)
    for first in range(0, len(codes), step):
        part = codes[first : first + step]
        cell = np.arange(len(part))[:, None] * (buckets + 1) + part
        found = np.bincount(cell.reshape(-1), minlength=len(part) * (buckets + 1))
        found = found.reshape(len(part), buckets + 1)[:, :buckets]
        before[:, first + 1 : first + 1 + len(part)] = found.T
    np.cumsum(before, axis=1, out=before)


class Roster:
    """The members of every source."""

    def __init__(self, members: Sequence[Members | Everything], buckets: Sequence[Shape]):
        self.buckets, self.members = tuple(buckets), list(members)
        self.counts = np.array([source.counts for source in members])

    @classmethod
    def of(cls, assignments: Sequence[Int[np.ndarray, "_"]], buckets: Sequence[Shape]) -> "Roster":
        """From the bucket of every record of every source, -1 for a record that is left out."""
        return cls([Members.of(bucket_of, len(buckets)) for bucket_of in assignments], buckets)

    def pick(
        self, bucket: int, sources: Int[np.ndarray, "b"], index: Int[np.ndarray, "b"]
    ) -> Int[np.ndarray, "b"]:
        """For each row, the record with this index among those of its source in the bucket."""
        records = np.empty(len(index), np.int64)
        for s in np.unique(sources):
            rows = sources == s
            records[rows] = self.members[s].pick(bucket, index[rows])
        return records

    def position(
        self, bucket: int, sources: Int[np.ndarray, "b"], records: Int[np.ndarray, "b"]
    ) -> Int[np.ndarray, "b"]:
        """The position of each record when those of the bucket are counted source by source."""
        first = np.cumsum(self.counts[:, bucket]) - self.counts[:, bucket]
        place = np.empty(len(records), np.int64)
        for s in np.unique(sources):
            rows = sources == s
            place[rows] = first[s] + self.members[s].position(bucket, records[rows])
        return place
