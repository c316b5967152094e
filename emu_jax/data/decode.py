"""Opening a picture that may be anything: bounded, complete, or a sentence that says why not."""

import io

from PIL import Image, UnidentifiedImageError

from emu_jax.errors import UserError

MAX_PIXELS = 2**26  # 67 megapixels: 256 MiB as RGBA, above any camera's picture in common use
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # none that starts a program

_EXIF_ORIENTATION = 0x0112


def open_image(data: bytes) -> Image.Image:
    """The picture in `data`, every pixel read (of an animation the first frame).

    The mode is the file's own (RGB, RGBA, L, P, I;16, CMYK, ...); EXIF orientation is left to the
    caller. Raises UserError for what is not an image, is truncated, or declares more than
    MAX_PIXELS; the size is checked before a pixel is decoded.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_size(*image.size)
        image.load()
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(f"not an image in any of the formats {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"too large: more than {MAX_PIXELS:,} pixels") from error
    except Exception as error:  # Pillow's plugins raise whatever their parsers run into
        raise UserError(f"truncated or damaged image: {error}") from error
    return image


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of the picture as its EXIF orientation says it is to be seen."""
    width, height = image.size
    turned = image.getexif().get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
    return (height, width) if turned else (width, height)


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UserError(
            f"too large: {width} x {height} is more than {MAX_PIXELS:,} pixels; make it smaller"
        )
