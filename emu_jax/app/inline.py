"""Images inside the page, as data URLs: no address leads to a file."""

import base64
import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from emu_jax.data.decode import open_image

_SMALL = 192  # pixels along the longer side of a thumbnail


def in_page(png: bytes) -> str:
    """A PNG file as a data URL."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def encoded(pixels: UInt8[np.ndarray, "_ _ _"]) -> bytes:
    """Pixels as a PNG file, quickly."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def thumbnail(file: bytes) -> bytes:
    """A small PNG file of an image file."""
    image = open_image(file).convert("RGBA")
    image.thumbnail((_SMALL, _SMALL), Image.Resampling.LANCZOS)
    return encoded(np.asarray(image))
