"""Subjects cut out of images without a network, and what is made of them: drawings on a plain
background.

A background is plain if most of the pixels along the image's border have nearly one color. Then
it is the part with nearly that color that is connected with the border. What it encloses (the
white of an eye, the hole of a ring) belongs to the subject. Photographs have no such background.
"""

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

from emu_jax.errors import UserError

TOLERANCE = 30  # of 255 in every channel: above the noise of an autoencoder on white
_PLAIN = 0.65  # of the border: a subject may touch the rest
_SPECK = 0.04  # of the largest part; smaller ones are noise
_LEAST, _MOST = 0.005, 0.98  # of the image

Pixels = UInt8[np.ndarray, "h w 3"]
Mask = Bool[np.ndarray, "h w"]


def subject_on_plain(image: UInt8[np.ndarray, "h w 3"]) -> Bool[np.ndarray, "h w"]:
    """The subject on a plain background, without specks.

    Raises:
      UserError: the background is not plain, or there is nothing on it.
    """
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]]).astype(int)
    color = np.median(border, axis=0)
    share = (np.abs(border - color).max(-1) <= TOLERANCE).mean()
    if share < _PLAIN:
        raise UserError(
            f"the background is not plain: only {share:.0%} of the border has nearly one color"
        )
    near = np.abs(image - color).max(-1) <= TOLERANCE
    parts, _ = ndimage.label(near)
    edge = np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])
    subject = without_specks(~np.isin(parts, edge[edge > 0]))
    if not _LEAST <= subject.mean() <= _MOST:
        raise UserError(f"the subject covers {subject.mean():.1%} of the image")
    return subject


def without_specks(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """A mask without the parts that are much smaller than the largest one."""
    parts, number = ndimage.label(mask, np.ones((3, 3)))
    if not number:
        return mask
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return (sizes >= _SPECK * sizes.max())[parts] & mask


def part_at(mask: Bool[np.ndarray, "h w"], x: int, y: int) -> Bool[np.ndarray, "h w"]:
    """The connected part of a mask at a pixel.

    Raises:
      UserError: the pixel is outside.
    """
    parts, _ = ndimage.label(mask, np.ones((3, 3)))
    if not mask[y, x]:
        raise UserError(f"the pixel {x},{y} belongs to the background")
    return parts == parts[y, x]


def bounds(mask: Bool[np.ndarray, "h w"]) -> tuple[slice, slice]:
    """The rows and columns that a mask covers."""
    return ndimage.find_objects(mask.astype(np.uint8))[0]


def with_rim(
    image: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"], rim: float
) -> UInt8[np.ndarray, "h w 4"]:
    """The subject with a white rim of ``rim`` pixels around it, transparent elsewhere. Both edges
    are antialiased; the rim is rounded.
    """
    soft = ndimage.gaussian_filter(mask.astype(np.float32), 0.7)
    soft = np.where(mask, soft, np.minimum(soft, 0.5))[..., None]
    color = np.rint(soft * image + (1 - soft) * 255)
    alpha = 255 * _grown(mask, rim)
    return np.concatenate([color, np.rint(alpha)[..., None]], axis=-1).astype(np.uint8)


def _grown(mask: Bool[np.ndarray, "h w"], by: float) -> Float[np.ndarray, "h w"]:
    """The share of each pixel that is within ``by`` pixels of the mask."""
    return np.clip(by + 0.5 - ndimage.distance_transform_edt(~mask), 0, 1)
