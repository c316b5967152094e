"""Instances that a detector sees in an image: of which thing, where, and in which color.

A detector is a function from images to their instances (:class:`Detector`). The shipped parser is
one; a published network that gives labels, scores and masks can take its place.

:func:`hue` reads the color of an instance from the pixels below its mask. Outlines and backgrounds
are black, white or gray, so a pixel with a chroma (largest less smallest channel) below 30 of 255
does not count. Each other pixel votes with its chroma for the color of its hue, and the majority
decides. The edges between colors (:data:`HUES`) lie between all tones that the data set `scenes`
uses: from OpenMoji's light red (7 degrees) to a Fluent basketball (12), from OpenMoji's dark orange
and light orange (24, 35) to its dark yellow (43), from a Fluent snake's green (157) to blue (198).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw

from emu_jax.evaluation.fonts import Typeface

# The hue in degrees at which the next color begins.
HUES = (
    (11, "red"),
    (39, "orange"),
    (63, "yellow"),
    (177, "green"),
    (242, "blue"),
    (318, "purple"),
    (360, "red"),
)
# Dark colors of Okabe and Ito's palette, for outlines and labels on white.
_INK = ((213, 94, 0), (0, 114, 178), (0, 130, 95), (150, 60, 120), (90, 90, 90))
_FONT_SIZE = 12
_SAME = 0.5  # intersection over union
_CHROMA = 30  # of 255; less is gray
_COLORED = 0.05  # of an instance's pixels; with fewer of a hue it has no color

Pixels = UInt8[np.ndarray, "h w 3"]
Images = Sequence[UInt8[np.ndarray, "_ _ 3"]]


class Box(NamedTuple):
    """Edges in pixels; right and bottom are the first column and row outside."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        return self.right - self.left

    @property
    def height(self) -> float:
        return self.bottom - self.top

    @property
    def center(self) -> tuple[float, float]:
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2


@dataclass(frozen=True, eq=False)
class Instance:
    """One thing in an image; the mask has the image's size and at least one pixel."""

    label: str
    score: float
    mask: Bool[np.ndarray, "h w"]
    color: str = ""

    @cached_property
    def box(self) -> Box:
        rows, columns = (np.flatnonzero(self.mask.any(axis)) for axis in (1, 0))
        return Box(*(float(x) for x in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)))

    @property
    def name(self) -> str:
        """ "red apple"."""
        return f"{self.color} {self.label}".strip()


class Detector(Protocol):
    """``name`` is for reports; ``words`` are the labels that its instances can have."""

    @property
    def name(self) -> str: ...

    @property
    def words(self) -> Sequence[str]: ...

    def __call__(self, images: Images) -> list[list[Instance]]:
        """The instances of each image that count, best first, without colors."""
        ...


# From an image and the instances in it to the color of each, empty where it has none.
Colors = Callable[[Pixels, Sequence[Instance]], list[str]]


def distinct(seen: Sequence[Instance]) -> list[Instance]:
    """Of instances that cover the same pixels, more than half of those of both together, only the
    best. A detector decides for each label on its own, and may see one thing as two.
    """
    kept: list[Instance] = []
    for one in seen:
        if all(_overlap(one.mask, other.mask) <= _SAME for other in kept):
            kept.append(one)
    return kept


def _overlap(a: Bool[np.ndarray, "h w"], b: Bool[np.ndarray, "h w"]) -> float:
    """Intersection over union."""
    return float(np.sum(a & b) / np.sum(a | b))


def see(images: Images, detector: Detector, colors: Colors) -> list[list[Instance]]:
    """The instances of each image, best first, with colors."""
    return [
        [replace(one, color=color) for one, color in zip(found, colors(image, found), strict=True)]
        for image, found in zip(images, detector(images), strict=True)
    ]


def hues(image: Pixels, instances: Sequence[Instance]) -> list[str]:
    """The color of each instance: see the module's docstring."""
    return [hue(image, one.mask) for one in instances]


def hue(image: Pixels, mask: Bool[np.ndarray, "h w"]) -> str:
    """One of the colors of :data:`HUES`, or empty if the pixels below the mask have no hue."""
    rgb = image[mask].astype(np.float64)
    low, high = rgb.min(-1), rgb.max(-1)
    chroma = high - low
    colored = chroma >= _CHROMA
    if colored.sum() < max(1, _COLORED * len(rgb)):
        return ""
    (red, green, blue), high, chroma = rgb[colored].T, high[colored], chroma[colored]
    sixth = np.where(
        high == red,
        (green - blue) / chroma % 6,
        np.where(high == green, (blue - red) / chroma + 2, (red - green) / chroma + 4),
    )
    edges, names = zip(*HUES, strict=True)
    votes = dict.fromkeys(names, 0.0)
    chosen = np.searchsorted(edges, 60 * sixth, side="right")
    for name, weight in zip(names, np.bincount(chosen, chroma, len(names)), strict=True):
        votes[name] += weight
    return max(votes, key=votes.__getitem__)


def outlined(
    image: Pixels, instances: Sequence[Instance], least: int = 192
) -> UInt8[np.ndarray, "i j 3"]:
    """The image, at least ``least`` pixels wide, with outlines and labels of the instances."""
    scale = max(1, -(-least // image.shape[1]))
    large = np.repeat(np.repeat(image, scale, 0), scale, 1)
    edges = [_edge(np.repeat(np.repeat(one.mask, scale, 0), scale, 1)) for one in instances]
    for i, edge in enumerate(edges):
        large[edge] = _INK[i % len(_INK)]
    sheet = Image.fromarray(large)
    pen, font = ImageDraw.Draw(sheet), Typeface(_FONT_SIZE)
    for i, one in enumerate(instances):
        left, top = scale * one.box.left, scale * one.box.top
        left = max(0.0, min(left, sheet.width - font.getlength(one.name) - 2))
        top = max(0.0, top - _FONT_SIZE - 2)
        right, bottom = left + font.getlength(one.name) + 2, top + _FONT_SIZE + 2
        pen.rectangle((left, top, right, bottom), fill="white")
        font.draw(pen, left + 1, top, one.name, _INK[i % len(_INK)])
    return np.asarray(sheet)


def _edge(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The pixels of a mask that have a neighbor outside."""
    around = np.pad(mask, 1)
    inside = around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    return mask & ~inside
