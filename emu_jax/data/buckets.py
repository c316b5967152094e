"""Aspect-ratio buckets: the few picture shapes that a run trains on.

Every bucket (h, w) has sides that are multiples of a step and at most `side`^2 pixels, so each
costs no more than the square one; the training step compiles once a bucket. For every long side
a = side, side + step, ... the short side is the largest that keeps the area,

    b(a) = step * floor(side^2 / (a * step)),      a / b(a) <= max_ratio,                     (1)

and (a, b) and (b, a) are both buckets. A picture goes to the bucket nearest in shape,

    argmin_k | log(w / h) - log(w_k / h_k) |,                                                 (2)

which treats twice as wide and twice as tall alike; it is then resized to cover that bucket.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from emu_jax.errors import UserError

Shape = tuple[int, int]


def make_buckets(side: int, step: int = 64, max_ratio: float = 2.0) -> list[Shape]:
    """The (h, w) of eq. (1) in pixels, from the tallest to the widest; `max_ratio` 1: the square.

    Raises UserError where `side` is not a positive multiple of `step` or `max_ratio` is below 1.
    """
    if step < 1 or side < step or side % step:
        raise UserError(
            f"A side of {side} pixels is not a multiple of the bucket step {step}: "
            "choose a side that is, or another step."
        )
    if max_ratio < 1:
        raise UserError(f"A max_ratio of {max_ratio} leaves no bucket: it must be at least 1.")
    wide = []
    for long in range(side, int(side * max_ratio) + 1, step):
        short = side * side // (long * step) * step
        if short == 0 or long > max_ratio * short:
            break
        wide.append((short, long))
    return [(w, h) for h, w in reversed(wide[1:])] + wide


def assign(
    width: Int[np.ndarray, "n"], height: Int[np.ndarray, "n"], buckets: Sequence[Shape]
) -> Int[np.ndarray, "n"]:
    """The index of every picture's bucket by eq. (2); a tie goes to the taller bucket."""
    shape = np.array([math.log(w / h) for h, w in buckets])
    order = np.argsort(shape, kind="stable")
    borders = (shape[order][1:] + shape[order][:-1]) / 2
    aspect = np.log(np.asarray(width, np.float64)) - np.log(np.asarray(height, np.float64))
    return order[np.searchsorted(borders, aspect)]
