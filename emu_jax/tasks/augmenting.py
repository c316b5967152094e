"""Random changes of an image that its contents survive: color, blur and noise."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


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
