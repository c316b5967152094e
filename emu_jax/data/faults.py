"""Faults of a known dimension, added to drawn scenes: what synthetic preferences are about.

    color      hue turned; saturation lowered or raised; channels exchanged
    layout     moved out of the canvas; cropped; turned; small
    lighting   too dark or too light (a power of the values); shading flattened (fluent); dark
               tones and shadows drawn in light ones (openmoji)
    detail     blurred; large pixels; JPEG artifacts; few tones (fluent, since flat drawings would
               only get other colors); without outlines (openmoji)

A fault's strength is drawn from a generator of its own, so that two images get the same one. Two
faults change the drawing, all others its pixels. Color and lighting leave the alpha channel as it
is, so that the background stays white.
"""

import io
import math
import re
from collections.abc import Callable, Mapping
from random import Random

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter

from emu_jax.data.images import compose
from emu_jax.data.scenes_things import HUES

VISIBLE, TRIES = 10.0, 8  # the difference of a fault that can be seen, and how often one is drawn
_CHANNELS = ((1, 2, 0), (2, 0, 1), (0, 2, 1), (1, 0, 2), (2, 1, 0))


def _between(draw: Random, *ranges: tuple[float, float]) -> float:
    """A number in one of the ranges."""
    low, high = ranges[int(draw.random() * len(ranges))]
    return low + (high - low) * draw.random()


# Color -------------------------------------------------------------------------------------------


def turn_hue(image: Image.Image, draw: Random) -> Image.Image:
    hsv, turn = _hsv(image), _between(draw, (0.17, 0.83))
    hsv[..., 0] = (hsv[..., 0] + turn) % 1
    return _from_hsv(hsv, image)


def saturate(image: Image.Image, draw: Random) -> Image.Image:
    hsv = _hsv(image)
    hsv[..., 1] = np.minimum(1, hsv[..., 1] * _between(draw, (0.0, 0.4), (1.6, 2.0)))
    return _from_hsv(hsv, image)


def exchange_channels(image: Image.Image, draw: Random) -> Image.Image:
    order = _CHANNELS[int(draw.random() * len(_CHANNELS))]
    pixels = np.asarray(image)
    return Image.fromarray(np.ascontiguousarray(pixels[..., (*order, 3)]))


# Layout ------------------------------------------------------------------------------------------


def move(image: Image.Image, draw: Random) -> Image.Image:
    angle, far = 2 * math.pi * draw.random(), _between(draw, (0.3, 0.5))
    return _placed(image, far * math.cos(angle), far * math.sin(angle))


def crop(image: Image.Image, draw: Random) -> Image.Image:
    scale = _between(draw, (1.6, 2.2))
    most = (scale - 1) / 2  # so that the canvas is filled
    x, y = (_between(draw, (-most, -most / 2), (most / 2, most)) for _ in "xy")
    return _placed(image, x, y, scale)


def turn(image: Image.Image, draw: Random) -> Image.Image:
    return _placed(image, angle=_between(draw, (35, 145), (215, 325)))


def shrink(image: Image.Image, draw: Random) -> Image.Image:
    scale = _between(draw, (0.35, 0.55))
    most = (1 - scale) / 2
    x, y = (_between(draw, (-most, most)) for _ in "xy")
    return _placed(image, x, y, scale)


def _placed(
    image: Image.Image, x: float = 0, y: float = 0, scale: float = 1, angle: float = 0
) -> Image.Image:
    """Scaled and turned (degrees) around the center, which then moves by x and y canvases."""
    side = image.width
    if scale < 1:  # an affine map does not filter before it shrinks
        less = round(side * scale)
        small = image.resize((less, less), Image.Resampling.LANCZOS)
        image, scale = Image.new("RGBA", image.size), 1
        corner = (side - less) // 2
        image.paste(small, (corner, corner))
    cos, sin = math.cos(math.radians(angle)) / scale, math.sin(math.radians(angle)) / scale
    c = side / 2
    u, v = c + x * side, c + y * side
    matrix = (cos, sin, c - cos * u - sin * v, -sin, cos, c + sin * u - cos * v)
    # Premultiplied, so that the color under transparent pixels does not bleed into edges.
    moved = image.convert("RGBa").transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )
    return moved.convert("RGBA")


# Lighting ----------------------------------------------------------------------------------------


def expose(image: Image.Image, draw: Random) -> Image.Image:
    power = _between(draw, (0.3, 0.45), (2.2, 3.0))
    pixels = np.array(image)
    pixels[..., :3] = np.rint(255 * (pixels[..., :3] / 255) ** power)
    return Image.fromarray(pixels)


def flatten(image: Image.Image, draw: Random) -> Image.Image:
    """Values divided by their local mean, which is what shading changes, times the whole mean."""
    del draw
    hsv, alpha = _hsv(image), np.asarray(image)[..., 3] / 255
    radius = image.width / 16
    shade = gaussian_filter(hsv[..., 2] * alpha, radius) / (gaussian_filter(alpha, radius) + 1e-3)
    mean = np.sum(hsv[..., 2] * alpha) / (np.sum(alpha) + 1e-3)
    hsv[..., 2] = np.clip(hsv[..., 2] * mean / (shade + 1e-2), 0, 1)
    return _from_hsv(hsv, image)


