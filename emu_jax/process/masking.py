"""The masking process (Muse, Chang et al. 2023): tokens become [MASK], and a network predicts them.

An image is N tokens, each one of K codes; [MASK] has the id K. At time t a share

    r(t) = sin(pi t / 2)                                                                   (1)

of the tokens, at random positions, is masked. t is uniform in training, which is the paper's
cos(pi u / 2) with u = 1 - t; the mean of r is 2 / pi = 0.64. In a row round(N r) tokens are masked,
at least one.

Every masked token has the same weight. A row with n masked tokens of mean cross-entropy c has the
loss

    n / (N 2/pi) c                                                                         (2)

Its mean over rows is the sum over masked tokens divided by their expected, not their actual,
number: so means over micro-batches and devices may be averaged.

A network needs no timestep input: it sees how many tokens are masked.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from emu_jax.process.noise import Keys, gumbel, split, uniform
from emu_jax.process.protocol import Corrupted, Time, Transform

MEAN_RATE = 2 / jnp.pi
# In fp32 a product that is a whole number may be rounded to just below it.
_SLACK = 1e-3


@dataclass(frozen=True)
class MaskingProcess:
    """Equation (1) for tokens 0 to ``codes`` - 1."""

    codes: int
    bounds: tuple[float, float] = (0.0, 1.0)

    @property
    def mask(self) -> int:
        """The id of [MASK]."""
        return self.codes

    def rate(self, t: Float[Array, "*t"] | float) -> Float[Array, "*t"]:
        """Equation (1); exactly 0 and 1 at the ends."""
        return jnp.sin(jnp.pi / 2 * jnp.asarray(t, jnp.float32))

    def masked_count(
        self, tokens: Float[Array, " b"] | int, t: Time
    ) -> Int[Array, " b"] | Int[Array, ""]:
        """How many of ``tokens`` are masked at t in sampling: N r, rounded down."""
        return jnp.floor(tokens * self.rate(t) + _SLACK).astype(jnp.int32)

    def corrupt(self, key: Keys, x0: Int[Array, "b *d"], t: Time | None = None) -> Corrupted:
        """A training example of every row; t is random unless given. One key, or one per row."""
        key_t, key_order = split(key, 2)
        rows, tokens = x0.shape[0], _tokens(x0)
        if t is None:
            t = uniform(key_t, (rows,))
        t = jnp.broadcast_to(jnp.asarray(t, jnp.float32), (rows,))
        count = jnp.maximum(1, jnp.round(tokens * self.rate(t)).astype(jnp.int32))
        x = self._masked(key_order, x0, count)
        return Corrupted(x, t, self.timestep_input(t), x0, count / (tokens * MEAN_RATE))

    def loss(self, output: Float[Array, "b *d k"], corrupted: Corrupted) -> Float[Array, " b"]:
        """Equation (2) of logits, in fp32."""
        log_p = jax.nn.log_softmax(jnp.asarray(output, jnp.float32))
        right = jnp.take_along_axis(log_p, corrupted.target[..., None], axis=-1)[..., 0]
        whole = tuple(range(1, right.ndim))
        mean = jnp.mean(-right, axis=whole, where=corrupted.x == self.mask)
        return corrupted.weight * mean

    def split_output(self, output: Float[Array, "b *d k"]) -> tuple[Float[Array, "b *d k"], None]:
        """Guidance changes all logits."""
        return output, None

    def timestep_input(self, t: Float[Array, "*t"]) -> Float[Array, "*t"]:
        """1000 t."""
        return 1000 * jnp.asarray(t, jnp.float32)

    def predict(
        self,
        output: Float[Array, "b *d k"],
        x: Int[Array, "b *d"],
        t: Time,
        transform: Transform | None = None,
    ) -> Float[Array, "b *d k"]:
        """The logits, in fp32."""
        logits = jnp.asarray(output, jnp.float32)
        return logits if transform is None else transform(logits)

    def clean_data(
        self, prediction: Float[Array, "b *d k"], x: Int[Array, "b *d"]
    ) -> Int[Array, "b *d"]:
        """The most probable token wherever x is masked."""
        best = jnp.argmax(prediction, axis=-1).astype(jnp.int32)
        return jnp.where(x == self.mask, best, x)

    def prior(self, key: Keys, shape: Sequence[int]) -> Int[Array, "b *d"]:
        """All tokens masked, for any key."""
        return jnp.full(shape, self.mask, jnp.int32)

    def sample_forward(self, key: Keys, x0: Int[Array, "b *d"], t: Time) -> Int[Array, "b *d"]:
        """x0 with as many masks as sampling has at t. One key, or one per row."""
        count = jnp.broadcast_to(self.masked_count(_tokens(x0), t), x0.shape[:1])
        return self._masked(key, x0, count)

    def known_at(self, key: Keys, known: Int[Array, "b *d"], t: Time) -> Int[Array, "b *d"]:
        """Known tokens are never masked."""
        return known

    def held_at(self, keep: Float[Array, "..."], t: Time) -> Bool[Array, "..."]:
        """Only what stays entirely: a token that is not masked never changes."""
        return keep >= 1

    def _masked(
        self, key: Keys, x0: Int[Array, "b *d"], count: Int[Array, " b"]
    ) -> Int[Array, "b *d"]:
        """x0 with ``count`` tokens of each row masked, all positions equally likely."""
        return jnp.where(lowest(gumbel(key, x0.shape), count), self.mask, x0)


def lowest(x: Float[Array, "b *d"], count: Int[Array, " b"]) -> Bool[Array, "b *d"]:
    """True at the ``count`` smallest entries of each row."""
    flat = x.reshape(x.shape[0], -1)
    rank = jnp.argsort(jnp.argsort(flat, axis=-1), axis=-1)
    return (rank < count[:, None]).reshape(x.shape)


def _tokens(x: Int[Array, "b *d"]) -> int:
    return x.size // x.shape[0]
