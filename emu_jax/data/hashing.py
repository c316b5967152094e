"""Random numbers that are hashes of their coordinates, and permutations without an array.

They are the same on every platform and with every version of every library.
"""

import numpy as np
from jaxtyping import Float, Int, UInt64

_ROUNDS = 24  # of the shuffle: the position of a record is uniform to about 2^-24
# First coordinate of each kind of random number of the batch plan.
BUCKET, SOURCE, ROW, RECORD, AUGMENT = range(5)


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
