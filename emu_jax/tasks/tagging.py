"""Tagging: which of some words apply to an image? A sigmoid for each word.

With logits f_w and t_w = 1 where the word w is in the row's column, else 0, the loss is

    L = mean over rows and words of [t_w softplus(-f_w) + (1 - t_w) softplus(f_w)]         (1)

so sigmoid(f_w) is the probability of the word. A tagger of faults (:mod:`emu_jax.data.faulty`)
judges a generator that rewards have taught: it has seen no preference.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, UInt8

from emu_jax.data.mixture import Vocabulary
from emu_jax.nn.functional import Params
from emu_jax.tasks.augmenting import Reading
from emu_jax.tasks.base import Context, Loss, Rows, RowSpec, to_pixels, to_unit_range

_PREVIEWED = 16


@dataclass(frozen=True, kw_only=True)
class Tagging(Reading):
    """``network`` gives a logit of each of the ``words``, which are in the column ``column``."""

    column: str
    words: Vocabulary

    @property
    def streams(self) -> dict[str, RowSpec]:
        return {self.stream: RowSpec(columns={self.column: self.words})}

    def loss(self, group: str, context: Context) -> Loss:
        """Equation (1)."""
        rows = context.batch[self.stream]
        image = self.augment(context, to_unit_range(rows["image"]))
        return Loss(jnp.mean(self._each(context.params, image, rows)[0]), context.state)

    def validate(self, context: Context) -> dict[str, tuple[jax.Array, jax.Array]]:
        """``loss`` (1), and for every word the mean ``accuracy`` on images with it and on those
        without it, as two figures: ``found_WORD`` and ``absent_WORD``.
        """
        rows = context.batch[self.stream]
        each, logits = self._each(context.params, to_unit_range(rows["image"]), rows)
        valid, wanted = rows["valid"], self._wanted(rows)
        sums = {"loss": (jnp.sum(jnp.mean(each, -1) * valid), jnp.sum(valid))}
        for i, word in enumerate(self.words.words):
            for name, of_it in (("found", wanted[:, i] > 0), ("absent", wanted[:, i] == 0)):
                right, counted = (logits[:, i] > 0) == (name == "found"), of_it & valid
                sums[f"{name}_{word}"] = (jnp.sum(right & counted), jnp.sum(counted))
        return {name: (total.astype(jnp.float32), n) for name, (total, n) in sums.items()}

    def preview(self, context: Context) -> dict[str, UInt8[Array, "n h w 3"]]:
        """Augmented images."""
        image = to_unit_range(context.batch[self.stream]["image"][:_PREVIEWED])
        return {"augmented": to_pixels(self.augment(context, image))}

    def _each(
        self, params: Params, image: Float[Array, "b h w 3"], rows: Rows
    ) -> tuple[Float[Array, "b words"], Float[Array, "b words"]]:
        """The terms of (1), and the logits."""
        logits = self.read(params, image).astype(jnp.float32)
        return optax.sigmoid_binary_cross_entropy(logits, self._wanted(rows)), logits

    def _wanted(self, rows: Rows) -> Float[Array, "b words"]:
        numbers = rows["columns"][self.column]  # -1: no word
        return jnp.max(jax.nn.one_hot(numbers, len(self.words.words)), axis=1)
