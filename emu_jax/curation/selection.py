"""Exact selection among any number of rows in flat memory: the k-th largest key, also by group.

Keys are uint64 whose order is what counts. They are read several times, a part at a time: each pass
counts one digit of the keys that still can be the k-th largest (radix selection). Equal keys are
told apart by the order in which they are read, so exactly k rows are chosen.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from jaxtyping import Bool, Float, Int, UInt32, UInt64

_BITS = 16  # of a digit
_GROUPS = 256  # counted in one pass: 128 MiB

# The rows a part at a time, always the same ones: keys, and the group of each (below 0: in none).
Parts = Callable[[], Iterable[tuple[UInt64[np.ndarray, " n"], Int[np.ndarray, " n"]]]]


def ordered(values: Float[np.ndarray, " n"]) -> UInt32[np.ndarray, " n"]:
    """float32 numbers as whole numbers of the same order; nan is below all others."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    bits = np.where(np.asarray(values) == 0, np.uint32(0), bits)  # -0.0 is 0.0
    flipped = np.where(bits >> np.uint32(31), ~bits, bits | np.uint32(1 << 31))
    return np.where(np.isnan(values), np.uint32(0), flipped)


def keys_of(
    values: Float[np.ndarray, " n"], ties: UInt64[np.ndarray, " n"]
) -> UInt64[np.ndarray, " n"]:
    """Keys by values, and by the upper half of ``ties`` where values are equal."""
    return (ordered(values).astype(np.uint64) << np.uint64(32)) | (ties >> np.uint64(32))


def value_of(key: int) -> float:
    """The value of a key of :func:`keys_of`."""
    bits = np.uint32(int(key) >> 32)
    if not bits:
        return float("nan")
    high = np.uint32(1 << 31)
    return float(np.array(bits & ~high if bits & high else ~bits, np.uint32).view(np.float32))


class Largest:
    """The ``count[g]`` rows with the largest keys of every group g (all of a group that has
    fewer).
    """

    def __init__(self, parts: Parts, count: Int[np.ndarray, " g"]) -> None:
        groups, self._parts = len(count), parts
        # The keys that can be the k-th largest: those with this prefix; k counts among them.
        self._least = np.zeros(groups, np.uint64)
        self._left = np.maximum(np.asarray(count, np.int64), 0)
        self._all = np.zeros(groups, bool)
        for shift in range(64 - _BITS, -1, -_BITS):
            for start in range(0, groups, _GROUPS):
                self._narrow(slice(start, min(start + _GROUPS, groups)), shift)

    def _narrow(self, own: slice, shift: int) -> None:
        size, base = own.stop - own.start, 1 << _BITS
        counts = np.zeros(size * base, np.int64)
        above = np.uint64(shift + _BITS)
        for keys, group in self._parts():
            inside = (group >= own.start) & (group < own.stop)
            keys, group = keys[inside], group[inside]
            if shift + _BITS < 64:
                inside = keys >> above == self._least[group] >> above
                keys, group = keys[inside], group[inside]
            digit = (keys >> np.uint64(shift)) & np.uint64(base - 1)
            place = (group - own.start) * base + digit.astype(np.int64)
            np.add.at(counts, place, 1)
        for i, row in enumerate(counts.reshape(size, base)):
            g, k = own.start + i, self._left[own.start + i]
            reached = np.cumsum(row[::-1])
            if shift == 64 - _BITS:
                self._all[g] = reached[-1] <= k
            if self._all[g] or not k:
                continue
            found = int(np.searchsorted(reached, k))
            self._left[g] = k - (reached[found - 1] if found else 0)
            self._least[g] |= np.uint64((base - 1 - found) << shift)

    def __iter__(self) -> Iterator[Bool[np.ndarray, " n"]]:
        """Which rows of each part are chosen."""
        left = self._left.copy()
        for keys, group in self._parts():
            known = np.maximum(group, 0)
            least = self._least[known]
            chosen = (group >= 0) & (self._all[known] | ((keys > least) & (self._left[known] > 0)))
            equal = (group >= 0) & (keys == least) & ~self._all[known]
            for i in np.flatnonzero(equal):  # few: those of one key
                if left[group[i]] > 0:
                    left[group[i]] -= 1
                    chosen[i] = True
            yield chosen

    def least(self, group: int = 0) -> int | None:
        """The smallest chosen key of a group; None: all of it, or nothing, is chosen."""
        return None if self._all[group] or not self._left[group] else int(self._least[group])
