"""The subject of an image: the mask of what stays when the rest is drawn anew.

It comes from a mask file, from the image's own transparency, or from a segmenter: the plain
background of a drawing (``emu_jax.evaluation.cutting``), the colors inside a box
(``emu_jax.evaluation.grabcut``), Segment Anything by the folder of its weights, or a parser
(``emu_jax.assembly.segmenter``). A box or a click says which thing is meant.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from etils import epath
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from emu_jax.assembly.models import locate
from emu_jax.assembly.segmenter import Segmenter
from emu_jax.assembly.starting import read_mask, to_pixels
from emu_jax.checkpoint.foreign import read_json
from emu_jax.errors import UserError
from emu_jax.evaluation.cutting import part_at, subject_on_plain, without_specks
from emu_jax.evaluation.grabcut import cut_in_box
from emu_jax.evaluation.sam import SegmentAnything

_OPAQUE = 250  # of 255; an image with less somewhere says itself what its subject is


@dataclass(frozen=True)
class Subject:
    """How the subject of an image is found.

    ``box`` is (left, top, right, bottom) and ``click`` is (x, y), in pixels of the upright image.
    ``segmenter``: the folder of a Segment Anything model, a parser's run, exported model or
    builtin:NAME; empty: the image's transparency, its plain background, or the colors in the box.
    """

    mask: str = ""
    box: tuple[float, float, float, float] | None = None
    click: tuple[float, float] | None = None
    segmenter: str = ""

    def of(self, image: Image.Image, name: str) -> Float[np.ndarray, "h w"]:
        """The share of each pixel that belongs to the subject; ``name`` is for messages.

        Raises:
          UserError: it cannot be found, and what to do.
        """
        if self.mask:
            found = read_mask(epath.Path(self.mask))
            if found.shape != (image.height, image.width):
                raise UserError(
                    f"{self.mask} has {found.shape[1]} x {found.shape[0]} pixels, but {name} has "
                    f"{image.width} x {image.height}; make them equal."
                )
            return found
        self._require_inside(image, name)
        if image.has_transparency_data and not self.segmenter:
            alpha = np.asarray(image.convert("RGBA"))[..., 3]
            if alpha.min() < _OPAQUE:
                return self._chosen(alpha > 127, name) * alpha.astype(np.float32) / 255
        pixels = to_pixels(image)
        return self._segmented(pixels, name).astype(np.float32)

    def _segmented(self, pixels: UInt8[np.ndarray, "h w 3"], name: str) -> Bool[np.ndarray, "h w"]:
        if not self.segmenter:
            return self._without_network(pixels, name)
        if _is_sam(self.segmenter):
            if not (self.box or self.click):
                raise UserError(
                    f"{self.segmenter} cuts out what you point at: give --click=X,Y or "
                    "--box=LEFT,TOP,RIGHT,BOTTOM."
                )
            points = [self.click] if self.click else []
            found = SegmentAnything(self.segmenter)(pixels, points, self.box)
            if not found.any():
                raise UserError(f"{self.segmenter} finds nothing there in {name}: point elsewhere.")
            return without_specks(found)
        (seen,) = Segmenter(self.segmenter, batch_size=1)([pixels])
        if not seen:
            raise UserError(
                f"{self.segmenter} knows nothing that is in {name}: name another segmenter, or "
                "give --mask."
            )
        return self._chosen(np.any([one.mask for one in seen], axis=0), name)

    def _without_network(
        self, pixels: UInt8[np.ndarray, "h w 3"], name: str
    ) -> Bool[np.ndarray, "h w"]:
        try:
            found = subject_on_plain(pixels)
        except UserError as error:
            if self.box is None:
                raise UserError(
                    f"{name} cannot be cut out by itself: {error}. Give --box around the subject, "
                    "--mask, or --segmenter=FOLDER of a Segment Anything model."
                ) from None
            found = cut_in_box(pixels, self.box)
            if not found.any():
                raise UserError(
                    f"Nothing in the box differs in color from the rest of {name}: give --mask, or "
                    "--segmenter=FOLDER of a Segment Anything model."
                ) from None
        return without_specks(self._chosen(found, name))

    def _chosen(self, mask: Bool[np.ndarray, "h w"], name: str) -> Bool[np.ndarray, "h w"]:
        """What lies in the box and is connected with the click."""
        if self.box:
            left, top, right, bottom = (round(edge) for edge in self.box)
            inside = np.zeros_like(mask)
            inside[top:bottom, left:right] = True
            mask = mask & inside
        if self.click:
            try:
                mask = part_at(mask, int(self.click[0]), int(self.click[1]))
            except UserError as error:
                raise UserError(f"{name}: {error}; click on the subject.") from None
        if not mask.any():
            raise UserError(f"There is no subject of {name} in the box {self.box}.")
        return mask

    def _require_inside(self, image: Image.Image, name: str) -> None:
        corners = [self.click] if self.click else []
        if self.box:
            corners += [self.box[:2], (self.box[2] - 1, self.box[3] - 1)]
        for x, y in corners:
            if not (0 <= x < image.width and 0 <= y < image.height):
                raise UserError(
                    f"The pixel {x:g},{y:g} is outside {name}, which has {image.width} x "
                    f"{image.height} pixels."
                )


def _is_sam(path: str) -> bool:
    """Whether a folder is a published Segment Anything; a name that is no folder is a hub's."""
    if not Path(locate(path)).is_dir():
        return not path.startswith("builtin:") and "@" not in path
    config = Path(locate(path), "config.json")
    return config.is_file() and read_json(config).get("model_type") == "sam"
