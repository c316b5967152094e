"""Aspect-ratio buckets: the few image shapes that a run trains on.

Every bucket (h, w) has sides that are multiples of a step and at most `side`^2 pixels, so each
costs no more than the square one; the training step compiles once per bucket. For every long side
a = side, side + step, ... the short side is the largest that does not exceed the area,

    b(a) = step * floor(side^2 / (a * step)),      a / b(a) <= max_ratio,                     (1)

and (a, b) and (b, a) are both buckets. An image goes to the bucket of the nearest aspect ratio,

    argmin_k | log(w / h) - log(w_k / h_k) |,                                                 (2)

where the logarithm makes twice as wide and twice as tall equally far from a square. The image is
then resized to cover that bucket.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int, Integer

from emu_jax.errors import UserError

Shape = tuple[int, int]
Sides = Int[np.ndarray, "n"]
Found = Integer[np.ndarray, "n"]
_LONGEST = 4096  # side of an image in a table of all sizes


def make_buckets(side: int, step: int = 64, max_ratio: float = 2.0) -> list[Shape]:
    """The (h, w) of eq. (1) in pixels, from the tallest to the widest; only the square if
    `max_ratio` is 1.

    Raises UserError if `side` is not a positive multiple of `step` or `max_ratio` is below 1.
    """
    if step < 1 or side < step or side % step:
        raise UserError(
            f"A side of {side} pixels is not a multiple of the bucket step {step}; change one of "
            "them."
        )
    if max_ratio < 1:
        raise UserError(f"max_ratio is {max_ratio}; use 1 or more.")
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
    """The index of every image's bucket by eq. (2); a tie goes to the taller bucket."""
    shape = np.array([math.log(w / h) for h, w in buckets])
    order = np.argsort(shape, kind="stable")
    borders = (shape[order][1:] + shape[order][:-1]) / 2
    aspect = np.log(np.asarray(width, np.float64)) - np.log(np.asarray(height, np.float64))
    return order[np.searchsorted(borders, aspect)]


def tabulated(buckets: Sequence[Shape]) -> Callable[[Sides, Sides], Found]:
    """`assign` for many images: a table of all sizes of ordinary images, made once in a second."""
    sides = np.arange(1, _LONGEST + 1)
    code = np.uint8 if len(buckets) < 2**8 else np.uint16
    table = np.zeros((_LONGEST + 1, _LONGEST + 1), code)
    for widths in np.split(sides, 16):
        width, height = np.repeat(widths, _LONGEST), np.tile(sides, len(widths))
        table[widths, 1:] = assign(width, height, buckets).reshape(len(widths), -1)

    def assign_many(width: Sides, height: Sides) -> Found:
        if max(width.max(initial=0), height.max(initial=0)) <= _LONGEST:
            return table.reshape(-1).take(width * (_LONGEST + 1) + height)
        return assign(width, height, buckets)

    return assign_many
