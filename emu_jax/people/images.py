"""Images as annotators see them: pixels only.

Every image is decoded and encoded again as PNG under a random name, so that neither its name, nor
its metadata, nor its encoder says which model made it. Attention checks need images whose quality
is beyond doubt; they are made from those of the study.
"""

import io
import secrets

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFilter

from emu_jax.data.decode import open_image
from emu_jax.data.images import compose, upright
from emu_jax.people.store import Store

Pixels = UInt8[np.ndarray, "h w 3"]
_BACKGROUND = (255, 255, 255)
_MOSAIC = 12  # squares along the shorter side of a spoiled image


def decode(data: bytes, size: int | None = None) -> Pixels:
    """The pixels of an encoded image, its longer side reduced to ``size``."""
    image = compose(upright(open_image(data)), _BACKGROUND)
    return np.asarray(fitted(image, size))


def fitted(image: Image.Image, size: int | None) -> Image.Image:
    """The image with a longer side of ``size`` pixels."""
    if size is None or max(image.size) == size:
        return image
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def save(store: Store, pixels: Pixels) -> str:
    """Writes the pixels under a random name, which is returned."""
    name = f"{secrets.token_hex(16)}.png"
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, "PNG")
    path = store.image(name)
    temporary = path.parent / f"{name}.tmp"
    temporary.write_bytes(stream.getvalue())
    temporary.replace(path)
    return name


def spoiled(pixels: Pixels) -> Pixels:
    """A mosaic of the image: worse than the image in everyone's eyes."""
    image = Image.fromarray(pixels)
    scale = _MOSAIC / min(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    return np.asarray(
        image.resize((width, height), Image.Resampling.BOX).resize(
            image.size, Image.Resampling.NEAREST
        )
    )


def noise(shape: tuple[int, int], generator: np.random.Generator) -> Pixels:
    """Soft colored noise (height, width), which shows nothing that a prompt could ask for."""
    image = Image.fromarray(generator.integers(0, 256, (*shape, 3), np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(max(1, min(shape) // 64))))
