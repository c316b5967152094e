"""From the bytes of a picture to the pixels of its bucket.

decode -> turn upright (EXIF) -> lay on the background -> resize to cover the bucket -> crop ->
flip. Transparent pictures are composed *before* they are resized: with alpha a in [0, 1],

    pixel = a * colour + (1 - a) * background                                                 (1)

and a linear filter of (1) is what premultiplied resizing gives, so that the arbitrary colour
under a = 0 never bleeds into an edge. Colour profiles are not applied.

Beside the pixels go the six numbers of SDXL's micro-conditioning: the original height and width,
the crop's top and left in pixels of the resized picture, the bucket's height and width. A flip is
in none of them, in SDXL as here: the crop is told as it was before the flip.
"""

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image, ImageOps

from emu_jax.data.buckets import Shape
from emu_jax.data.decode import open_image
from emu_jax.data.plan import mix

_TOP, _LEFT, _FLIP = range(3)  # first coordinate of each kind of draw
Colour = tuple[int, int, int]


def prepare(
    data: bytes,
    bucket: Shape,
    *,
    background: Colour = (255, 255, 255),
    random_crop: bool = False,
    flip: bool = False,
    seed: int = 0,
) -> tuple[UInt8[np.ndarray, "h w 3"], Int32[np.ndarray, "6"]]:
    """One picture in the shape of `bucket`, and its sizes: (h, w, top, left, target h, target w).

    The crop is centred unless `random_crop`; the picture is mirrored where `flip` and the seed
    say so. Raises what `open_image` raises for bytes that are no picture.
    """
    image = compose(upright(open_image(data)), background)
    original = image.height, image.width
    image = cover(image, bucket)
    top, left = crop_corner((image.height, image.width), bucket, seed if random_crop else None)
    pixels = np.asarray(image)[top : top + bucket[0], left : left + bucket[1]]
    if flip and flipped(seed):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels), np.array([*original, top, left, *bucket], np.int32)


def flipped(seed: int | np.ndarray) -> np.ndarray:
    """Whether the rows with these seeds are mirrored, where mirroring is on."""
    return (mix(_FLIP, seed) & np.uint64(1)).astype(bool)


def upright(image: Image.Image) -> Image.Image:
    """The picture as its EXIF orientation says it is to be seen."""
    ImageOps.exif_transpose(image, in_place=True)
    return image


def compose(image: Image.Image, background: Colour) -> Image.Image:
    """An RGB picture, on the background where it is transparent: eq. (1)."""
    if image.mode.startswith("I"):  # 16 bits a pixel: Pillow's own conversion would clip at 255
        grey = np.clip(np.asarray(image, np.float32) / 257, 0, 255)
        image = Image.fromarray(np.rint(grey).astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    ground = Image.new("RGBA", image.size, (*background, 255))
    return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")


def cover(image: Image.Image, bucket: Shape) -> Image.Image:
    """Resize, keeping the aspect ratio, to the smallest size that covers the bucket (Lanczos)."""
    scale = max(bucket[0] / image.height, bucket[1] / image.width)
    height = max(bucket[0], round(image.height * scale))
    width = max(bucket[1], round(image.width * scale))
    if (height, width) == (image.height, image.width):
        return image
    # The gap lets a box filter take large photographs most of the way down, three times faster.
    return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)


def crop_corner(size: Shape, bucket: Shape, seed: int | None) -> tuple[int, int]:
    """Top and left of the bucket in a picture of this size: centred, or drawn by the seed."""
    spare = size[0] - bucket[0], size[1] - bucket[1]
    if seed is None:
        return spare[0] // 2, spare[1] // 2
    return int(mix(_TOP, seed)) % (spare[0] + 1), int(mix(_LEFT, seed)) % (spare[1] + 1)
