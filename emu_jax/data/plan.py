"""The batch plan: the records of batch n as a pure function of (seed, n).

There is no state, so a run resumes at any step and on any number of hosts. Every random number is
a hash of its own coordinates (`mix`), the same on every platform and with every version of every
library.

Let source s have weight v_s (they sum to 1) and c_sk of its c_s records in bucket k. Then

    P(bucket k)     = sum_s v_s c_sk / c_s                                                    (1)
    P(source s | k) = v_s (c_sk / c_s) / P(bucket k)                                          (2)

so that over all batches a row comes from source s with probability v_s. Batch n draws its bucket
by (1). Its B rows are divided by systematic sampling: with one uniform number u and the cumulative
sum F_s of (2), source s gets

    m_s = floor(B F_s + u) - floor(B F_(s-1) + u)                                             (3)

rows: B P(s | k) in expectation, and always less than one row away from it. Each (source, bucket) is
an endless stream, with a new permutation of its records for every epoch, and batch n takes the m_s
records that follow those taken before; a set smaller than the batch wraps around. The number of
those taken before is a cumulative sum of (3), kept in chunks of batches so that going to step
1,000,000 is quick.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt64

from emu_jax.data.buckets import Shape
from emu_jax.errors import UserError

_CHUNK = 4096  # batches whose counts are computed at a time
_ROUNDS = 24  # of the shuffle: the position of a record is uniform to about 2^-24
_BUCKET, _SOURCE, _ROW, _RECORD, _AUGMENT = range(5)  # first coordinate of each kind


def mix(*keys: int | np.ndarray) -> UInt64[np.ndarray, "..."]:
    """64 well mixed bits for these coordinates (broadcast): SplitMix64, one after another."""
    state = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):  # arithmetic is modulo 2^64 on purpose
        for key in keys:
            state = (state ^ np.asarray(key).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return np.asarray(state)  # of numbers alone, numpy makes a scalar


def uniform(*keys: int | np.ndarray) -> Float[np.ndarray, "..."]:
    """A number in [0, 1) for these coordinates, a multiple of 2^-53."""
    return (mix(*keys) >> np.uint64(11)) * 2.0**-53


def shuffled(
    index: Int[np.ndarray, "*#b"],
    size: int | Int[np.ndarray, "*#b"],
    key: UInt64[np.ndarray, "*#b"],
) -> Int[np.ndarray, "*#b"]:
    """The image of each index under the random permutation of range(size) that `key` identifies.

    A swap-or-not shuffle (Hoang, Morris and Rogaway 2012): each round pairs x with K - x mod
    size and swaps the pair on a hashed bit. No array of length `size` is made, so a billion
    records cost as much as ten. The arguments broadcast against each other.
    """
    x, size = np.asarray(index, np.uint64), np.asarray(size, np.uint64)
    for turn in np.moveaxis(mix(key[..., None], np.arange(_ROUNDS)), -1, 0):
        partner = (turn % size + size - x) % size
        swap = mix(turn ^ np.maximum(x, partner)) & np.uint64(1)
        x = np.where(swap, partner, x)
    return x.astype(np.int64)


@dataclass(frozen=True)
class PlannedBatch:
    """The rows of one batch, all of one bucket."""

    bucket: Shape  # (h, w) in pixels
    sources: Int[np.ndarray, "b"]
    records: Int[np.ndarray, "b"]  # indices within the source
    seeds: UInt64[np.ndarray, "b"]  # of the augmentation of each row
    valid: Bool[np.ndarray, "b"]  # False: padding beyond the end of a sequential plan

    def take(self, rows: Int[np.ndarray, "r"]) -> "PlannedBatch":
        """Some of the rows, such as those of one host."""
        fields = (self.sources, self.records, self.seeds, self.valid)
        return PlannedBatch(self.bucket, *(field[rows] for field in fields))


class Roster:
    """Which records of which source are in which bucket, and where each stands among them.

    `assignments`: for each source the bucket of every record, -1 for a record that is left out.
    """

    def __init__(self, assignments: Sequence[Int[np.ndarray, "n"]], buckets: Sequence[Shape]):
        self.buckets = tuple(buckets)
        # members[s][k]: the records in ascending order
        self.members = [
            [np.flatnonzero(bucket_of == k) for k in range(len(buckets))]
            for bucket_of in assignments
        ]
        self.counts = np.array([[len(part) for part in source] for source in self.members])

    def pick(
        self, bucket: int, sources: Int[np.ndarray, "b"], index: Int[np.ndarray, "b"]
    ) -> Int[np.ndarray, "b"]:
        """For each row, the record with this index among those of its source in the bucket."""
        records = np.empty(len(index), np.int64)
        for s in np.unique(sources):
            rows = sources == s
            records[rows] = self.members[s][bucket][index[rows]]
        return records

    def position(
        self, bucket: int, sources: Int[np.ndarray, "b"], records: Int[np.ndarray, "b"]
    ) -> Int[np.ndarray, "b"]:
        """The position of each record when those of the bucket are counted source by source."""
        first = np.cumsum(self.counts[:, bucket]) - self.counts[:, bucket]
        place = np.empty(len(records), np.int64)
        for s in np.unique(sources):
            rows = sources == s
            place[rows] = first[s] + np.searchsorted(self.members[s][bucket], records[rows])
        return place


class BatchPlan:
    """An endless plan: `batch(n)` for any n >= 0, in any order and from any thread."""

    def __init__(self, roster: Roster, weights: Sequence[float], batch_size: int, seed: int):
        shares = np.asarray(weights, np.float64)
        if len(shares) != len(roster.counts) or not np.all(shares > 0):
            raise UserError(
                f"The weights of the sources are {weights}; use one number above 0 for each."
            )
        self._arguments = (roster, weights, batch_size, seed)
        self.roster, self.batch_size, self.seed = roster, batch_size, seed
        joint = (shares / shares.sum())[:, None] * roster.counts
        joint = joint / roster.counts.sum(1, keepdims=True)
        in_bucket = joint.sum(0)
        self._bucket_cdf = _cdf(in_bucket)
        # Rows for empty buckets are never used.
        self._source_cdf = _cdf((joint / np.where(in_bucket, in_bucket, 1)).T)
        self._lock = threading.Lock()
        self._chunk_starts = [np.zeros(roster.counts.shape, np.int64)]  # taken before each chunk
        self._chunks: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def __reduce__(self):
        return BatchPlan, self._arguments

    def batch(self, n: int) -> PlannedBatch:
        """All rows of batch n."""
        chunk, i = divmod(n, _CHUNK)
        buckets, counts, before = self._chunk(chunk)
        bucket = int(buckets[i])
        sources = np.repeat(np.arange(counts.shape[1]), counts[i])
        first = np.cumsum(counts[i]) - counts[i]
        place = before[i, sources] + np.arange(self.batch_size) - first[sources]
        epoch, index = np.divmod(place, self.roster.counts[sources, bucket])
        key = mix(self.seed, _RECORD, sources, bucket, epoch)
        index = shuffled(index, self.roster.counts[sources, bucket], key)
        records = self.roster.pick(bucket, sources, index)
        row = np.arange(self.batch_size)
        # The rows are ordered by source: shuffle them, so that every host gets a fair share.
        order = np.argsort(mix(self.seed, _ROW, n, row), kind="stable")
        return PlannedBatch(
            self.roster.buckets[bucket],
            sources[order],
            records[order],
            mix(self.seed, _AUGMENT, n, row),
            np.ones(self.batch_size, bool),
        )

    def _chunk(self, chunk: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Bucket [c], rows of each source [c, s], and its rows taken before [c, s]."""
        with self._lock:
            while len(self._chunk_starts) <= chunk:
                last = len(self._chunk_starts) - 1
                buckets, counts = self._draw(last)
                taken = self._chunk_starts[last].copy()
                np.add.at(taken.T, buckets, counts)
                self._chunk_starts.append(taken)
            if chunk not in self._chunks:
                buckets, counts = self._draw(chunk)
                before = np.empty_like(counts)
                for k in range(len(self.roster.buckets)):
                    mine = counts[buckets == k]
                    start = self._chunk_starts[chunk][:, k]
                    before[buckets == k] = start + np.cumsum(mine, 0) - mine
                # Two are enough: prefetching threads cross at most one border.
                self._chunks = dict([*self._chunks.items()][-1:])
                self._chunks[chunk] = buckets, counts, before
            return self._chunks[chunk]

    def _draw(self, chunk: int) -> tuple[np.ndarray, np.ndarray]:
        """Eqs. (1) to (3) for a chunk of batches."""
        n = chunk * _CHUNK + np.arange(_CHUNK)
        draw = uniform(self.seed, _BUCKET, n)
        buckets = np.searchsorted(self._bucket_cdf[1:], draw, side="right")
        offset = uniform(self.seed, _SOURCE, n)[:, None]
        edges = np.floor(self.batch_size * self._source_cdf[buckets] + offset).astype(np.int64)
        return buckets, np.diff(np.minimum(edges, self.batch_size), axis=1)


