"""A network that maps maps to maps, run in overlapping tiles: memory of one tile at a time.

A map of n positions along a side is covered by the fewest tiles of t positions that overlap by at
least o = t / 4, at equal distances. Position p of a tile has the weight

    w(p) = min(1, (p + 1/2) / o, (t - p - 1/2) / o)                                        (1)

along each side, and a result is the mean of the tiles' results by the products of these weights.
So the share of a tile falls to zero at its edge, and no seam is visible, although normalization
layers see the tile only. A map of at most one tile is not divided.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Map = Callable[[Float[Array, "b h w c"]], Float[Array, "b i j d"]]


def tiled(
    function: Map, x: Float[Array, "b h w c"], tile: int, before: int, after: int
) -> Float[Array, "b i j d"]:
    """``function(x)`` in tiles of ``tile`` positions; ``before`` and ``after`` are the entries of
    its argument and of its result along a side of one position.
    """
    counts = (x.shape[1] // before, x.shape[2] // before)
    if max(counts) <= tile:
        return function(x)
    sides = [min(tile, n) for n in counts]
    corners = [(top, left) for top in _starts(counts[0], tile) for left in _starts(counts[1], tile)]

    def one(corner: Array) -> Array:
        start = (0, corner[0] * before, corner[1] * before, 0)
        shape = (x.shape[0], sides[0] * before, sides[1] * before, x.shape[3])
        return function(jax.lax.dynamic_slice(x, start, shape))

    results = jax.lax.map(one, jnp.array(corners))
    weight = np.outer(*(_weights(n * after, tile * after) for n in sides))[..., None]
    shape = (x.shape[0], counts[0] * after, counts[1] * after, results.shape[-1])
    total, weights = jnp.zeros(shape, results.dtype), np.zeros((*shape[1:3], 1), np.float32)
    for (top, left), result in zip(corners, results, strict=True):
        rows = slice(top * after, (top + sides[0]) * after)
        columns = slice(left * after, (left + sides[1]) * after)
        total = total.at[:, rows, columns].add(result * weight)
        weights[rows, columns] += weight
    return total / weights


def _starts(count: int, tile: int) -> list[int]:
    """The first position of every tile along a side."""
    if count <= tile:
        return [0]
    overlap = tile // 4
    number = -(-(count - overlap) // (tile - overlap))
    return [round(i * (count - tile) / (number - 1)) for i in range(number)]


def _weights(side: int, tile: int) -> np.ndarray:
    """Equation (1) for a tile of ``side`` entries, of which a whole one has ``tile``."""
    inside = np.arange(side, dtype=np.float32) + 0.5
    ramp = np.minimum(inside, side - inside) / max(tile // 4, 1)
    return np.minimum(ramp, 1).astype(np.float32)
