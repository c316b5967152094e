"""From the bytes of an image file to the pixels of its bucket.

decode -> apply the EXIF orientation -> composite on the background -> resize to cover the bucket
-> crop -> flip. Transparent images are composited *before* they are resized: with alpha a in
[0, 1],

    pixel = a * color + (1 - a) * background                                                  (1)

and a linear filter of (1) gives what premultiplied resizing gives, so that the arbitrary color
under a = 0 never bleeds into an edge. Color profiles are not applied.

Beside the pixels go the six numbers of SDXL's micro-conditioning: the original height and width,
the crop's top and left in pixels of the resized image, the bucket's height and width. A flip
changes none of them, in SDXL as here: the crop is given as it was before the flip.

A `View` holds what was drawn for a row: resized size, crop and flip. Images that belong to an image
are brought to the same view (further.py).
"""

import io
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image

from emu_jax.data.buckets import Shape
from emu_jax.data.decode import MAX_PIXELS, open_image, orientation, upright_size
from emu_jax.data.hashing import mix
from emu_jax.errors import UserError

_TOP, _LEFT, _FLIP = range(3)  # first coordinate of each kind of random number
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_WHITE_LEVELS = {"I": (255, 65535), "F": (1.0, 255)}  # of modes that do not define it
_MAX_RESIZED = MAX_PIXELS  # pixels: a larger resized image is never made, only its crop
Color = tuple[int, int, int]


@dataclass(frozen=True)
class View:
    """The part of an image that a row shows."""

    resized: Shape  # (h, w) to which the whole image is resized
    corner: tuple[int, int]  # (top, left) of the crop in the resized image
    shape: Shape  # (h, w) of the crop
    mirrored: bool

    def apply(self, image: Image.Image, *, labels: bool = False) -> UInt8[np.ndarray, "h w *c"]:
        """The pixels of `image`; `labels` are resized by nearest neighbor instead of Lanczos."""
        method = Image.Resampling.NEAREST if labels else Image.Resampling.LANCZOS
        pixels = _resize_and_crop(image, self.resized, self.corner, self.shape, method)
        return np.ascontiguousarray(pixels[:, ::-1] if self.mirrored else pixels)


def view(original: Shape, bucket: Shape, *, random_crop: bool, flip: bool, seed: int) -> View:
    """The view of an upright image of (h, w); see `prepare`."""
    resized = cover(original, bucket)
    corner = crop_corner(resized, bucket, seed if random_crop else None)
    return View(resized, corner, bucket, flip and bool(flipped(seed)))


def prepare(
    data: bytes,
    bucket: Shape,
    *,
    background: Color = (255, 255, 255),
    random_crop: bool = False,
    flip: bool = False,
    seed: int = 0,
    scaled: bool = False,
) -> tuple[UInt8[np.ndarray, "h w 3"], Int32[np.ndarray, "6"]]:
    """One image in the shape of `bucket`, and its sizes: (h, w, top, left, target h, target w).

    The crop is centered unless `random_crop` is set. `flip` allows mirroring; the seed decides.
    `scaled`: a JPEG that is at least twice as large is decoded at a fraction of its size.
    Raises UserError for data that `open_image` or `compose` cannot use.
    """
    # The shorter side of an image that covers the bucket is at most the bucket's longer one.
    opened = open_image(data, (max(bucket), max(bucket)) if scaled else None)
    width, height = opened.info.get("stored", opened.size)
    original = (width, height) if orientation(opened) >= 5 else (height, width)
    image = compose(upright(opened), background)
    shown = view(original, bucket, random_crop=random_crop, flip=flip, seed=seed)
    return shown.apply(image), np.array([*original, *shown.corner, *bucket], np.int32)


def check(data: bytes) -> tuple[int, int]:
    """(width, height) of the upright image; UserError where `prepare` would raise one."""
    image = open_image(data)
    try:
        compose(image, (255, 255, 255))
    except (OSError, ValueError) as error:  # Pillow's, for modes that it cannot convert
        raise UserError(f"pixels of mode {image.mode} are not supported: {error}") from error
    return upright_size(image)


