"""Learning a reward from preferences (Bradley and Terry 1952): of two images for one prompt, people
say which is better.

With p = 1 where the image is preferred, 0 where the other one is and 1/2 for a tie,

    L = -E [p log sigma(r(x, c) - r(x', c)) + (1 - p) log sigma(r(x', c) - r(x, c))]       (1)

(ImageReward: Xu et al. 2023, arXiv:2304.05977, equation 1; UniFL: Zhang et al. 2024, arXiv
2404.05595, equation 2). A reward is of one dimension, of all pairs as one preference, or has an
output for every dimension. The last kind can also learn that images which differ in one dimension
only are equal in all others: with the score r_k of every other dimension k of a pair,

    L' = -E [log sigma(r_k(x, c) - r_k(x', c)) + log sigma(r_k(x', c) - r_k(x, c))] / 2    (2)
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, UInt8

from emu_jax.data.mixture import Column, Integers, Vocabulary
from emu_jax.nn.functional import Network, Params
from emu_jax.parallel.sharding import fetch
from emu_jax.tasks.augmenting import round_trip
from emu_jax.tasks.base import (
    NO_SETS,
    Batch,
    Context,
    Loss,
    Rows,
    RowSpec,
    Sets,
    Task,
    encoded_text,
    to_unit_range,
)
from emu_jax.tasks.codecs import Codec
from emu_jax.tasks.rewards import ALPHA, DEVIATION, MEAN, Reward
from emu_jax.text.encoder import TextEncoder

OTHER, DIMENSION = "other", "dimension"
VOTES = ("votes", "votes_other")
CODEC = "codec"  # the frozen autoencoder of round trips
_PREVIEWED = 16

Sums = dict[str, tuple[jax.Array, jax.Array]]


@dataclass(frozen=True, kw_only=True)
class Preferences(Task):
    """``reward`` scores images by the parameters of ``network``.

    ``dimensions`` are those that pairs have, none: rows do not say. ``dimension`` is the one that
    is learned; empty: all, as one preference, or with ``separate`` an output for each. Then
    ``indifference`` is the weight of equation (2).

    ``votes``: the majority decides p of equation (1), or p is the share of the votes; with "none"
    rows have no votes, and the image is always preferred.
    """

    reward: Reward
    network: Network
    encoders: Mapping[str, TextEncoder]
    dimensions: tuple[str, ...] = ()
    dimension: str = ""
    separate: bool = False
    indifference: float = 0.0
    votes: Literal["majority", "share", "none"] = "majority"
    codec: Codec | None = None
    round_trip: float = 0.0
    stream: str = "train"

    @property
    def outputs(self) -> tuple[str, ...]:
        """What each output is the reward of."""
        return self.dimensions if self.separate else (self.dimension,)

    @property
    def streams(self) -> dict[str, RowSpec]:
        columns: dict[str, Column] = {}
        if self.votes != "none":
            columns |= {name: Integers() for name in VOTES}
        if self.dimensions:
            columns[DIMENSION] = Vocabulary(self.dimensions, 1)
        return {self.stream: RowSpec(self.encoders, further=(OTHER,), columns=columns)}

    def init(self, key: jax.Array) -> tuple[Params, Params]:
        """The state is (1) of :mod:`emu_jax.tasks.rewards`; alpha is unknown before the end."""
        n = len(self.outputs)
        unknown = jnp.full(n, jnp.nan, jnp.float32)
        standard = {MEAN: jnp.zeros(n), DEVIATION: jnp.ones(n), ALPHA: unknown}
        return self.network.init(key), standard

    def loss(self, group: str, context: Context) -> Loss:
        """Equations (1) and (2), and the share of pairs whose preferred image has the higher
        score.
        """
        rows = context.batch[self.stream]
        images = self.images(rows)
        if self.codec:
            sent = 2 * round(self.round_trip * len(rows["image"]))
            images = round_trip(self.codec, context.frozen[CODEC], context.key, images, sent)
        scores = self.all_scores(context.params, context.frozen, rows, images)
        preferred = self.preferred(rows)
        losses, right = compared(self._of_dimension(scores, rows), preferred)
        decided = preferred != 0.5
        accuracy = jnp.sum(right * decided) / jnp.maximum(jnp.sum(decided), 1)
        loss, metrics = jnp.mean(losses), {"accuracy": accuracy}
        if self.indifference:
            ties = optax.sigmoid_binary_cross_entropy(scores[:, 0] - scores[:, 1], 0.5)
            metrics["indifference"] = jnp.mean(ties, where=~self._own(rows))
            loss += self.indifference * metrics["indifference"]
        return Loss(loss, context.state, metrics)

    def validate(self, context: Context) -> Sums:
        """Loss and accuracy of the pairs of its own dimension, and accuracy on every dimension; a
        tie is neither right nor wrong.
        """
        rows = context.batch[self.stream]
        scores = self.all_scores(context.params, context.frozen, rows, self.images(rows))
        preferred = self.preferred(rows)
        losses, right = compared(self._of_dimension(scores, rows), preferred)
        own = self._own(rows).any(-1) & rows["valid"]
        decided = rows["valid"] & (preferred != 0.5)
        found = {"loss": _sums(losses, own), "accuracy": _sums(right, own & decided)}
        for i, name in enumerate(self.dimensions):
            of_it = decided & (rows["columns"][DIMENSION][:, 0] == i)
            found[f"accuracy_{name}"] = _sums(right, of_it)
        return found

    def preview(self, context: Context) -> dict[str, UInt8[Array, "n h w2 3"]]:
        """Pairs side by side, as rows hold them."""
        rows = context.batch[self.stream]
        both = rows["image"][:_PREVIEWED], rows["further"][OTHER][:_PREVIEWED]
        return {"pairs": jnp.concatenate(both, 2)}

    def finish(
        self, context: Context, batches: Iterable[Batch], validation: Sets = NO_SETS
    ) -> Params:
        """Mean and deviation of the scores of all validation images of an output's dimension, and
        the mean standardized score of the preferred ones. Without such images they stay as they
        are.
        """

        @jax.jit
        def measured(context: Context) -> tuple[Array, ...]:
            rows = context.batch[self.stream]
            scores = self.all_scores(context.params, context.frozen, rows, self.images(rows))
            own = self._own(rows) & rows["valid"][:, None]
            return scores, self.preferred(rows), own

        found = [
            fetch(measured(context._replace(batch=batch)))
            for batches in validation.values()
            for batch in batches
        ]
        if not found:
            return context.state
        scores, preferred, own = (np.concatenate(parts) for parts in zip(*found, strict=True))
        standard = {name: np.array(context.state[name]) for name in (MEAN, DEVIATION, ALPHA)}
        for i in range(len(self.outputs)):
            pairs = scores[own[:, i], :, i].astype(np.float64)
            better = preferred[own[:, i]]
            chosen = np.concatenate([pairs[better > 0.5, 0], pairs[better < 0.5, 1]])
            if len(chosen) and pairs.std() > 0:
                standard[MEAN][i], standard[DEVIATION][i] = pairs.mean(), pairs.std()
                standard[ALPHA][i] = (chosen.mean() - pairs.mean()) / pairs.std()
        return {**context.state, **jax.tree.map(jnp.asarray, standard)}

    def _of_dimension(self, scores: Float[Array, "b 2 outputs"], rows: Rows) -> Float[Array, "b 2"]:
        """The scores by the output of each row's dimension."""
        if not self.separate:
            return scores[..., 0]
        chosen = rows["columns"][DIMENSION][:, :, None]
        return jnp.take_along_axis(scores, chosen, axis=-1)[..., 0]

    def all_scores(
        self,
        params: Params,
        frozen: Mapping[str, Params],
        rows: Rows,
        images: Float[Array, "n h w 3"],
    ) -> Float[Array, "b 2 outputs"]:
        """The scores of both images of every row, from :meth:`images`."""
        ((name, encoder),) = self.encoders.items()
        text = encoded_text(name, encoder, frozen, rows)
        text = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), text)
        found = self.reward.score(params, images, text)
        return found.reshape(-1, 2, found.shape[-1])

    def preferred(self, rows: Rows) -> Float[Array, " b"]:
        """p of equation (1)."""
        if self.votes == "none":
            return jnp.ones(len(rows["image"]))
        if self.votes == "majority":
            return (majority(rows) + 1) / 2
        image, other = (rows["columns"][name][:, 0].astype(jnp.float32) for name in VOTES)
        return jnp.where(image + other > 0, image / jnp.maximum(image + other, 1), 0.5)

    def _own(self, rows: Rows) -> Bool[Array, "b outputs"]:
        """Which rows are of the dimension of each output."""
        if not (self.dimension or self.separate):
            return jnp.ones((len(rows["image"]), 1), bool)
        numbers: Int[Array, " n"] = jnp.array([self.dimensions.index(x) for x in self.outputs])
        return rows["columns"][DIMENSION] == numbers

    def images(self, rows: Rows) -> Float[Array, "n h w 3"]:
        """Both images of the first row, of the second row, ..., in [-1, 1]."""
        both = jnp.stack([rows["image"], rows["further"][OTHER]], axis=1)
        return to_unit_range(both.reshape(-1, *both.shape[2:]))


def majority(rows: Rows) -> Float[Array, " b"]:
    """1 where more people prefer the image, -1 where more prefer the other one, 0 for a tie."""
    image, other = (rows["columns"][name][:, 0].astype(jnp.float32) for name in VOTES)
    return jnp.sign(image - other)


def compared(
    scores: Float[Array, "b 2"], preferred: Float[Array, " b"]
) -> tuple[Float[Array, " b"], Bool[Array, " b"]]:
    """Each pair's loss (1), and whether the preferred image has the higher score."""
    difference = scores[:, 0] - scores[:, 1]
    losses = optax.sigmoid_binary_cross_entropy(difference, preferred)
    return losses, difference * (preferred - 0.5) > 0


def _sums(values: Array, counted: Bool[Array, " b"]) -> tuple[jax.Array, jax.Array]:
    return jnp.sum(values * counted), jnp.sum(counted.astype(jnp.float32))
