"""The bottleneck between an autoencoder's encoder and decoder: Gaussian or vector-quantized.

A bottleneck creates the task's state. In training it turns moments into latents and returns a
penalty that is added to the loss. For evaluation it returns deterministic latents.
"""

from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from emu_jax.errors import UserError
from emu_jax.nn import autoencoder as gaussian
from emu_jax.nn import quantizer as vq
from emu_jax.nn.functional import Params
from emu_jax.tasks.base import Metrics
from emu_jax.tasks.codecs import CODEBOOK, LATENT_SCALE, LATENT_SHIFT

COUNT, TOTAL = "codebook/count", "codebook/total"


class Bottleneck(Protocol):
    def init(self, key: jax.Array) -> Params:
        """The initial state of the task."""
        ...

    def __call__(
        self, moments: Float[Array, "b h w m"], state: Params, key: jax.Array
    ) -> tuple[Float[Array, "b h w c"], Array, Params, Metrics]:
        """(latents, penalty, new state, scalars to log)."""
        ...

    def settled(self, moments: Float[Array, "b h w m"], state: Params) -> Float[Array, "b h w c"]:
        """Deterministic latents, for evaluation."""
        ...


@dataclass(frozen=True)
class GaussianBottleneck:
    """A sample from the Gaussian of the moments. The penalty is ``kl_weight`` x KL (nats per
    image).
    """

    channels: int
    kl_weight: float

    def init(self, key: jax.Array) -> Params:
        channels = (self.channels,)
        return {LATENT_SHIFT: jnp.zeros(channels), LATENT_SCALE: jnp.ones(channels)}

    def __call__(
        self, moments: Float[Array, "b h w m"], state: Params, key: jax.Array
    ) -> tuple[Float[Array, "b h w c"], Array, Params, Metrics]:
        kl = jnp.mean(gaussian.kl(moments))
        return gaussian.sample(moments, key), self.kl_weight * kl, state, {"kl": kl}

    def settled(self, moments: Float[Array, "b h w m"], state: Params) -> Float[Array, "b h w c"]:
        return gaussian.mean(moments)


@dataclass(frozen=True)
class Quantizer:
    """Vector quantization to the nearest of ``codes`` codes, which follow the encoder by the moving
    averages of ``emu_jax.nn.quantizer``.

    ``commitment`` weights the penalty, and ``decay`` is g in equation (2) of that module. A code
    used less than the share ``dead`` of an evenly used code is revived. ``frozen`` keeps the codes
    fixed, for fine-tuning a decoder.
    """

    channels: int
    codes: int
    commitment: float = 0.25
    decay: float = 0.99
    dead: float = 0.03
    frozen: bool = False

    def __post_init__(self):
        if self.dead <= 0:
            raise UserError(
                f"quantizer.dead is {self.dead}; use a value above 0, because a code that no "
                "latent is near must be revived."
            )
        if not 0 <= self.decay < 1:
            raise UserError(
                f"quantizer.decay is {self.decay}; use a value of at least 0 and below 1."
            )

    def init(self, key: jax.Array) -> Params:
        return _state(vq.fresh_codebook(key, self.codes, self.channels))

    def __call__(
        self, moments: Float[Array, "b h w c"], state: Params, key: jax.Array
    ) -> tuple[Float[Array, "b h w c"], Array, Params, Metrics]:
        ids = vq.nearest(state[CODEBOOK], moments)
        code = vq.lookup(state[CODEBOOK], ids)
        distance = vq.commitment(moments, code)
        metrics = {"commitment": distance, "perplexity": vq.perplexity(ids, self.codes)}
        if not self.frozen:
            codebook = vq.Codebook(state[CODEBOOK], state[COUNT], state[TOTAL])
            codebook, metrics["revived"] = vq.follow(
                codebook, moments, ids, key, decay=self.decay, dead=self.dead
            )
            state = {**state, **_state(codebook)}
        return vq.straight_through(moments, code), self.commitment * distance, state, metrics

    def settled(self, moments: Float[Array, "b h w c"], state: Params) -> Float[Array, "b h w c"]:
        code = vq.lookup(state[CODEBOOK], vq.nearest(state[CODEBOOK], moments))
        return code.astype(moments.dtype)


def _state(codebook: vq.Codebook) -> Params:
    return {CODEBOOK: codebook.embedding, COUNT: codebook.count, TOTAL: codebook.total}
