"""Parallel decoding: a sampler of the masking process that names many tokens at a time.

At time t the network gives logits for every token. Each masked one draws its code from them,
and the draws are compared by

    confidence = log p(drawn) + temperature s g,   g ~ Gumbel(0, 1)                        (1)

The least confident ones are masked again, so many that of the N tokens that were to be drawn

    min(floor(N r(s)), masked at t - 1)                                                    (2)

are left at s (r: the masking process's rate): on a grid of T equal steps, floor(N cos(pi/2
(i + 1)/T)) after step i, and none after the last. The temperature falls with s: early steps choose
nearly any place, the last by confidence alone. Tokens that are not masked are never touched.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from emu_jax.errors import UserError
from emu_jax.process.masking import MaskingProcess, lowest
from emu_jax.process.noise import fold_in, gumbel


@dataclass(frozen=True)
class ParallelDecoding:
    """(1) and (2). The memory is N of each row, 0 before the first step.

    What is known of a picture is put in place before the first step, which therefore counts N:
    the masks at its t, over r(t).
    """

    temperature: float = 4.0

    def __post_init__(self):
        if self.temperature < 0:
            raise UserError(f"the temperature of decoding is at least 0, not {self.temperature}")

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
        key: jax.Array,
    ) -> tuple[Int[Array, "b *d"], Float[Array, " b"]]:
        logits = predict(x, t)
        drawn = jnp.argmax(logits + gumbel(fold_in(key, 0), logits.shape), axis=-1)
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), drawn[..., None], axis=-1)[..., 0]
        confidence = log_p + self.temperature * s * gumbel(fold_in(key, 1), x.shape)

        masked = x == process.mask
        now = jnp.sum(masked, axis=tuple(range(1, x.ndim)))
        total = jnp.where(memory > 0, memory, now / process.rate(t))
        left = jnp.maximum(jnp.minimum(process.left(total, s), now - 1), 0)
        again = lowest(jnp.where(masked, confidence, jnp.inf), left)
        return jnp.where(masked & ~again, drawn.astype(x.dtype), x), total
