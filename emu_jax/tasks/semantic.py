"""Semantic segmentation: DeepLab-V3, trained on images of which every pixel's label is known.

Labels are those of the further image ``mask``, or follow from the instances: 0 where there is none,
and the label of an instance's class elsewhere. With logits f and label y of the pixels whose label
is not 255, the loss is (UniFL, Zhang et al. 2024, arXiv 2404.05595, equation 9)

    L = mean over pixels of -log softmax(f)_y                                              (1)
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, UInt8

from emu_jax.data.mixture import Vocabulary
from emu_jax.nn.functional import Params
from emu_jax.tasks.augmenting import Reading
from emu_jax.tasks.base import Context, Loss, Rows, RowSpec, to_pixels, to_unit_range

MASK, INSTANCES = "mask", "instances"
IGNORED = 255
_PREVIEWED = 16


@dataclass(frozen=True)
class Labels:
    """The labels of ``mask``, or with ``classes`` those of instances: ``numbers[c]`` is the label
    of the class c, whose words are in the manifest's column ``column``.
    """

    column: str = ""
    classes: Vocabulary | None = None
    numbers: tuple[int, ...] = ()

    @property
    def rows(self) -> RowSpec:
        if self.classes is None:
            return RowSpec(further=(MASK,))
        return RowSpec(further=(INSTANCES,), columns={self.column: self.classes})

    def __call__(self, rows: Rows) -> Int[Array, "b h w"]:
        if self.classes is None:
            return rows["further"][MASK].astype(jnp.int32)
        # The last number is that of instances without a class: their pixels do not count.
        of_class = jnp.array([*self.numbers, IGNORED], jnp.int32)[rows["columns"][self.column]]
        of_instance = jnp.pad(of_class, ((0, 0), (1, 0)))
        of_instance = jnp.pad(of_instance, ((0, 0), (0, 1)), constant_values=IGNORED)
        numbers = rows["further"][INSTANCES].astype(jnp.int32)
        flat = jnp.minimum(numbers, of_instance.shape[1] - 1).reshape(numbers.shape[0], -1)
        return jnp.take_along_axis(of_instance, flat, axis=1).reshape(numbers.shape)


@dataclass(frozen=True, kw_only=True)
class SemanticSegmentation(Reading):
    """``network`` gives logits of every pixel."""

    labels: Labels

    @property
    def streams(self) -> dict[str, RowSpec]:
        return {self.stream: self.labels.rows}

    def loss(self, group: str, context: Context) -> Loss:
        """Equation (1)."""
        rows = context.batch[self.stream]
        image = self.augment(context, to_unit_range(rows["image"]))
        return Loss(self.asks(context.params, image, rows), context.state)

    def asks(self, params: Params, image: Float[Array, "b h w 3"], rows: Rows) -> Float[Array, ""]:
        """Equation (1) for images in [-1, 1] and the labels of ``rows``."""
        return cross_entropy(self.read(params, image), self.labels(rows))

    def validate(self, context: Context) -> dict[str, tuple[jax.Array, jax.Array]]:
        """``loss`` is that of pixels, ``right`` the share of pixels of the right label, and
        ``objects`` that of pixels whose label is not 0.
        """
        rows = context.batch[self.stream]
        logits = self.read(context.params, to_unit_range(rows["image"])).astype(jnp.float32)
        labels = jnp.where(rows["valid"][:, None, None], self.labels(rows), IGNORED)
        counted = labels != IGNORED
        each = _each(logits, labels)
        right = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
        objects = counted & (labels > 0)
        return {
            "loss": (jnp.sum(each * counted), jnp.sum(counted)),
            "right": (jnp.sum(right * counted), jnp.sum(counted)),
            "objects": (jnp.sum(right * objects), jnp.sum(objects)),
        }

    def preview(self, context: Context) -> dict[str, UInt8[Array, "n h w 3"]]:
        """Augmented images, and the labels found in the images as they are."""
        image = to_unit_range(context.batch[self.stream]["image"][:_PREVIEWED])
        found = jnp.argmax(self.read(context.params, image), axis=-1)
        return {
            "augmented": to_pixels(self.augment(context, image)),
            "labels": jnp.asarray(_COLORS)[found % len(_COLORS)],
        }


def cross_entropy(logits: Float[Array, "b h w c"], labels: Int[Array, "b h w"]) -> Float[Array, ""]:
    """Equation (1), in fp32; 0 if no pixel counts."""
    counted = labels != IGNORED
    total = jnp.sum(_each(logits.astype(jnp.float32), labels) * counted)
    return total / jnp.maximum(jnp.sum(counted), 1)


def _each(logits: Float[Array, "b h w c"], labels: Int[Array, "b h w"]) -> Float[Array, "b h w"]:
    chosen = jnp.where(labels == IGNORED, 0, labels)
    return optax.softmax_cross_entropy_with_integer_labels(logits, chosen)


# Label 0 is black; the others have the hues of 255 places of a circle, a golden ratio apart.
_TURN = (np.arange(255) * 0.618)[:, None] + np.array([0, 1 / 3, 2 / 3])
_COLORS = np.concatenate([np.zeros((1, 3)), 127.5 + 115 * np.cos(2 * np.pi * _TURN)]).astype(
    np.uint8
)
