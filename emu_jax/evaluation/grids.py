"""Images laid out in one image, with captions below them."""

import math
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from emu_jax.errors import UserError
from emu_jax.evaluation.fonts import Font, Typeface

_GAP = 6
_FONT_SIZE = 12
_LINE = 15
_MOST_LINES = 3
_READABLE = 128  # width in pixels under which a caption has room
_PAPER, _INK = (255, 255, 255), (60, 60, 60)


def grid(
    images: UInt8[np.ndarray, "n h w 3"],
    captions: Sequence[str] | None = None,
    columns: int | None = None,
    scale: int | None = None,
) -> Image.Image:
    """One image of ``n``, row by row.

    ``columns`` defaults to a nearly square grid; ``scale`` enlarges each image by an integer
    factor (nearest neighbor), by default 1, or as much as leaves room for captions. Long captions
    are broken into up to three lines, then cut.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or not len(images):
        raise UserError(
            f"A grid needs uint8 images [n, h, w, 3], not {images.dtype} {list(images.shape)}."
        )
    if captions is not None and len(captions) != len(images):
        raise UserError(
            f"There are {len(images)} images but {len(captions)} captions; give one for each."
        )
    if scale is None:
        scale = max(1, math.ceil(_READABLE / images.shape[2])) if any(captions or ()) else 1
    n, height, width = len(images), images.shape[1] * scale, images.shape[2] * scale
    columns = min(columns or math.ceil(math.sqrt(n)), n)
    font = Typeface(_FONT_SIZE)
    broken = [wrap(text, width, font) for text in captions or ()]
    feet = [  # of the rows: their captions
        max(map(len, broken[start : start + columns]), default=0) * _LINE
        for start in range(0, n, columns)
    ]
    tops = [_GAP, *(_GAP + below for below in accumulate(height + foot + _GAP for foot in feet))]
    step_x = width + _GAP
    sheet = Image.new("RGB", (columns * step_x + _GAP, tops[-1]), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for i, pixels in enumerate(images):
        x, y = _GAP + (i % columns) * step_x, tops[i // columns]
        image = Image.fromarray(pixels)
        sheet.paste(image.resize((width, height), Image.Resampling.NEAREST), (x, y))
        for j, line in enumerate(broken[i] if broken else ()):
            middle = x + (width - font.getlength(line)) / 2
            font.draw(pen, middle, y + height + j * _LINE, line, _INK)
    return sheet


def wrap(text: str, width: int, font: Typeface | Font) -> list[str]:
    """Lines of at most ``width`` pixels, broken at spaces; text that is too long ends in dots."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    if len(lines) > _MOST_LINES:
        lines = [*lines[: _MOST_LINES - 1], " ".join(lines[_MOST_LINES - 1 :])]
    return [_cut(line, width, font) for line in lines]


def _cut(line: str, width: int, font: Typeface | Font) -> str:
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "...") > width:
        line = line[:-1]
    return line + "..."
