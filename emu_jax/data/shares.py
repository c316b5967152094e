"""The bucket of batch n, the rows of each of its sources, and how many were taken before.

Let F_k be the cumulative probabilities of the buckets and F_s|k those of the sources within bucket
k (eqs. (1) and (2) of plan.py), B the batch size. Two definitions:

`Counted`, up to `plan.COUNTED` records. Batch n draws its bucket with a random number, and a second
one, u, gives source s the rows

    m_s = floor(B F_s|k + u) - floor(B F_(s-1)|k + u)                                         (1)

The rows taken before batch n are a sum over all batches before it. Its values are kept for chunks
of batches, so that going to step 1,000,000 is quick.

`Computed`, for more records. The random numbers are replaced by a sequence whose sums are known
(Weyl 1916), in integers modulo M = 2^64 with the golden ratio A / M:

    x_n = (A n + a) mod M           batch n has the bucket k with M F_(k-1) <= x_n < M F_k    (2)
    u_j = (A j + b_k) mod M         for the j-th batch of bucket k, in eq. (1) as u = u_j / M (3)

The number of batches before n with x < T is

    sum_(i<n) floor((A i + a) / M) - floor((A i + a - T) / M)                                 (4)

and the rows of the sources up to s in the first j batches of bucket k are, with W_s = M F_s|k,

    sum_(i<j) floor((B W_s + A i + b_k) / M) - floor((A i + b_k) / M)                         (5)

A sum of floor((A i + c) / M) takes about as many operations as Euclid's algorithm for A and M
(`floor_sum`). So any batch costs the same, nothing is kept, and the shares of buckets and sources
are met as closely as whole batches and rows allow, at every n.
"""

import threading
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from emu_jax.data.hashing import BUCKET, SOURCE, mix, uniform

_CHUNK = 4096  # batches whose counts are computed at a time
_CHUNKS_AHEAD = 8  # chunks that are summed at a time on the way to a far one
_CELLS = 4096  # of [0, 1), in which a batch's bucket is looked up
_MODULUS = 1 << 64
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio, odd


class Share(NamedTuple):
    """What batch n takes."""

    bucket: int
    rows: Int[np.ndarray, "s"]  # of each source
    before: Int[np.ndarray, "s"]  # taken from each source in this bucket by batches before


