"""A trained segmenter as a detector: the parser that reads generated images.

A parser of scenes and a published SOLO are the same task (configs/parser.py), so both open here.
"""

from collections.abc import Iterator, Mapping

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from emu_jax.assembly.segmentation import trained_segmentation
from emu_jax.checkpoint.foreign import blaming
from emu_jax.data.buckets import Shape, assign, make_buckets
from emu_jax.errors import UserError
from emu_jax.evaluation.clip_colors import ClipColors
from emu_jax.evaluation.contents import Asked, require_words
from emu_jax.evaluation.geneval import GenEval
from emu_jax.evaluation.instances import Colors, Images, Instance, hues
from emu_jax.tasks.base import to_unit_range
from emu_jax.tasks.solo import Found

SHIPPED = "builtin:parser_64"
Reader = tuple["Segmenter", Colors]


class Segmenter:
    """From a run's folder, an exported model or builtin:NAME; a detector of
    :mod:`emu_jax.evaluation.instances`.
    """

    @blaming("path")
    def __init__(self, path: str, batch_size: int = 32):
        task, weights, config = trained_segmentation(path)
        self.name, self.fingerprint = path, weights.fingerprint
        data = config.data
        side, step = data.image_size, data.bucket_step
        self._shapes = make_buckets(side, step) if data.buckets else [(side, side)]
        self._batch_size = batch_size
        self.words = task.classes.words
        self._params = {name: jax.numpy.asarray(value) for name, value in weights.tensors()}
        self._find = jax.jit(
            lambda params, images: task.found(task.levels(params, to_unit_range(images)))
        )

    def __call__(self, images: Images) -> list[list[Instance]]:
        """The instances of each image that the config's ``labeled.score`` counts, best first.

        Images of another size are resized (Lanczos); masks have the size of the image.
        """
        shapes = self._shapes_of(images)
        seen: dict[int, list[Instance]] = {}
        for shape in self._shapes:
            rows = [i for i, own in enumerate(shapes) if own == shape]
            for start in range(0, len(rows), self._batch_size):
                chosen = rows[start : start + self._batch_size]
                padded = chosen + chosen[-1:] * (self._batch_size - len(chosen))
                batch = np.stack([_resized(images[i], shape) for i in padded])
                found = jax.tree.map(np.asarray, self._find(self._params, batch))
                for k, i in enumerate(chosen):
                    one = Found(*(x[k] for x in found))
                    seen[i] = list(self._instances(one, _size(images[i])))
        return [seen[i] for i in range(len(images))]

    def _shapes_of(self, images: Images) -> list[Shape]:
        heights, widths = (np.array([x.shape[axis] for x in images], int) for axis in (0, 1))
        return [self._shapes[i] for i in assign(widths, heights, self._shapes)]

    def _instances(self, found: Found, shape: Shape) -> Iterator[Instance]:
        """Those with a score and a pixel, in an image's own size."""
        for score, label, mask in zip(*found, strict=True):
            large = _masked(mask, shape)
            if score > 0 and large.any():
                yield Instance(self.words[int(label)], float(score), large)


def open_reader(parser: str | None, asked: Mapping[int, Asked], weights: str = "") -> Reader | None:
    """What reads images of prompts that ask for something; None: nothing does.

    ``parser`` None: the shipped one for prompts of scenes. Colors of GenEval's prompts are read by
    CLIP, whose weights are in the folder ``weights``.

    Raises:
      UserError: the parser cannot read what the prompts ask for.
    """
    published = any(isinstance(one, GenEval) for one in asked.values())
    if parser is None:
        parser = SHIPPED if asked and not published else ""
    if not parser:
        return None
    if not asked:
        raise UserError(
            "--parser reads what prompts ask for, and these do not say it: use prompts with the "
            "columns kind and things, scenes/openmoji:CONDITION or geneval:FILE."
        )
    segmenter = Segmenter(parser)
    require_words(asked, segmenter)
    if not published:
        return segmenter, hues
    return segmenter, ClipColors(weights) if weights else ClipColors()


def _resized(image: UInt8[np.ndarray, "_ _ 3"], shape: Shape) -> UInt8[np.ndarray, "_ _ 3"]:
    if _size(image) == shape:
        return image
    return np.asarray(Image.fromarray(image).resize(_across(shape), Image.Resampling.LANCZOS))


def _masked(mask: np.ndarray, shape: Shape) -> np.ndarray:
    """A mask of 0 and 1 in another size: pixels of which more than half is inside."""
    soft = Image.fromarray(np.asarray(mask, np.float32))
    return np.asarray(soft.resize(_across(shape), Image.Resampling.BILINEAR)) > 0.5


def _size(image: UInt8[np.ndarray, "_ _ 3"]) -> Shape:
    return image.shape[0], image.shape[1]


def _across(shape: Shape) -> tuple[int, int]:
    """(width, height), as PIL takes it."""
    return shape[1], shape[0]
