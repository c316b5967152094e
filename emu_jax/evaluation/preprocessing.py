"""From images of any size to the input of a published network, as its reference resizes them.

The conventions differ, and so do published figures:

    cropped    the shorter side resized, the central square cut out (CLIP, ImageReward, PickScore)
    squashed   both sides resized, whatever the aspect ratio (FD-DINOv2)
    centered   the central square cut out, then resized (CMMD)
    padded     the longer side resized, the rest black (HPS v2)

All are PIL's bicubic resizing, which filters before it shrinks; the first three round to 8 bits.
Inception's is :func:`emu_jax.nn.resizing.bilinear` in TensorFlow's convention.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

Images = Sequence[UInt8[np.ndarray, "_ _ 3"]]
Squares = UInt8[np.ndarray, "n s s 3"]


def normalized(
    x: Float[np.ndarray, "n h w 3"] | UInt8[np.ndarray, "n h w 3"],
    mean: Sequence[float],
    std: Sequence[float],
) -> Float[np.ndarray, "n h w 3"]:
    """Values of 0 to 255, divided by 255, then normalized per channel."""
    x = np.asarray(x, np.float32) / np.float32(255)
    return (x - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)


def cropped(images: Images, side: int) -> Squares:
    return np.stack([_crop(_resize_shorter(image, side), side) for image in images])


def squashed(images: Images, side: int) -> Squares:
    return np.stack([_resize(image, (side, side)) for image in images])


def centered(images: Images, side: int) -> Squares:
    squares = []
    for image in images:
        h, w, _ = image.shape
        short = min(h, w)
        top, left = (h - short) // 2, (w - short) // 2
        square = image[top : top + short, left : left + short]
        squares.append(_resize(square, (side, side)))
    return np.stack(squares)


def padded(images: Images, side: int) -> Float[np.ndarray, "n s s 3"]:
    """Values of 0 to 255 that are not rounded: the reference resizes floats."""
    squares = np.zeros((len(images), side, side, 3), np.float32)
    for square, image in zip(squares, images, strict=True):
        scale = side / max(image.shape[:2])
        h, w = (round(n * scale) for n in image.shape[:2])
        channels = [Image.fromarray(c.astype(np.float32)) for c in np.moveaxis(image, -1, 0)]
        if scale != 1:
            channels = [c.resize((w, h), Image.Resampling.BICUBIC) for c in channels]
        top, left = (side - h) // 2, (side - w) // 2
        square[top : top + h, left : left + w] = np.stack([np.asarray(c) for c in channels], -1)
    return squares


def _resize(image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "i j 3"]:
    h, w = size
    return np.asarray(Image.fromarray(image).resize((w, h), Image.Resampling.BICUBIC))


def _resize_shorter(image: UInt8[np.ndarray, "h w 3"], side: int) -> UInt8[np.ndarray, "i j 3"]:
    h, w, _ = image.shape
    short, long = min(h, w), max(h, w)
    other = int(side * long / short)
    return _resize(image, (side, other) if h <= w else (other, side))


def _crop(image: UInt8[np.ndarray, "h w 3"], side: int) -> UInt8[np.ndarray, "s s 3"]:
    top, left = (round((n - side) / 2) for n in image.shape[:2])
    return image[top : top + side, left : left + side]
