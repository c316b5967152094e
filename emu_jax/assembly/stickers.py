"""Stickers: drawn from a few words, cut out, with a white rim, in the sizes that messengers take.

A sticker has 512 x 512 pixels. The drawing is enlarged (Lanczos) until its subject fills them, and
only then cut out, so that its outline is smooth however small the drawing is.
"""

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Bool, UInt8
from PIL import Image

from emu_jax.assembly.drawing import provenance, save_image, words_of
from emu_jax.assembly.hosting import ALONE, Host
from emu_jax.errors import UserError
from emu_jax.evaluation.cutting import bounds, subject_on_plain, with_rim
from emu_jax.text.weighting import plain

SIDE = 512
_RIM, _MARGIN = 16, 4  # pixels
_LARGEST = 4.0  # enlargement beyond the drawing's own frame
_TILE, _FRAMES, _TILT, _PERIOD = 160, 8, 6.0, 0.8  # of the sheet: pixels, frames, degrees, seconds
_GROUND = (205, 221, 232)

Cut = Callable[[UInt8[np.ndarray, "h w 3"]], Bool[np.ndarray, "h w"]]
Sticker = UInt8[np.ndarray, "512 512 4"]


def draw_stickers(
    checkpoint: str,
    prompt: str,
    out: str,
    *,
    seed: int = 0,
    count: int = 4,
    negative: str = "",
    rim: float = _RIM,
    host: Host = ALONE,
    **changes: Any,
) -> list[str]:
    """Draws ``count`` stickers and writes each as PNG and WebP, and all of them as an animated
    sheet, WebP and GIF. Returns the names of the PNG files. A drawing that cannot be cut out is
    left out. ``changes`` are those of :class:`Generator`.

    Raises:
      UserError: none of the drawings can be cut out.
    """
    plain([prompt, negative], changes.get("prompt_weighting", "none"))  # or a UserError
    changes["batch_size"] = min(changes.get("batch_size", count), count)
    generator = host.open(checkpoint, **changes)
    seeds = [seed + i for i in range(count)]
    stickers: dict[int, np.ndarray] = {}
    reasons: dict[int, str] = {}
    drawn = generator.draw_each([prompt] * count, seeds, negative, previews=host.previews)
    for own, image in zip(seeds, drawn, strict=True):
        try:
            stickers[own] = sticker(image, subject_on_plain, rim)
        except UserError as error:
            reasons[own] = str(error)
    for own, reason in reasons.items():
        print(f"seed {own} cannot be cut out: {reason}", flush=True)
    if not stickers:
        raise UserError(
            f"None of {count} drawings can be cut out: {reasons[seed]}. Ask for one thing on a "
            "white background, or try other seeds."
        )
    folder, stem = epath.Path(out), words_of(prompt)
    folder.mkdir(parents=True, exist_ok=True)
    made_by = provenance(checkpoint, generator)
    for own, pixels in stickers.items():
        image = Image.fromarray(pixels)
        about = {"prompt": prompt, "negative_prompt": negative, "seed": own}
        save_image(image, folder / f"{stem}_{own}.png", **about, **made_by)
        _write(folder / f"{stem}_{own}.webp", image, format="WEBP", lossless=True)
    frames = sheet(list(stickers.values()))
    timing = dict(save_all=True, append_images=frames[1:], loop=0)
    timing["duration"] = round(1000 * _PERIOD / _FRAMES)
    _write(folder / f"{stem}.webp", frames[0], format="WEBP", quality=80, **timing)
    _write(folder / f"{stem}.gif", frames[0], format="GIF", **timing)
    return [f"{stem}_{own}.png" for own in stickers]


def sticker(
    image: UInt8[np.ndarray, "h w 3"], cut: Cut = subject_on_plain, rim: float = _RIM
) -> UInt8[np.ndarray, "512 512 4"]:
    """A drawing as a sticker: its subject fills it up to the rim.

    Raises:
      UserError: ``cut`` finds no subject.
    """
    room = SIDE - 2 * (rim + _MARGIN)
    rows, columns = bounds(cut(_enlarged(image, SIDE)))
    longest = max(rows.stop - rows.start, columns.stop - columns.start)
    large = _enlarged(image, round(SIDE * min(_LARGEST, room / longest)))
    mask = cut(large)
    rows, columns = bounds(mask)
    edge = math.ceil(rim) + 1
    around = ((edge, edge), (edge, edge))
    subject = np.pad(large[rows, columns], (*around, (0, 0)), constant_values=255)
    found = with_rim(subject, np.pad(mask[rows, columns], around), rim)
    sheet = Image.new("RGBA", (SIDE, SIDE), (255, 255, 255, 0))
    left, top = (SIDE - found.shape[1]) // 2, (SIDE - found.shape[0]) // 2
    sheet.paste(Image.fromarray(found), (left, top))
    return np.asarray(sheet)


def sheet(stickers: Sequence[UInt8[np.ndarray, "512 512 4"]]) -> list[Image.Image]:
    """The frames of an animation in which all stickers rock from side to side."""
    columns = math.ceil(math.sqrt(len(stickers)))
    rows = math.ceil(len(stickers) / columns)
    small = [Image.fromarray(x).resize((_TILE, _TILE), Image.Resampling.LANCZOS) for x in stickers]
    frames = []
    for frame in range(_FRAMES):
        whole = Image.new("RGB", (columns * _TILE, rows * _TILE), _GROUND)
        for i, image in enumerate(small):
            phase = frame / _FRAMES + i / len(small)
            angle = _TILT * math.sin(2 * math.pi * phase)
            tilted = image.rotate(angle, Image.Resampling.BICUBIC)
            whole.paste(tilted, (i % columns * _TILE, i // columns * _TILE), tilted)
        frames.append(whole)
    return frames


def _enlarged(image: UInt8[np.ndarray, "h w 3"], side: int) -> UInt8[np.ndarray, "_ _ 3"]:
    """The longer side becomes ``side`` pixels."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    shape = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(image).resize(shape, Image.Resampling.LANCZOS))


def _write(path: epath.Path, image: Image.Image, **options: Any) -> None:
    """An image file, whole or not at all."""
    data = io.BytesIO()
    image.save(data, **options)
    temporary = path.parent / f"{path.name}.tmp"
    temporary.write_bytes(data.getvalue())
    temporary.replace(path)
