"""Drawing the scenes of the data set `scenes`: recoloring, layout, composition, instance maps.

A scene is composed from drawings by their own alpha channels. The instance map has the number of
the topmost drawing whose alpha is at least one half, and 0 where there is none: an exact mask.
"""

import functools
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image, ImageColor

from emu_jax.data.emoji_concepts import forms
from emu_jax.data.emoji_styles import CANVAS, STYLES
from emu_jax.data.scenes_plan import RELATIONS, Scene
from emu_jax.data.scenes_things import ACTIONS, HUES, PERSONS, THINGS
from emu_jax.errors import UserError

_MARGIN = 0.03  # of the canvas, kept free at every edge
# Hue (degrees), saturation and value of Fluent's drawings of a color.
_SHADED = {
    "red": (350, 0.75, 0.92),
    "orange": (24, 0.75, 0.95),
    "yellow": (47, 0.72, 0.98),
    "green": (115, 0.62, 0.72),
    "blue": (208, 0.72, 0.92),
    "purple": (266, 0.6, 0.78),
}
_FAMILY = 70  # degrees around a drawing's hue that turn with it, the outer ones partly
_MOST = 128  # pixels of a drawing's longer side; none is drawn larger

Box = tuple[float, float, float, float]  # left, top, width, height; the canvas has side 1


def codes() -> dict[str, str]:
    """Name of a drawing -> code of its emoji: things by their word, actions as "man surfing"."""
    by_name = {form.name: form.code for form in forms().values()}
    found = {word: by_name[thing.name] for word, thing in THINGS.items()}
    for action, name in ACTIONS.items():
        found |= {f"{person} {action}": by_name[f"{person} {name}"] for person in PERSONS}
    return found


class Sprites:
    """The drawings of a style, cropped to what is not transparent, in any color; kept once drawn.

    `drawings`: name of a drawing -> what the style's `render` takes. `like`: sprites whose outlines
    crop these, so that other drawings of the same things have the same places.
    """

    def __init__(self, style: str, drawings: Mapping[str, bytes], like: "Sprites | None" = None):
        self.style, self.drawings, self.like = style, drawings, like
        self._drawn: dict[tuple[str, str], Image.Image] = {}

    def __call__(self, name: str, color: str) -> Image.Image:
        """RGBA. A color that is the thing's own, or empty, changes nothing."""
        if (name, color) not in self._drawn:
            self._drawn[name, color] = self._draw(name, color)
        return self._drawn[name, color]

    def _draw(self, name: str, color: str) -> Image.Image:
        image = self._render(name, color)
        outlined = image if self.like is None else self.like._render(name, color)
        image = image.crop(outlined.getchannel("A").getbbox())
        image.thumbnail((_MOST, _MOST), Image.Resampling.LANCZOS)
        return image

    def _render(self, name: str, color: str) -> Image.Image:
        drawing, render = self.drawings[name], STYLES[self.style].render
        own = THINGS[name].color(self.style) if name in THINGS else ""
        if color in ("", own):
            image = render(drawing)
        elif self.style == "openmoji":
            dark = _is_dark(render(drawing), own)
            image = render(exchange_tones(drawing, own, color, dark=dark))
        else:
            image = turn_hue(render(drawing).convert("RGBA"), color)
        return image.convert("RGBA")


def find_drawings(style: str, path: epath.PathLike | None, downloads: epath.Path) -> dict[str, Any]:
    """Name of a drawing -> what the style's `render` takes, of all that scenes draw.

    Raises UserError where the style lacks one.
    """
    wanted = codes()
    found = STYLES[style].find(wanted.values(), path, downloads)
    missing = [name for name, code in wanted.items() if code not in found]
    if missing:
        origin = f" in {path}" if path else ""
        raise UserError(
            f"{STYLES[style].title} has no drawing of {', '.join(missing[:5])}{origin}."
        )
    return {name: found[code] for name, code in wanted.items()}


def exchange_tones(svg: bytes, own: str, color: str, *, dark: bool = False) -> bytes:
    """An OpenMoji drawing with the two tones of one color in place of those of another.

    `dark`: most of the drawing is in the dark tone. It becomes the light tone of yellow then, since
    the dark one is hardly different from the light tone of orange.
    """
    text, tones = svg.decode(), HUES[color]
    if dark and color == "yellow":
        tones = tones[::-1]
    for old, new in zip(HUES[own], tones, strict=True):
        text = text.replace(old, new).replace(old.upper(), new)
    return text.encode()


def _is_dark(image: Image.Image, color: str) -> bool:
    """Whether more pixels have the dark tone of a color than the light one."""
    pixels = np.asarray(image.convert("RGB"))
    light, dark = (np.all(pixels == ImageColor.getrgb(tone), -1).sum() for tone in HUES[color])
    return bool(dark > light)