class Counted:
    """Eq. (1); from several threads."""

    def __init__(
        self,
        bucket_cdf: Float[np.ndarray, "edges"],
        source_cdf: Float[np.ndarray, "k own"],
        batch_size: int,
        seed: int,
    ):
        self._bucket_cdf, self._source_cdf = bucket_cdf, source_cdf
        self._batch_size, self._seed = batch_size, seed
        # The bucket at the start of each cell of [0, 1): a search for every number takes longer.
        cells = np.arange(_CELLS) / _CELLS
        self._first = np.searchsorted(bucket_cdf[1:], cells, side="right")
        self._shape = source_cdf.shape[0], source_cdf.shape[1] - 1
        self._lock = threading.Lock()
        self._starts = [np.zeros(self._shape, np.int64)]  # taken before each chunk
        self._chunks: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def at(self, n: int) -> Share:
        chunk, i = divmod(n, _CHUNK)
        buckets, counts, before = self._chunk(chunk)
        return Share(int(buckets[i]), counts[i], before[i])

    def _chunk(self, chunk: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Bucket [c], rows of each source [c, s], and its rows taken before [c, s]."""
        with self._lock:
            while len(self._starts) <= chunk:
                self._go_on(min(_CHUNKS_AHEAD, chunk + 1 - len(self._starts)))
            if chunk not in self._chunks:
                buckets, counts = self._draw(chunk, 1)
                before = np.empty_like(counts)
                for k in range(self._shape[0]):
                    mine = counts[buckets == k]
                    start = self._starts[chunk][k]
                    before[buckets == k] = start + np.cumsum(mine, 0) - mine
                # Two are enough: prefetching threads cross at most one border.
                self._chunks = dict([*self._chunks.items()][-1:])
                self._chunks[chunk] = buckets, counts, before
            return self._chunks[chunk]

    def _go_on(self, chunks: int) -> None:
        """The starts of so many more chunks."""
        buckets, counts = self._draw(len(self._starts) - 1, chunks)
        cell = np.repeat(np.arange(chunks), _CHUNK) * self._shape[0] + buckets
        sums = [np.bincount(cell, rows, chunks * self._shape[0]) for rows in counts.T]
        taken = np.stack(sums, -1).reshape(chunks, *self._shape).astype(np.int64)
        self._starts += [*(self._starts[-1] + np.cumsum(taken, 0))]

    def _draw(self, chunk: int, chunks: int) -> tuple[np.ndarray, np.ndarray]:
        """Bucket and rows of each source of the batches of some chunks."""
        n = chunk * _CHUNK + np.arange(chunks * _CHUNK)
        draw = uniform(self._seed, BUCKET, n)
        buckets = self._first[(draw * _CELLS).astype(np.int64)]
        while np.any(beyond := draw >= self._bucket_cdf[1:][buckets]):
            buckets = buckets + beyond
        if self._shape[1] == 1:
            return buckets, np.full((len(n), 1), self._batch_size)
        offset = uniform(self._seed, SOURCE, n)[:, None]
        edges = np.floor(self._batch_size * self._source_cdf[buckets] + offset).astype(np.int64)
        return buckets, np.diff(np.minimum(edges, self._batch_size), axis=1)


class Computed:
    """Eqs. (2) to (5)."""

    def __init__(
        self,
        bucket_cdf: Float[np.ndarray, "edges"],
        source_cdf: Float[np.ndarray, "k own"],
        batch_size: int,
        seed: int,
    ):
        self._buckets = _fixed(bucket_cdf)
        self._sources = [_fixed(row) for row in source_cdf]
        self._batch_size = batch_size
        self._start = int(mix(seed, BUCKET))
        self._starts = [int(mix(seed, SOURCE, k)) for k in range(len(source_cdf))]

    def at(self, n: int) -> Share:
        place = (_GOLDEN * n + self._start) % _MODULUS
        bucket = next(k for k, edge in enumerate(self._buckets[1:]) if place < edge)
        own = self._below(n, self._buckets[bucket + 1]) - self._below(n, self._buckets[bucket])
        start, widths = self._starts[bucket], self._sources[bucket]
        offset = (_GOLDEN * own + start) % _MODULUS
        edges = [(self._batch_size * width + offset) // _MODULUS for width in widths]
        sums = [
            floor_sum(own, _MODULUS, _GOLDEN, self._batch_size * width + start) for width in widths
        ]
        return Share(bucket, _differences(edges), _differences(sums))

    def _below(self, n: int, edge: int) -> int:
        """Eq. (4); M is added under the second floor, whose argument may be negative."""
        whole = floor_sum(n, _MODULUS, _GOLDEN, self._start)
        return whole - floor_sum(n, _MODULUS, _GOLDEN, self._start - edge + _MODULUS) + n


def _differences(numbers: list[int]) -> Int[np.ndarray, "s"]:
    """Of consecutive numbers, which may be too large for an array."""
    return np.array([after - one for one, after in pairwise(numbers)], np.int64)


def _fixed(cdf: Float[np.ndarray, "edges"]) -> list[int]:
    """Cumulative probabilities as integers; 1 becomes M exactly."""
    return [int(value * 2.0**53) << 11 for value in cdf.tolist()]


def floor_sum(count: int, modulus: int, step: int, start: int) -> int:
    """sum_(0 <= i < count) floor((step i + start) / modulus), for numbers that are not negative."""
    total = 0
    while True:
        quotient, step = divmod(step, modulus)
        total += quotient * (count * (count - 1) // 2)
        quotient, start = divmod(start, modulus)
        total += quotient * count
        last = step * count + start
        if last < modulus:
            return total
        # The lattice points below the line, counted along the other axis.
        count, start = divmod(last, modulus)
        modulus, step = step, modulus
