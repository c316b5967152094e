"""Further images that belong to an image: a mask, an edge map, another version of it.

A record may hold one of each name of `FURTHER`. They lie in the data set's splits of these names,
record i beside image i, so that a stream that needs none reads none. The manifest has a column of
each name that the data set holds: the sha256 of the stored bytes, empty where a record has none.
So `mask != ''` selects the records that have a mask.

Labels are numbers: 8-bit gray values or palette indices, of exactly the image's size, resized by
nearest neighbor. The others are images of the same aspect ratio, of any size.

The images of `COMPUTED` lie in no data set: they are computed from the image itself, in the view
that a row shows.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from emu_jax.data.buckets import Shape
from emu_jax.data.canny import canny
from emu_jax.data.decode import open_image
from emu_jax.data.images import Color, View, compose, upright
from emu_jax.errors import UserError

# Name -> whether it consists of labels.
FURTHER = {
    "mask": True,  # classes, or foreground and background
    "instances": True,  # 0: background; i: instance i
    "edges": False,
    "depth": False,
    "segmentation": False,  # in colors
    "low_resolution": False,
    "before": False,  # an edit
    "other": False,  # of a pair, such as the version that people did not prefer
}
# Name -> what makes it of the image's pixels.
COMPUTED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "image": lambda pixels: pixels,  # where a row has its latents alone
    "canny": canny,
}
NAMES = (*FURTHER, *COMPUTED)


def prepare_further(
    data: bytes, name: str, view: View, background: Color = (255, 255, 255)
) -> UInt8[np.ndarray, "h w *c"]:
    """A further image in its image's view: labels [h, w], others [h, w, 3]. Of a computed one
    `data` is the image.
    """
    if name in COMPUTED:
        return COMPUTED[name](view.apply(compose(upright(open_image(data)), background)))
    return view.apply(decode_further(data, name, background), labels=FURTHER[name])


def check_further(data: bytes, name: str, size: Shape) -> None:
    """Raises UserError unless this is a further image for an image of (height, width)."""
    try:
        image = decode_further(data, name, (255, 255, 255))
    except (OSError, ValueError) as error:  # Pillow's, for modes that it cannot convert
        raise UserError(f"its pixels are not supported: {error}") from error
    (height, width), own = size, f"{image.width} x {image.height}"
    if FURTHER[name] and image.size != (width, height):
        raise UserError(f"its size is {own}, that of its image {width} x {height}")
    if abs(image.width * height / width - image.height) > 1:
        raise UserError(f"its size is {own}, another aspect ratio than {width} x {height}")


def require_names(names: Sequence[str]) -> None:
    """Raises UserError for a name that no further image has."""
    for name in names:
        if name not in NAMES:
            raise UserError(f"There is no further image {name!r}; use {', '.join(NAMES)}.")


def is_labels(name: str) -> bool:
    """Whether the further image consists of labels."""
    return FURTHER.get(name, False)


def decode_further(data: bytes, name: str, background: Color = (255, 255, 255)) -> Image.Image:
    """The upright image: of mode L for labels, else RGB."""
    image = upright(open_image(data))
    return _labels(image) if FURTHER[name] else compose(image, background)


def _labels(image: Image.Image) -> Image.Image:
    """The labels as an image of mode L."""
    if image.mode == "1":
        return image.convert("L")
    if not image.mode.startswith(("L", "P", "I", "RGB")):
        raise UserError(f"its pixels have the mode {image.mode}; labels are gray values")
    values = np.asarray(image)
    if values.ndim == 3:  # gray values stored as colors, as many programs do
        image = image.convert("RGBA")
        *colors, alpha = np.moveaxis(np.asarray(image), -1, 0)
        if any(np.any(color != colors[0]) for color in colors) or np.any(alpha != 255):
            raise UserError("it has colors or transparency; labels are gray values")
        values = colors[0]
    if values.min() < 0 or values.max() > 255:
        raise UserError(f"it has the label {int(values.max())}; labels are 0 to 255")
    return Image.fromarray(np.ascontiguousarray(values.astype(np.uint8)))