def turn_hue(image: Image.Image, color: str) -> Image.Image:
    """A shaded RGBA drawing of one hue in another color.

    The pixels near the drawing's mean hue are turned to the color's hue; gray ones and other hues
    stay. Saturation and value go through a power that brings their medians to those of the color;
    it is monotonic, so that shading stays in order.
    """
    pixels = np.asarray(image)
    hsv = np.asarray(image.convert("RGB").convert("HSV")).astype(np.float64) / 255
    hue, rest = hsv[..., 0] * 360, hsv[..., 1:]
    weight = rest[..., 0] * rest[..., 1] * (pixels[..., 3] > 127)
    mean = np.degrees(np.angle(np.sum(weight * np.exp(1j * np.radians(hue)))))
    distance = (hue - mean + 180) % 360 - 180
    share = np.clip((_FAMILY - np.abs(distance)) / 20, 0, 1) * np.clip(rest[..., 0] / 0.2, 0, 1)
    family = (share > 0.5) & (pixels[..., 3] > 127)
    target, *levels = _SHADED[color]
    turned = np.empty_like(hsv)
    turned[..., 0] = (target + distance / 3) % 360 / 360
    for i, level in enumerate(levels):
        median = np.median(rest[..., i][family])
        power = np.log(level) / np.log(np.clip(median, 0.05, 0.99))
        turned[..., 1 + i] = rest[..., i] ** np.clip(power, 0.2, 3)
    stored = Image.fromarray(np.rint(turned * 255).astype(np.uint8), "HSV").convert("RGB")
    share = share[..., None]
    changed = np.rint(share * np.asarray(stored) + (1 - share) * pixels[..., :3])
    return Image.fromarray(np.dstack([changed, pixels[..., 3]]).astype(np.uint8), "RGBA")


def draw(scene: Scene, sprites: Sprites, seed: str) -> tuple[Image.Image, UInt8[np.ndarray, "h w"]]:
    """(RGBA image on a transparent canvas, instance map) of a scene; the seed places the things."""
    names = [f"{scene.person} {scene.things[0]}"] if scene.person else scene.things
    drawings = [sprites(n, color) for n, color in zip(names, scene.colors, strict=True)]
    boxes = layout(scene, [image.size for image in drawings], Random(seed))
    canvas = Image.new("RGBA", (CANVAS, CANVAS))
    instances = np.zeros((CANVAS, CANVAS), np.uint8)
    order = list(range(len(boxes)))
    if scene.relation and not RELATIONS[scene.relation].in_front:
        order.reverse()
    for i in order:
        left, top, width, height = (round(CANVAS * x) for x in boxes[i])
        image = drawings[i].resize((max(1, width), max(1, height)), Image.Resampling.LANCZOS)
        layer = Image.new("RGBA", canvas.size)
        layer.paste(image, (left, top))
        canvas = Image.alpha_composite(canvas, layer)
        instances[np.asarray(layer)[..., 3] >= 128] = i + 1
    return canvas, instances


def layout(scene: Scene, sizes: Sequence[tuple[int, int]], draw: Random) -> list[Box]:
    """Where each thing is, from the widths and heights of the drawings."""

    def between(low: float, high: float) -> float:
        return low + (high - low) * draw.random()

    fit = [functools.partial(_fit, w, h) for w, h in sizes]
    if scene.relation:
        relation = RELATIONS[scene.relation]
        (w, h), (w2, h2) = (f(size) for f, size in zip(fit, relation.sizes, strict=True))
        x, y = relation.offset(w, h, w2, h2)
        boxes = [(-w / 2, -h / 2, w, h), (x - w2 / 2, y - h2 / 2, w2, h2)]
        return _placed(boxes, between(0.82, 1 - 2 * _MARGIN), draw)
    if scene.kind == "two":
        boxes = []
        for i, f in enumerate(fit):
            w, h = f(between(0.38, 0.46))
            boxes.append((0.5 * i + (0.5 - w) / 2, 0.5 - h / 2 + between(-0.15, 0.15), w, h))
        return boxes
    if scene.kind == "count" and len(scene.things) > 1:
        return _rows(scene.rows, fit, draw)
    low, high = (0.65, 0.9) if scene.person else (0.5, 0.8)
    return _placed([(0.0, 0.0, *fit[0](1.0))], between(low, high), draw)


def _fit(width: float, height: float, side: float) -> tuple[float, float]:
    """The width and height whose longer one is `side`."""
    scale = side / max(width, height)
    return width * scale, height * scale


def _placed(boxes: Sequence[Box], side: float, draw: Random) -> list[Box]:
    """The boxes, scaled so that the longer side of them all is `side`, anywhere on the canvas."""
    left, top = min(b[0] for b in boxes), min(b[1] for b in boxes)
    width = max(b[0] + b[2] for b in boxes) - left
    height = max(b[1] + b[3] for b in boxes) - top
    scale = side / max(width, height)
    spare = (1 - 2 * _MARGIN - scale * width, 1 - 2 * _MARGIN - scale * height)
    x, y = (_MARGIN + s * draw.random() for s in spare)
    return [
        (x + scale * (b[0] - left), y + scale * (b[1] - top), scale * b[2], scale * b[3])
        for b in boxes
    ]


def _rows(rows: tuple[int, ...], fit: Sequence, draw: Random) -> list[Box]:
    """Equal things in rows, each within a cell of its own."""
    most = max(len(rows), *rows)
    cell = (1 - 2 * _MARGIN) / most
    side = cell * (0.74 + 0.12 * draw.random())
    spare = 1 - 2 * _MARGIN - cell * len(rows)
    first = _MARGIN + spare * (0.25 + 0.5 * draw.random())
    boxes = []
    for row, number in enumerate(rows):
        left = _MARGIN + cell * (most - number) / 2
        for column in range(number):
            w, h = fit[len(boxes)](side)
            x = left + cell * column + (cell - w) * (0.25 + 0.5 * draw.random())
            y = first + cell * row + (cell - h) * (0.25 + 0.5 * draw.random())
            boxes.append((x, y, w, h))
    return boxes
