"""Canny's edge detector (Canny 1986), in the form of OpenCV with its default aperture of 3.

Gradients are Sobel's, of the color channel where |dx| + |dy| is largest, and nothing is blurred
before. A pixel is a candidate where this magnitude is above ``low`` and largest across the edge, in
one of four directions. A candidate is an edge if it is above ``high``, or connected to such a one
by candidates (8 neighbors). Everything is integer arithmetic, so the result is the same anywhere.
"""

import numpy as np
from jaxtyping import Bool, Int, UInt8
from scipy.ndimage import label

LOW, HIGH = 100, 200  # usual for ControlNets
_TAN = 13573  # of 22.5 degrees, times 2^15


def canny(
    image: UInt8[np.ndarray, "h w c"], low: int = LOW, high: int = HIGH
) -> UInt8[np.ndarray, "h w 3"]:
    """White edges on black."""
    return np.repeat(np.where(edges(image, low, high), 255, 0).astype(np.uint8)[..., None], 3, 2)


def edges(
    image: UInt8[np.ndarray, "h w c"], low: int = LOW, high: int = HIGH
) -> Bool[np.ndarray, "h w"]:
    """Which pixels are edges."""
    dx, dy, size = _gradient(image)
    candidates = _largest_across(dx, dy, size) & (size > low)
    numbers, count = label(candidates, np.ones((3, 3)))
    kept = np.zeros(count + 1, bool)
    kept[np.unique(numbers[candidates & (size > high)])] = True
    return kept[numbers]


def _gradient(
    image: UInt8[np.ndarray, "h w c"],
) -> tuple[Int[np.ndarray, "h w"], Int[np.ndarray, "h w"], Int[np.ndarray, "h w"]]:
    """(dx, dy, |dx| + |dy|) of the strongest channel; edge pixels are repeated outside."""
    padded = np.pad(image.astype(np.int64), ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    columns = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    dx, dy = rows[:, 2:] - rows[:, :-2], columns[2:] - columns[:-2]
    strongest = np.argmax(np.abs(dx) + np.abs(dy), axis=2)[..., None]
    dx, dy = (np.take_along_axis(x, strongest, axis=2)[..., 0] for x in (dx, dy))
    return dx, dy, np.abs(dx) + np.abs(dy)


def _largest_across(
    dx: Int[np.ndarray, "h w"], dy: Int[np.ndarray, "h w"], size: Int[np.ndarray, "h w"]
) -> Bool[np.ndarray, "h w"]:
    """Whether the magnitude is that of a ridge. Of two equal neighbors on an axis the first."""
    around = np.pad(size, 1)

    def at(down: int, right: int) -> Int[np.ndarray, "h w"]:
        height, width = size.shape
        return around[1 + down : 1 + down + height, 1 + right : 1 + right + width]

    x, y = np.abs(dx), np.abs(dy) << 15
    horizontal = (size > at(0, -1)) & (size >= at(0, 1))
    vertical = (size > at(-1, 0)) & (size >= at(1, 0))
    falling = (size > at(-1, -1)) & (size > at(1, 1))
    rising = (size > at(-1, 1)) & (size > at(1, -1))
    diagonal = np.where((dx ^ dy) < 0, rising, falling)
    near = x * _TAN
    return np.where(y < near, horizontal, np.where(y > near + (x << 16), vertical, diagonal))
