"""Opening an image file of unknown origin: memory is bounded, and every failure is a UserError."""

import io
import warnings

from PIL import Image, UnidentifiedImageError

from emu_jax.errors import UserError

MAX_PIXELS = 2**26  # 67 megapixels: 256 MiB as RGBA, above the images of common cameras
MAX_SIDE = 2**17  # pixels: positions in the resized image stay within int32
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # none that starts a program

_EXIF_ORIENTATION = 0x0112
# From the values of a PNG file to the 8 bits that Pillow decodes them to, by Pillow's raw mode.
_TO_8_BITS = {"L;2": lambda v: v * 85, "L;4": lambda v: v * 17, "RGB;16B": lambda v: v >> 8}

# Pillow only warns of an image that is up to twice its own limit; `_check_size` refuses it.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def open_image(data: bytes, least: tuple[int, int] | None = None) -> Image.Image:
    """The image in `data` with every pixel decoded (of an animation the first frame).

    `least`: a size (w, h), as stored, that is enough. A JPEG is then decoded at 1/2, 1/4 or 1/8 of
    its size where that is at least as large, which leaves out the fine frequencies of its blocks
    and most of the time. `image.info["stored"]` is then the size in the file.

    The mode is the file's own (RGB, RGBA, L, P, I;16, CMYK, ...). The EXIF orientation is readable
    but not applied. Raises UserError for data that is not an image, is truncated or damaged, or
    declares more than MAX_PIXELS or a side above MAX_SIDE; the size is checked before any pixel is
    decoded.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_size(*image.size)
        if least and image.format == "JPEG":
            image.info["stored"] = image.size
            image.draft(None, least)
        raw_mode = str(image.tile[0].args) if image.format == "PNG" and image.tile else ""
        image.load()
        image.getexif()  # parsed on first use: damage must show here
        _decode_transparent_color(image, raw_mode)
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(f"not an image in any of the formats {', '.join(FORMATS)}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"too large: more than {MAX_PIXELS:,} pixels; scale it down") from error
    except Exception as error:  # Pillow's plugins raise whatever their parsers run into
        raise UserError(f"truncated or damaged image: {str(error) or repr(error)}") from error
    return image


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 (upright) where the file has none or an invalid one."""
    value = image.getexif().get(_EXIF_ORIENTATION, 1)
    return int(value) if value in range(1, 9) else 1


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of the image after its EXIF orientation is applied."""
    width, height = image.size
    return (height, width) if orientation(image) >= 5 else (width, height)


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UserError(
            f"too large: {width} x {height} is more than {MAX_PIXELS:,} pixels; scale it down"
        )
    if max(width, height) > MAX_SIDE:
        raise UserError(
            f"too large: {width} x {height} has a side above {MAX_SIDE:,} pixels; crop it"
        )


def _decode_transparent_color(image: Image.Image, raw_mode: str) -> None:
    """PNG's transparent color, which Pillow leaves as it is stored, in the range of the pixels."""
    color, decode = image.info.get("transparency"), _TO_8_BITS.get(raw_mode)
    if decode and isinstance(color, tuple):
        image.info["transparency"] = tuple(map(decode, color))
    elif decode and isinstance(color, int):
        image.info["transparency"] = decode(color)
