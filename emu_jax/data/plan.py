"""The batch plan: the records of batch n as a pure function of (seed, n).

There is no state, so a run resumes at any step and on any number of hosts. Every random number is
a hash of its own coordinates (`mix`).

Let source s have weight v_s (they sum to 1) and c_sk of its c_s records in bucket k. Then

    P(bucket k)     = sum_s v_s c_sk / c_s                                                    (1)
    P(source s | k) = v_s (c_sk / c_s) / P(bucket k)                                          (2)

so that over all batches a row comes from source s with probability v_s. Batch n has the bucket k
with probability (1). Its B rows are divided by systematic sampling: with one number u in [0, 1) and
the cumulative sum F_s of (2), source s gets

    m_s = floor(B F_s + u) - floor(B F_(s-1) + u)                                             (3)

rows: B P(s | k) in expectation, and always less than one row away from it. shares.py has the two
definitions of bucket and u, for at most `COUNTED` records and for more. Each (source, bucket) is an
endless stream, with a new permutation of its records for every epoch, and batch n takes the m_s
records that follow those taken before; a set smaller than the batch wraps around.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt64

from emu_jax.data.buckets import Shape
from emu_jax.data.hashing import AUGMENT, RECORD, ROW, mix, shuffled
from emu_jax.data.roster import Roster
from emu_jax.data.shares import Computed, Counted
from emu_jax.errors import UserError

# Records of all sources up to which the shares of buckets and sources are random numbers. Part of
# the plan's definition: the batches of stored runs depend on it.
COUNTED = 2**24


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
        bucket_cdf = _cdf(in_bucket)
        # Rows for empty buckets are never used.
        source_cdf = _cdf((joint / np.where(in_bucket, in_bucket, 1)).T)
        kind = Counted if roster.counts.sum() <= COUNTED else Computed
        self._shares = kind(bucket_cdf, source_cdf, batch_size, seed)

    def __reduce__(self):
        return BatchPlan, self._arguments

    def batch(self, n: int) -> PlannedBatch:
        """All rows of batch n."""
        bucket, rows, before = self._shares.at(n)
        sources = np.repeat(np.arange(len(rows)), rows)
        first = np.cumsum(rows) - rows
        place = before[sources] + np.arange(self.batch_size) - first[sources]
        epoch, index = np.divmod(place, self.roster.counts[sources, bucket])
        key = mix(self.seed, RECORD, sources, bucket, epoch)
        index = shuffled(index, self.roster.counts[sources, bucket], key)
        records = self.roster.pick(bucket, sources, index)
        row = np.arange(self.batch_size)
        # The rows are ordered by source: shuffle them, so that every host gets a fair share.
        order = np.argsort(mix(self.seed, ROW, n, row), kind="stable")
        return PlannedBatch(
            self.roster.buckets[bucket],
            sources[order],
            records[order],
            mix(self.seed, AUGMENT, n, row),
            np.ones(self.batch_size, bool),
        )


class SequentialPlan:
    """Every record of a roster once, in order, bucket by bucket: validation, building caches.

    The last batch of a bucket is padded with its last record; `valid` is False for those rows.
    The seed of a row depends only on its record, so it does not change with the batch size.
    `chosen`: for each bucket the positions among its records that are planned; None: all.
    """

    def __init__(
        self,
        roster: Roster,
        batch_size: int,
        seed: int,
        chosen: Sequence[Int[np.ndarray, "_"]] | None = None,
    ):
        self.roster, self.batch_size, self.seed = roster, batch_size, seed
        self._chosen = chosen
        self._totals = (
            roster.counts.sum(0) if chosen is None else np.array([len(own) for own in chosen])
        )
        self._first_batch = np.concatenate([[0], np.cumsum(-(-self._totals // batch_size))])

    def __len__(self) -> int:
        return int(self._first_batch[-1])

    def place(self, n: int) -> tuple[int, int, int]:
        """(bucket, first, last + 1) of batch n: positions among the bucket's planned records."""
        if not 0 <= n < len(self):
            raise IndexError(f"batch {n} of {len(self)}")
        bucket = int(np.searchsorted(self._first_batch, n, side="right")) - 1
        start = int(n - self._first_batch[bucket]) * self.batch_size
        return bucket, start, min(start + self.batch_size, int(self._totals[bucket]))

    def images(self, n: int) -> tuple[int, Int[np.ndarray, "m"]]:
        """The bucket of batch n, and the positions of its rows among the bucket's records."""
        bucket, start, stop = self.place(n)
        return bucket, self._positions(bucket, np.arange(start, stop))

    def _positions(self, bucket: int, index: Int[np.ndarray, "b"]) -> Int[np.ndarray, "b"]:
        return index if self._chosen is None else self._chosen[bucket][index]

    def batch(self, n: int) -> PlannedBatch:
        """All rows of batch n < len(self)."""
        bucket, start, stop = self.place(n)
        wanted = start + np.arange(self.batch_size)
        positions = self._positions(bucket, np.minimum(wanted, stop - 1))
        ends = np.cumsum(self.roster.counts[:, bucket])
        sources = np.searchsorted(ends, positions, side="right")
        first = ends - self.roster.counts[:, bucket]
        records = self.roster.pick(bucket, sources, positions - first[sources])
        seeds = mix(self.seed, AUGMENT, sources, records)
        return PlannedBatch(self.roster.buckets[bucket], sources, records, seeds, wanted < stop)


def _cdf(probabilities: Float[np.ndarray, "... k"]) -> Float[np.ndarray, "... k+1"]:
    """Cumulative sums: exactly 0 at the start, exactly 1 from the last possible outcome on."""
    cumulative = np.cumsum(probabilities, -1)
    total = cumulative[..., -1:]
    cumulative = cumulative / np.where(total, total, 1)
    return np.concatenate([np.zeros_like(total), cumulative], -1)
