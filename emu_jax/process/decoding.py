"""Parallel decoding: a sampler of the masking process that samples many tokens in one step.

At time t the network gives logits for every token. A code is sampled for each masked token, and the
samples are ranked by

    confidence = log p(sampled) + temperature s g,   g ~ Gumbel(0, 1)                      (1)

The least confident ones are masked again. Of the N tokens to be sampled in total, with n masked at
t,

    min(floor(N r(s)), n - 1)                                                              (2)

are masked at s (r: the rate of the masking process). On a grid of T equal steps these are
floor(N cos(pi/2 (i + 1)/T)) after step i, and none after the last. The temperature falls with s:
early steps choose positions nearly at random, the last steps by confidence alone. Tokens that are
not masked never change.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from emu_jax.errors import UserError
from emu_jax.process.masking import MaskingProcess, lowest
from emu_jax.process.noise import Keys, fold_in, gumbel
from emu_jax.process.protocol import Sampler


@dataclass(frozen=True)
class ParallelDecoding(Sampler):
    """Equations (1) and (2). The memory is N of each row, 0 before the first step.

    Known tokens are in place before the first step. That step therefore computes N: the number of
    masked tokens at its t, divided by r(t).
    """

    temperature: float = 4.0

    def __post_init__(self):
        if self.temperature < 0:
            raise UserError(f"sampling.temperature is {self.temperature}; use 0 or more.")

    def init(self, x: Int[Array, "b *d"]) -> Float[Array, " b"]:
        return jnp.zeros(x.shape[:1])

    def step(
        self,
        predict: Callable[[Int[Array, "b *d"], Float[Array, ""]], Float[Array, "b *d k"]],
        process: MaskingProcess,
        x: Int[Array, "b *d"],
        memory: Float[Array, " b"],
        t: Float[Array, ""],
        s: Float[Array, ""],
        key: Keys,
    ) -> tuple[Int[Array, "b *d"], Float[Array, " b"]]:
        logits = predict(x, t)
        sampled = jnp.argmax(logits + gumbel(fold_in(key, 0), logits.shape), axis=-1)
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), sampled[..., None], axis=-1)[..., 0]
        confidence = log_p + self.temperature * s * gumbel(fold_in(key, 1), x.shape)

        masked = x == process.mask
        now = jnp.sum(masked, axis=tuple(range(1, x.ndim)))
        total = jnp.where(memory > 0, memory, now / process.rate(t))
        left = jnp.maximum(jnp.minimum(process.masked_count(total, s), now - 1), 0)
        again = lowest(jnp.where(masked, confidence, jnp.inf), left)
        return jnp.where(masked & ~again, sampled.astype(x.dtype), x), total
