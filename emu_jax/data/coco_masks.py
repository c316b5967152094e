"""COCO's masks, from files of unknown origin: polygons and run lengths, as pycocotools draws them.

A polygon's outline is sampled at SCALE times the resolution. Read column by column, a pixel is
inside if the outline has crossed an odd number of columns' places before it. Run lengths count
pixels column by column too, outside and inside in turn; as a text they are variable-length numbers
of 5 bits a character, from the fourth on as differences from the last but one.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from emu_jax.data.buckets import Shape
from emu_jax.errors import UserError

MOST_INSTANCES = 255  # of an image: its numbers are 8 bits
_SCALE = 5
_FARTHEST = 2**20  # pixels from the corner
_MOST_POINTS = 2**22  # of a sampled outline
_MOST_BITS = 35  # of a number in a text

Mask = Bool[np.ndarray, "h w"]


def draw(segmentation: Any, size: Shape) -> Mask:
    """The pixels inside, for an image of (height, width): of any of the polygons [x0, y0, x1, ...],
    or of run lengths ``{"size": [h, w], "counts": [...] or "..."}``.

    Raises UserError, with the reason, for anything else.
    """
    if isinstance(segmentation, dict):
        if segmentation.get("size") != list(size):
            raise UserError(f"its run lengths are of another size than {[*size]}")
        counts = segmentation.get("counts")
        return run_lengths(_counts(counts) if isinstance(counts, str) else counts, size)
    if not isinstance(segmentation, list) or not segmentation:
        raise UserError("its segmentation is neither polygons nor run lengths")
    mask = np.zeros(size, bool)
    for points in segmentation:
        mask |= polygon(points, size)
    return mask


def polygon(points: Any, size: Shape) -> Mask:
    """The pixels inside one polygon [x0, y0, x1, y1, ...], which is closed by itself."""
    try:
        found = np.asarray(points, np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError("a polygon has what is no number") from error
    if found.ndim != 1 or len(found) < 6 or len(found) % 2:
        raise UserError("a polygon has fewer than three points, or half a point")
    if not np.all(np.abs(found) <= _FARTHEST):  # false for NaN
        raise UserError(f"a polygon has points farther than {_FARTHEST:,} pixels")
    height, width = size
    # Rounded as C does, toward zero: the oracle's results are kept to the pixel.
    start = np.trunc(_SCALE * found + 0.5).astype(np.int64).reshape(-1, 2)
    end = np.roll(start, -1, axis=0)
    u, v = _outline(start, end)
    crossed = np.flatnonzero(u[1:] != u[:-1])
    x = (np.minimum(u[crossed + 1], u[crossed]) + 0.5) / _SCALE - 0.5
    y = (np.minimum(v[crossed + 1], v[crossed]) + 0.5) / _SCALE - 0.5
    inside = (np.floor(x) == x) & (x >= 0) & (x <= width - 1)
    mask = np.zeros(size, bool)
    if inside.any():
        x = x[inside].astype(np.int64)
        y = np.ceil(np.clip(y[inside], 0, height)).astype(np.int64)
        left, columns = x.min(), x.max() + 1 - x.min()  # a closed outline leaves a column outside
        places = (x - left) * height + y
        crossings = np.bincount(places, minlength=columns * height + 1)[: columns * height]
        odd = np.cumsum(crossings) % 2 == 1
        mask[:, left : left + columns] = odd.reshape(columns, height).T
    return mask


def _outline(start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of all points of an outline of edges, each walked along its longer side."""
    length = np.abs(end - start)
    steep = length[:, 0] < length[:, 1]
    count = length.max(1) + 1
    if count.sum() > _MOST_POINTS:
        raise UserError(f"a polygon's outline is longer than {_MOST_POINTS // _SCALE:,} pixels")
    along = np.where(steep, 1, 0)
    edges = np.arange(len(start))
    backward = start[edges, along] > end[edges, along]
    first = np.where(backward[:, None], end, start)
    last = np.where(backward[:, None], start, end)
    slope = (last - first)[edges, 1 - along] / np.maximum(count - 1, 1)
    edge = np.repeat(edges, count)
    step = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count)
    step = np.where(backward[edge], count[edge] - 1 - step, step)
    main = first[edges, along][edge] + step
    other = np.trunc(first[edges, 1 - along][edge] + slope[edge] * step + 0.5).astype(np.int64)
    return np.where(steep[edge], other, main), np.where(steep[edge], main, other)


def run_lengths(counts: Any, size: Shape) -> Mask:
    """The pixels of every second run, column by column; the first run is outside."""
    total = size[0] * size[1]
    if not isinstance(counts, list) or any(type(n) is not int for n in counts):
        raise UserError("its run lengths are not whole numbers")
    if any(not 0 <= n <= total for n in counts) or sum(counts) != total:
        raise UserError(f"its run lengths do not sum to the image's {total:,} pixels")
    inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(inside, counts).reshape(size[::-1]).T


def _counts(text: str) -> list[int]:
    """The run lengths in a text."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift >= _MOST_BITS:
            raise UserError("its run lengths are a damaged text")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:  # the number goes on
            continue
        if bits & 16:  # it is negative
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise UserError("its run lengths are a damaged text")
    return counts


def number(masks: Iterable[Mask], size: Shape) -> tuple[UInt8[np.ndarray, "h w"], list[int]]:
    """The map of at most MOST_INSTANCES instances, and which of ``masks`` are its instances 1, 2,
    ...: those of which a pixel is seen. Where masks overlap the smaller one is in front.
    """
    front, areas = np.zeros(size, np.uint8), np.full(size, size[0] * size[1], np.int32)
    count = 0
    for mask in masks:
        count, area = count + 1, np.count_nonzero(mask)
        nearer = mask & (area <= areas)
        front[nearer], areas[nearer] = count, area
    seen = np.flatnonzero(np.bincount(front.ravel(), minlength=count + 1)[1:])
    numbers = np.zeros(count + 1, np.uint8)
    numbers[seen + 1] = np.arange(1, len(seen) + 1)
    return numbers[front], seen.tolist()