def flipped(seed: int | np.ndarray) -> np.ndarray:
    """Whether the rows with these seeds are mirrored if mirroring is on."""
    return (mix(_FLIP, seed) & np.uint64(1)).astype(bool)


def upright(image: Image.Image) -> Image.Image:
    """The image with its EXIF orientation applied."""
    transpose = _TRANSPOSES.get(orientation(image))
    return image if transpose is None else image.transpose(transpose)


def compose(image: Image.Image, background: Color) -> Image.Image:
    """An RGB image, on the background where it is transparent: eq. (1).

    Raises UserError for pixel values whose white level is unknown.
    """
    if image.mode.startswith(("I", "F")):  # Pillow's own conversion would clip at 255
        image = _to_8_bits(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    ground = Image.new("RGBA", image.size, (*background, 255))
    return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")


def png(image: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    stored = io.BytesIO()
    image.save(stored, "PNG")
    return stored.getvalue()


def _to_8_bits(image: Image.Image) -> Image.Image:
    """A gray image (with alpha where a gray value is transparent) from 16-bit or 32-bit pixels."""
    values = np.asarray(image)
    white = 65535 if image.mode.startswith("I;16") else _white_level(values, image.mode)
    gray = Image.fromarray(np.rint(values.astype(np.float32) / (white / 255)).astype(np.uint8))
    if "transparency" in image.info:
        opaque = np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)
        gray = Image.merge("LA", (gray, Image.fromarray(opaque)))
    return gray


def _white_level(values: np.ndarray, mode: str) -> float:
    """The smallest usual white level that covers the values.

    Files of 32-bit integers and floats do not store their white level. An image of 16 bits whose
    brightest value is below 256 is read as one of 8 bits; it would be black otherwise.
    """
    low, high = values.min(), values.max()
    for white in _WHITE_LEVELS[mode]:
        if low >= 0 and high <= white:  # false for NaN
            return white
    levels = " or ".join(f"{white:g}" for white in _WHITE_LEVELS[mode])
    raise UserError(
        f"its pixel values lie between {low:g} and {high:g}, but a white level of {levels} is "
        "expected; convert it to 8 or 16 bits"
    )


def cover(size: Shape, bucket: Shape) -> Shape:
    """The smallest (h, w) of the same aspect ratio as `size` that covers the bucket."""
    scale = max(bucket[0] / size[0], bucket[1] / size[1])
    return max(bucket[0], round(size[0] * scale)), max(bucket[1], round(size[1] * scale))


def _resize_and_crop(
    image: Image.Image,
    resized: Shape,
    corner: Shape,
    bucket: Shape,
    method: Image.Resampling = Image.Resampling.LANCZOS,
) -> UInt8[np.ndarray, "h w *c"]:
    """The pixels of `bucket` at `corner` (top, left) of the image resized to (h, w)."""
    (height, width), (top, left) = resized, corner
    if height * width > _MAX_RESIZED:
        # An enlarged thin image: resize only the source of the crop. Rounding differs from the
        # other way, which therefore stays for all images of ordinary aspect ratios.
        y, x = image.height / height, image.width / width
        box = (left * x, top * y, (left + bucket[1]) * x, (top + bucket[0]) * y)
        box = (*box[:2], min(box[2], image.width), min(box[3], image.height))
        return np.asarray(image.resize((bucket[1], bucket[0]), method, box=box))
    if (height, width) != (image.height, image.width):
        # The gap lets a box filter take large photographs most of the way down, 3 times faster.
        image = image.resize((width, height), method, reducing_gap=3.0)
    return np.asarray(image)[top : top + bucket[0], left : left + bucket[1]]


def crop_corner(size: Shape, bucket: Shape, seed: int | None) -> tuple[int, int]:
    """Top and left of the bucket in an image of this (h, w): centered, or random by the seed."""
    spare = size[0] - bucket[0], size[1] - bucket[1]
    if seed is None:
        return spare[0] // 2, spare[1] // 2
    return int(mix(_TOP, seed)) % (spare[0] + 1), int(mix(_LEFT, seed)) % (spare[1] + 1)