def unshaded(svg: bytes) -> bytes:
    """An OpenMoji drawing without shadows of skin, and with light tones in place of dark ones."""
    text = _without_layer(svg.decode(), "skin-shadow")
    for light, dark in HUES.values():
        text = text.replace(dark, light).replace(dark.upper(), light)
    return text.encode()


# Detail ------------------------------------------------------------------------------------------


def blur(image: Image.Image, draw: Random) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(image.width * _between(draw, (0.02, 0.04))))


def enlarge_pixels(image: Image.Image, draw: Random) -> Image.Image:
    side = round(_between(draw, (14, 24)))
    return image.resize((side, side), Image.Resampling.BOX).resize(
        image.size, Image.Resampling.NEAREST
    )


def compress(image: Image.Image, draw: Random) -> Image.Image:
    stored = io.BytesIO()
    image.save(stored, "JPEG", quality=round(_between(draw, (3, 10))))
    with Image.open(stored) as found:
        return found.convert("RGB")


def posterize(image: Image.Image, draw: Random) -> Image.Image:
    """Two or three tones of a channel; white stays white."""
    steps = 1 + int(draw.random() * 2)
    tones = np.rint(np.asarray(image) / 255 * steps) / steps
    return Image.fromarray(np.rint(tones * 255).astype(np.uint8))


def lineless(svg: bytes) -> bytes:
    """An OpenMoji drawing without its outlines."""
    return _without_layer(svg.decode(), "line").encode()


# All of them -------------------------------------------------------------------------------------

Change = Callable[[Image.Image, Random], Image.Image]
# Of a drawing, by name: (dimension, what changes OpenMoji's file).
REDRAWN: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "unshaded": ("lighting", unshaded),
    "lineless": ("detail", lineless),
}
# Of pixels, by dimension and name, in the order in which they are applied. Those of detail come
# last and change the image on white, all others the RGBA canvas.
CHANGED: dict[str, dict[str, Change]] = {
    "lighting": {"exposed": expose, "flattened": flatten},
    "color": {"hue": turn_hue, "saturation": saturate, "channels": exchange_channels},
    "layout": {"moved": move, "cropped": crop, "turned": turn, "small": shrink},
    "detail": {
        "blurred": blur,
        "pixels": enlarge_pixels,
        "compressed": compress,
        "posterized": posterize,
    },
}
_SHADED = ("flattened", "posterized")  # faults of shaded drawings only


def names(style: str, dimension: str) -> list[str]:
    """The faults of a dimension that drawings of a style can have."""
    if style != "openmoji":
        return list(CHANGED[dimension])
    redrawn = [name for name, (own, _) in REDRAWN.items() if own == dimension]
    return [name for name in CHANGED[dimension] if name not in _SHADED] + redrawn


def spoil(canvas: Image.Image, faults: Mapping[str, str]) -> Image.Image:
    """An RGBA drawing with faults by name, on white; their values are seeds of the strengths. Those
    of REDRAWN are in the drawing already.
    """
    for dimension, changes in CHANGED.items():
        for name, change in changes.items():
            if dimension == "detail" and canvas.mode == "RGBA":
                canvas = compose(canvas, (255, 255, 255))
            if name in faults:
                canvas = change(canvas, Random(f"{faults[name]} {name}"))
    return canvas


def difference(first: Image.Image, second: Image.Image) -> float:
    """The mean difference of the pixels of which one at least is not white, 0 to 255, at half the
    size.
    """
    one, two = (
        np.asarray(x.resize((x.width // 2, x.height // 2), Image.Resampling.BOX), np.float32)
        for x in (first, second)
    )
    drawn = np.minimum(one, two).min(-1) < 250
    return float(np.sum(np.abs(one - two)[drawn]) / (3 * max(np.sum(drawn), 1)))


def _hsv(image: Image.Image) -> Float[np.ndarray, "h w 3"]:
    """Hue, saturation and value in [0, 1]."""
    return np.asarray(image.convert("RGB").convert("HSV")).astype(np.float64) / 255


def _from_hsv(hsv: Float[np.ndarray, "h w 3"], image: Image.Image) -> Image.Image:
    """RGBA, with the alpha channel of ``image``."""
    stored = Image.fromarray(np.rint(hsv * 255).astype(np.uint8), "HSV").convert("RGB")
    stored.putalpha(image.getchannel("A"))
    return stored


def _without_layer(svg: str, name: str) -> str:
    """A drawing without the group ``name``, a layer of OpenMoji's."""
    start = svg.find(f'<g id="{name}">')
    if start < 0:
        return svg
    depth = 0
    for tag in re.finditer(r"<g[\s>]|</g>", svg[start:]):
        if re.match(r"<g[^>]*/>", svg[start + tag.start() :]):
            continue  # an empty group
        depth += 1 if tag[0] != "</g>" else -1
        if not depth:
            return svg[:start] + svg[start + tag.end() :]
    return svg