class SequentialPlan:
    """Every record of a roster once, in order, bucket by bucket: validation, building caches.

    The last batch of a bucket is padded with its last record; `valid` is False for those rows.
    The seed of a row depends only on its record, so it does not change with the batch size.
    """

    def __init__(self, roster: Roster, batch_size: int, seed: int):
        self.roster, self.batch_size, self.seed = roster, batch_size, seed
        records = roster.counts.sum(0)
        self._first_batch = np.concatenate([[0], np.cumsum(-(-records // batch_size))])

    def __len__(self) -> int:
        return int(self._first_batch[-1])

    def place(self, n: int) -> tuple[int, int, int]:
        """(bucket, first, last + 1) of batch n: positions among the bucket's records."""
        if not 0 <= n < len(self):
            raise IndexError(f"batch {n} of {len(self)}")
        bucket = int(np.searchsorted(self._first_batch, n, side="right")) - 1
        start = int(n - self._first_batch[bucket]) * self.batch_size
        total = int(self.roster.counts[:, bucket].sum())
        return bucket, start, min(start + self.batch_size, total)

    def batch(self, n: int) -> PlannedBatch:
        """All rows of batch n < len(self)."""
        bucket, start, stop = self.place(n)
        wanted = start + np.arange(self.batch_size)
        positions = np.minimum(wanted, stop - 1)
        ends = np.cumsum(self.roster.counts[:, bucket])
        sources = np.searchsorted(ends, positions, side="right")
        first = ends - self.roster.counts[:, bucket]
        records = self.roster.pick(bucket, sources, positions - first[sources])
        seeds = mix(self.seed, _AUGMENT, sources, records)
        return PlannedBatch(self.roster.buckets[bucket], sources, records, seeds, wanted < stop)


def _cdf(probabilities: Float[np.ndarray, "... k"]) -> Float[np.ndarray, "... k+1"]:
    """Cumulative sums: exactly 0 at the start, exactly 1 from the last possible outcome on."""
    cumulative = np.cumsum(probabilities, -1)
    total = cumulative[..., -1:]
    cumulative = cumulative / np.where(total, total, 1)
    return np.concatenate([np.zeros_like(total), cumulative], -1)
