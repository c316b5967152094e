"""Instance segmentation: SOLO, trained on images whose instances are known.

A row holds the image, its map of instances and the class of each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from emu_jax.data.mixture import Vocabulary
from emu_jax.nn.functional import Params
from emu_jax.nn.solo import Level
from emu_jax.tasks.augmenting import Reading
from emu_jax.tasks.base import (
    Context,
    Loss,
    Rows,
    RowSpec,
    to_pixels,
    to_unit_range,
)
from emu_jax.tasks.solo import Found, Instances, decode, losses, total

INSTANCES = "instances"
_PREVIEWED = 16


@dataclass(frozen=True, kw_only=True)
class Segmentation(Reading):
    """``network`` gives SOLO's levels; ``ranges`` are the sizes of objects at each of them.

    ``classes`` numbers the words of the manifest's column ``column``. An instance
    counts as found if its score is above ``score``. ``agnostic`` is that of
    :func:`emu_jax.tasks.solo.decode`.
    """

    column: str
    classes: Vocabulary
    ranges: Sequence[tuple[float, float]]
    score: float = 0.3
    agnostic: bool = False

    @property
    def streams(self) -> dict[str, RowSpec]:
        return {self.stream: RowSpec(further=(INSTANCES,), columns={self.column: self.classes})}

    def loss(self, group: str, context: Context) -> Loss:
        """Equation (1) of :mod:`emu_jax.tasks.solo`."""
        rows = context.batch[self.stream]
        image = self.augment(context, to_unit_range(rows["image"]))
        found = losses(self.levels(context.params, image), self.truth(rows), self.ranges)
        return Loss(total(found), context.state, found._asdict())

    def validate(self, context: Context) -> dict[str, tuple[jax.Array, jax.Array]]:
        """``count``: the number of instances is right; ``things``: so are their classes."""
        rows = context.batch[self.stream]
        truth, valid = self.truth(rows), rows["valid"].astype(jnp.float32)
        levels = self.levels(context.params, to_unit_range(rows["image"]))
        weighted = jax.vmap(
            lambda level, image, classes: total(
                losses(
                    jax.tree.map(lambda x: x[None], level),
                    Instances(image[None], classes[None]),
                    self.ranges,
                )
            )
        )(levels, truth.map, truth.classes)
        found = self.found(levels)
        expected = jax.nn.one_hot(truth.classes, len(self.classes.words)).sum(1)
        seen = (found.score > 0)[..., None] * jax.nn.one_hot(found.label, expected.shape[-1])
        seen = seen.sum(1)
        count = expected.sum(1) == seen.sum(1)
        things = jnp.all(expected == seen, axis=1)
        n = valid.sum()
        return {
            name: (jnp.sum(value * valid), n)
            for name, value in (("loss", weighted), ("count", count), ("things", things))
        }

    def preview(self, context: Context) -> dict[str, UInt8[Array, "n h w 3"]]:
        """Augmented images, and what is found in the images as they are."""
        image = to_unit_range(context.batch[self.stream]["image"][:_PREVIEWED])
        found = self.found(self.levels(context.params, image))
        return {
            "augmented": to_pixels(self.augment(context, image)),
            "instances": paint(to_pixels(image), found),
        }

    def levels(self, params: Params, image: Float[Array, "b h w 3"]) -> list[Level]:
        """The network's output for images in [-1, 1]."""
        return self.read(params, image)

    def asks(self, params: Params, image: Float[Array, "b h w 3"], rows: Rows) -> Float[Array, ""]:
        """Equation (1) of :mod:`emu_jax.tasks.solo` for images in [-1, 1] and what ``rows`` say."""
        return total(losses(self.levels(params, image), self.truth(rows), self.ranges))

    def found(self, levels: Sequence[Level]) -> Found:
        """The instances, at most twice as many as an image may have."""
        found = decode(levels, most=2 * self.classes.most, agnostic=self.agnostic)
        return found._replace(score=jnp.where(found.score > self.score, found.score, 0.0))

    def truth(self, rows: Rows) -> Instances:
        return Instances(rows["further"][INSTANCES], rows["columns"][self.column])


def paint(image: UInt8[Array, "b h w 3"], found: Found) -> UInt8[Array, "b h w 3"]:
    """The image in light gray, with the found instances in colors of their own, best on top."""
    h, w = image.shape[1:3]
    mask = jax.image.resize(found.mask, (*found.mask.shape[:2], h, w), "linear") > 0.5
    mask &= (found.score > 0)[..., None, None]
    gray = jnp.broadcast_to(image.mean(-1, keepdims=True), image.shape)
    covered = mask.any(1)
    first = jnp.argmax(mask, axis=1)
    colors = jnp.asarray(_COLORS)[first % len(_COLORS)]
    shown = jnp.where(covered[..., None], 0.6 * colors + 0.4 * gray, 0.3 * gray + 0.7 * 255)
    return shown.astype(jnp.uint8)


# Okabe and Ito's palette, which readers of all kinds of color vision can tell apart.
_COLORS = np.array(
    [
        (230, 159, 0),
        (86, 180, 233),
        (0, 158, 115),
        (213, 94, 0),
        (0, 114, 178),
        (204, 121, 167),
        (240, 228, 66),
    ],
    np.float32,
)
