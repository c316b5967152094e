"""The masking process (Muse, Chang et al. 2023): tokens turn into [MASK], and a network names them.

A picture is N tokens, each one of K codes; [MASK] is written as the number K. At time t a share

    r(t) = sin(pi t / 2)                                                                   (1)

of them, wherever they lie, is masked. t is uniform in training, which is the paper's cos(pi u / 2)
with u = 1 - t; its mean is 2 / pi = 0.64. Of a row round(N r) tokens are masked, at least one.

Every masked token counts the same. A row of n masked tokens, of mean cross-entropy c, has the loss

    n / (N 2/pi) c                                                                         (2)

whose mean over rows is the sum over masked tokens by their expected, not their drawn, number: so
that micro-batches and devices may be averaged.

A network needs not be told t: it sees how many tokens are masked.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from emu_jax.process.noise import gumbel
from emu_jax.process.protocol import Corrupted, Transform

MEAN_RATE = 2 / jnp.pi
# fp32 may put a product that is a whole number just under it.
_SLACK = 1e-3


@dataclass(frozen=True)
class MaskingProcess:
    """Equation (1) over tokens 0 to ``codes`` - 1."""

    codes: int
    bounds: tuple[float, float] = (0.0, 1.0)

    @property
    def mask(self) -> int:
        """The number that stands for [MASK]."""
        return self.codes

    def rate(self, t: Float[Array, "*b"] | float) -> Float[Array, "*b"]:
        """Equation (1); exactly 0 and 1 at the ends."""
        return jnp.sin(jnp.pi / 2 * jnp.asarray(t, jnp.float32))

    def left(
        self, tokens: Float[Array, "*b"] | int, t: Float[Array, "*b"] | float
    ) -> Int[Array, "*b"]:
        """How many of so many tokens are masked at t when pictures are drawn: N r rounded down."""
        return jnp.floor(tokens * self.rate(t) + _SLACK).astype(jnp.int32)

    def corrupt(
        self, key: jax.Array, x0: Int[Array, "b *d"], t: Float[Array, "*b"] | float | None = None
    ) -> Corrupted:
        """A training example of every row; t is drawn where not given."""
        key_t, key_order = jax.random.split(key)
        rows, tokens = x0.shape[0], _tokens(x0)
        if t is None:
            t = jax.random.uniform(key_t, (rows,))
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

    def split(self, output: Float[Array, "b *d k"]) -> tuple[Float[Array, "b *d k"], None]:
        """Logits, all of them."""
        return output, None

    def timestep_input(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        return 1000 * jnp.asarray(t, jnp.float32)

    def predict(
        self,
        output: Float[Array, "b *d k"],
        x: Int[Array, "b *d"],
        t: Float[Array, "*b"],
        transform: Transform | None = None,
    ) -> Float[Array, "b *d k"]:
        """The logits, in fp32."""
        logits = jnp.asarray(output, jnp.float32)
        return logits if transform is None else transform(logits)

    def prior(self, key: jax.Array, shape: Sequence[int]) -> Int[Array, "..."]:
        """Masks, whatever the key."""
        return jnp.full(shape, self.mask, jnp.int32)

    def diffuse(
        self, key: jax.Array, x0: Int[Array, "b *d"], t: Float[Array, "*b"] | float
    ) -> Int[Array, "b *d"]:
        """A picture with as many masks as drawing one has left at t; one key, or one for each row.

        A scalar t, or one for each row.
        """
        count = jnp.broadcast_to(self.left(_tokens(x0), t), x0.shape[:1])
        return self._masked(key, x0, count)

    def shown(
        self, key: jax.Array, known: Int[Array, "b *d"], t: Float[Array, ""]
    ) -> Int[Array, "b *d"]:
        """What is known is never masked."""
        return known

    def _masked(
        self, key: jax.Array, x0: Int[Array, "b *d"], count: Int[Array, " b"]
    ) -> Int[Array, "b *d"]:
        """``count`` tokens of each row masked, any of them as likely as any other."""
        return jnp.where(lowest(gumbel(key, x0.shape), count), self.mask, x0)


def lowest(x: Float[Array, "b *d"], count: Int[Array, " b"]) -> Bool[Array, "b *d"]:
    """Where each row's ``count`` smallest entries are."""
    flat = x.reshape(x.shape[0], -1)
    rank = jnp.argsort(jnp.argsort(flat, axis=-1), axis=-1)
    return (rank < count[:, None]).reshape(x.shape)


def _tokens(x: Int[Array, "b *d"]) -> int:
    return x.size // x.shape[0]
