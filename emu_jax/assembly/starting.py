"""Drawing from an image, and around a part of it that stays.

An image of any size is resized so that it fits into the shape among a model's own whose aspect
ratio is nearest, and the rest of that shape is padded with the image's edges. What is drawn is cut
to the image again:

- with nothing that stays, the result has the size that was drawn;
- with a part that stays, it has the size of the image, and this part is copied from the image bit
  for bit, except along its edges.

A mask is the share of each pixel that stays, 0 to 1. Inside its edge the share rises from 0 to 1
over a few pixels, so that no seam is visible (:func:`feathered`): for a pixel that is d pixels from
the nearest one that does not stay, and a feather of f pixels,

    share = min(mask, d / (f + 1))                                                         (1)

The network samples in its own space, where a position stays by the mean over its pixels
(``Generation.start_of``).
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from etils import epath
from jaxtyping import Float, UInt8
from PIL import Image
from scipy.ndimage import distance_transform_edt

from emu_jax.assembly.previews import Previews
from emu_jax.data.buckets import Shape, assign
from emu_jax.data.decode import open_image
from emu_jax.data.images import Color, compose, upright
from emu_jax.errors import UserError

FEATHER = 0.01  # of the shorter side
_WHITE: Color = (255, 255, 255)

Pixels = UInt8[np.ndarray, "h w 3"]
Share = Float[np.ndarray, "h w"]


@dataclass(frozen=True, eq=False)
class Start:
    """An image of the size that is drawn, the share of its pixels that stays, and a strength."""

    image: UInt8[np.ndarray, "h w 3"]
    keep: Float[np.ndarray, "h w"]
    strength: float = 1.0

    @property
    def size(self) -> Shape:
        return self.image.shape[0], self.image.shape[1]

    def skipped(self, steps: int) -> int:
        """How many of the sampling steps are left out; at least one remains."""
        return steps - max(1, round(self.strength * steps))

    def shrunk(self, factor: int) -> "Start":
        """The same at 1 / ``factor`` of the size."""
        height, width = self.size
        shape = (height // factor, width // factor)
        return replace(self, image=resized(self.image, shape), keep=resized(self.keep, shape))


@dataclass(frozen=True)
class Placement:
    """An image has the size ``inside``, in the middle of the ``shape`` that is drawn."""

    inside: Shape
    shape: Shape

    def lay(self, image: UInt8[np.ndarray, "_ _ 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """The image in its place, and its edges around."""
        return np.pad(resized(image, self.inside), (*self._padding, (0, 0)), "edge")

    def lay_mask(self, mask: Float[np.ndarray, "_ _"] | None) -> Share:
        """The share that stays: nothing without a mask, nor around the image."""
        inside = np.zeros(self.inside) if mask is None else resized(mask, self.inside)
        return np.pad(inside.astype(np.float32), self._padding)

    def cut(self, drawn: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "_ _ 3"]:
        """The image's part of what was drawn."""
        (top, _), (left, _) = self._padding
        return drawn[top : top + self.inside[0], left : left + self.inside[1]]

    @property
    def _padding(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Pixels (above, below) and (left, right)."""
        (above, left) = ((n - m) // 2 for n, m in zip(self.shape, self.inside, strict=True))
        below, right = self.shape[0] - self.inside[0] - above, self.shape[1] - self.inside[1] - left
        return (above, below), (left, right)


@dataclass(frozen=True, eq=False)
class StartImage:
    """An image to draw from.

    ``strength``, 0 to 1, is the share of the sampling steps that are taken: 0 returns the image, 1
    starts from noise. ``keep`` is the share of each pixel that stays; None: nothing does, and the
    result has the size that is drawn. ``feather`` in pixels; None: 1 % of the shorter side.
    """

    image: UInt8[np.ndarray, "h w 3"]
    strength: float = 0.6
    keep: Float[np.ndarray, "h w"] | None = None
    feather: float | None = None

    def __post_init__(self):
        if not 0 <= self.strength <= 1:
            raise UserError(f"The strength is {self.strength}; use a value from 0 to 1.")
        if self.keep is not None and self.keep.shape != self.image.shape[:2]:
            raise UserError(
                f"The mask has {self.keep.shape[1]} x {self.keep.shape[0]} pixels, but the image "
                f"has {self.image.shape[1]} x {self.image.shape[0]}; make them equal."
            )

    @property
    def recipe(self) -> dict[str, Any]:
        """What a result depends on."""
        digest = hashlib.sha256(self.image.tobytes())
        if self.keep is not None:
            digest.update(np.asarray(self.keep, np.float32).tobytes())
        return {
            "pixels": digest.hexdigest(),
            "shape": self.image.shape,
            "keeps": self.keep is not None,
            "strength": self.strength,
            "feather": self.feather,
        }

    def widened(self, margin: float) -> "StartImage":
        """The image with white room around it, which is drawn: ``margin`` is a share of its longer
        side.
        """
        around = round(margin * max(self.image.shape[:2]))
        keep = np.zeros(self.image.shape[:2], np.float32) if self.keep is None else self.keep
        padding = ((around, around), (around, around), (0, 0))
        image = np.pad(self.image, padding, constant_values=255)
        return replace(self, image=image, keep=np.pad(keep, around))

    def placement(self, model: "Draws", size: Shape | None = None) -> Placement:
        """Where ``model`` draws it: so that it fits into ``size``, by default into the shape of the
        model whose aspect ratio is nearest.
        """
        if size:  # sides that the model does not have are padded, and cut off again
            inside = self._fitted(size)
            down, across = (-(-n // model.multiple) * model.multiple for n in inside)
            return Placement(inside, (down, across))
        height, width = self.image.shape[:2]
        (index,) = assign(np.array([width]), np.array([height]), model.shapes)
        shape = model.shapes[index]
        return Placement(self._fitted(shape), shape)

    def placed(self, placement: Placement) -> Start:
        """The image and its mask in their place."""
        keep = placement.lay_mask(self.keep)
        return Start(placement.lay(self.image), keep, self.strength)

    def restored(
        self, drawn: UInt8[np.ndarray, "h w 3"], placement: Placement
    ) -> UInt8[np.ndarray, "_ _ 3"]:
        """The result, from an image that was drawn from :meth:`placed`."""
        drawn = placement.cut(drawn)
        if self.keep is None:
            return drawn
        drawn = resized(drawn, self.image.shape[:2])
        feather = FEATHER * min(drawn.shape[:2]) if self.feather is None else self.feather
        return blended(self.image, drawn, feathered(self.keep, feather))

    def _fitted(self, shape: Shape) -> Shape:
        """The largest size of the image's aspect ratio inside ``shape``."""
        height, width = self.image.shape[:2]
        scale = min(shape[0] / height, shape[1] / width)
        return max(1, round(height * scale)), max(1, round(width * scale))


class Draws(Protocol):
    """A generator or a cascade."""

    @property
    def shapes(self) -> list[Shape]: ...

    @property
    def multiple(self) -> int: ...

    def draw_each(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        negative: str = "",
        *,
        size: Shape | None = None,
        start: Start | None = None,
        images: Mapping[str, Sequence[Any]] | None = None,
        previews: Previews | None = None,
    ) -> Iterator[Any]: ...


def draw_from(
    model: Draws,
    source: StartImage | None,
    prompts: Sequence[str],
    seeds: Sequence[int],
    negative: str = "",
    size: Shape | None = None,
    *,
    images: Mapping[str, Sequence[Any]] | None = None,
    previews: Previews | None = None,
) -> Iterator[UInt8[np.ndarray, "_ _ 3"]]:
    """One image for each (prompt, seed), in order; with a ``source`` drawn from it.

    ``size`` is the height and width in pixels, and with a source those that its result fits into;
    by default the model's own. ``images`` condition the model, and ``previews`` are shown during
    sampling (:meth:`Drawer.draw_with`).
    """
    if source is None:
        more: dict[str, Any] = dict(images=images, previews=previews)
        yield from model.draw_each(prompts, seeds, negative, size=size, **more)
        return
    placement = source.placement(model, size)
    if source.strength == 0:
        same = source.image if source.keep is not None else resized(source.image, placement.inside)
        yield from (same for _ in prompts)
        return
    if previews:
        previews = previews.through(lambda image: source.restored(image, placement))
    more = dict(start=source.placed(placement), images=images, previews=previews)
    for drawn in model.draw_each(prompts, seeds, negative, **more):
        yield source.restored(drawn, placement)


def feathered(mask: Float[np.ndarray, "h w"], feather: float) -> Float[np.ndarray, "h w"]:
    """Equation (1)."""
    inside = mask >= 0.5
    if inside.all():  # the edge of the image is no edge of the mask
        return mask
    return np.minimum(mask, distance_transform_edt(inside) / (feather + 1)).astype(np.float32)


def blended(
    image: UInt8[np.ndarray, "h w 3"],
    other: UInt8[np.ndarray, "h w 3"],
    share: Float[np.ndarray, "h w"],
) -> UInt8[np.ndarray, "h w 3"]:
    """``share`` of an image and the rest of another; where it is 1, the image's own values."""
    share = share[..., None]
    mixed = np.rint(share * image + (1 - share) * other).astype(np.uint8)
    return np.where(share >= 1, image, mixed)


def read_image(file: epath.Path) -> Image.Image:
    """An upright image from a file, in the file's mode."""
    try:
        return upright(open_image(file.read_bytes()))
    except UserError as error:
        raise UserError(f"{file}: {error}.") from error


def open_start(
    file: str, keep: str = "", strength: float = 0.6, feather: float | None = None
) -> StartImage:
    """The start that an image file and the file of a mask are."""
    image = to_pixels(read_image(epath.Path(file)))
    return StartImage(image, strength, read_mask(epath.Path(keep)) if keep else None, feather)


def read_mask(file: epath.Path) -> Float[np.ndarray, "h w"]:
    """The share that a gray image gives: white stays, black does not."""
    return np.asarray(compose(read_image(file), (0, 0, 0)).convert("L"), np.float32) / 255


def to_pixels(image: Image.Image, background: Color = _WHITE) -> UInt8[np.ndarray, "h w 3"]:
    """RGB values, on a background where the image is transparent."""
    return np.asarray(compose(image, background))


def resized(values: np.ndarray, shape: Shape) -> np.ndarray:
    """An image (Lanczos) or a mask (box filter where it is reduced, else bilinear)."""
    if values.shape[:2] == tuple(shape):
        return values
    across = (shape[1], shape[0])
    if values.ndim == 3:
        return np.asarray(Image.fromarray(values).resize(across, Image.Resampling.LANCZOS))
    image = Image.fromarray(np.asarray(values, np.float32))
    return np.asarray(image.resize(across, Image.Resampling.BILINEAR))
