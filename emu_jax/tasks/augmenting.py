"""Training of networks that read images: the images are changed at random, as contents survive it.

Color, sharpness and noise are disturbed, not geometry. ``round_trip`` of the images are sent
through a frozen autoencoder first, because the network is to read generated images, which have
passed its decoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from emu_jax.nn.functional import Network, Params
from emu_jax.tasks.base import Context, Task, cast
from emu_jax.tasks.codecs import Codec

CODEC = "codec"  # the frozen autoencoder of round trips


@dataclass(frozen=True, kw_only=True)
class Reading(Task):
    """``network`` reads images in [-1, 1] of the stream ``stream``."""

    network: Network
    colour: float = 0.15
    blur: float = 0.7
    noise: float = 0.1
    codec: Codec | None = None
    round_trip: float = 0.0
    compute_dtype: Any = jnp.float32
    stream: str = "train"

    def init(self, key: jax.Array) -> tuple[Params, Params]:
        return self.network.init(key), {}

    def read(self, params: Params, image: Float[Array, "b h w 3"]) -> Any:
        """The network's output for images in [-1, 1]."""
        return self.network(cast(params, self.compute_dtype), image.astype(self.compute_dtype))

    def augment(self, context: Context, x: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        first, second = jax.random.split(context.key)
        if self.codec:
            sent = round(self.round_trip * x.shape[0])
            x = round_trip(self.codec, context.frozen[CODEC], second, x, sent)
        keys = jax.vmap(lambda key: jax.random.split(key, 5))(jax.random.split(first, x.shape[0]))
        strengths = dict(colour=self.colour, blur=self.blur, noise=self.noise)
        return jax.vmap(lambda keys, x: disturb(keys, x, **strengths))(keys, x)


def disturb(
    keys: Sequence[jax.Array], x: Float[Array, "h w 3"], *, colour: float, blur: float, noise: float
) -> Float[Array, "h w 3"]:
    """One image in [-1, 1] with other colors, blurred and noisy. ``colour``, ``blur`` and ``noise``
    are the strengths; five keys.
    """
    k_gain, k_offset, k_blur, k_noise, k_level = keys
    h, w, _ = x.shape
    gain = 1 + jax.random.uniform(k_gain, (3,), minval=-colour, maxval=colour)
    offset = jax.random.uniform(k_offset, (), minval=-colour, maxval=colour)
    x = x * gain + offset
    small = jax.image.resize(x, (h // 2, w // 2, 3), "linear")
    soft = jax.random.uniform(k_blur, (), maxval=blur)
    x = x + soft * (jax.image.resize(small, x.shape, "linear") - x)
    level = jax.random.uniform(k_level, (), maxval=noise)
    return jnp.clip(x + level * jax.random.normal(k_noise, x.shape), -1.0, 1.0)


def round_trip(
    codec: Codec, params: Params, key: jax.Array, x: Float[Array, "b h w 3"], sent: int
) -> Float[Array, "b h w 3"]:
    """Images in [-1, 1], of which the first ``sent`` have passed the codec.

    The first rows, since a stream's order is random: only these pay for the codec.
    """
    if not sent:
        return x
    moments = codec.moments(params, x[:sent])
    decoded = codec.decode(params, codec.sample(params, moments, key))
    return jnp.concatenate([jax.lax.stop_gradient(decoded).astype(x.dtype), x[sent:]])
