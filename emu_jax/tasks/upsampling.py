"""Super-resolution's further condition: a low-resolution picture with noise of a known level.

In a cascade (Imagen, Saharia et al. 2022) each stage is trained on shrunk pictures of its data and
used on what the stage before has drawn, which is not as clean. Conditioning augmentation closes the
gap: in training the low-resolution picture z is noised to a level s ~ U(0, 1), and the network is
told which,

    z_s = cos(pi s / 2) z + sin(pi s / 2) eps                                              (1)

so that in sampling a small s says how far to trust it.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from emu_jax.errors import UserError
from emu_jax.process.noise import normal

_TOLD = 1000.0  # what the network is told of s = 1, as of a time


@dataclass(frozen=True)
class LowResolution:
    """``factor``: how much smaller the low-resolution picture is; ``level``: s in sampling.

    ``crop`` > 0: training looks at windows of so many pixels, anywhere in the picture, which a
    network of convolutions carries over to whole ones.
    """

    factor: int
    level: float = 0.1
    crop: int = 0

    def __post_init__(self):
        if self.factor < 2:
            raise UserError(f"A super-resolution factor is 2 or more, not {self.factor}.")
        if not 0 <= self.level <= 1:
            raise UserError(f"The level of noise in sampling is from 0 to 1, not {self.level}.")
        if self.crop % self.factor:
            raise UserError(f"A crop of {self.crop} pixels is no multiple of {self.factor}.")

    def shrink(self, x: Float[Array, "b H W 3"]) -> Float[Array, "b h w 3"]:
        """The mean of every factor x factor pixels."""
        b, height, width, c = x.shape
        f = self.factor
        if height % f or width % f:
            raise UserError(f"Pictures of {height} x {width} do not shrink {f}-fold.")
        return jnp.mean(x.reshape(b, height // f, f, width // f, f, c), axis=(2, 4))

    def enlarge(self, low: Float[Array, "b h w 3"]) -> Float[Array, "b H W 3"]:
        """``factor`` times as large, bilinear."""
        b, h, w, c = low.shape
        return jax.image.resize(low, (b, h * self.factor, w * self.factor, c), "bilinear")

    def window(self, key: jax.Array, x: Float[Array, "b H W 3"]) -> Float[Array, "b crop crop 3"]:
        """A random window of every picture, or, without ``crop``, the pictures."""
        if not self.crop:
            return x
        b, height, width, c = x.shape
        if min(height, width) < self.crop:
            raise UserError(
                f"Windows of {self.crop} pixels do not fit pictures of {height}x{width}."
            )
        room = jnp.array([height - self.crop, width - self.crop])
        corners = jax.random.randint(key, (b, 2), 0, room + 1)
        return jax.vmap(
            lambda image, corner: jax.lax.dynamic_slice(
                image, (corner[0], corner[1], 0), (self.crop, self.crop, c)
            )
        )(x, corners)

    def augment(
        self, key: jax.Array, low: Float[Array, "b h w 3"], level: Float[Array, " b"] | float
    ) -> tuple[Float[Array, "b H W 3"], Float[Array, " b"]]:
        """(what the network sees of ``low``, enlarged and with noise by (1), what it is told).

        One key, or one for each row.
        """
        z = self.enlarge(low)
        level = jnp.broadcast_to(jnp.asarray(level, jnp.float32), z.shape[:1])
        angle = (jnp.pi / 2 * level)[:, None, None, None]
        return jnp.cos(angle) * z + jnp.sin(angle) * normal(key, z.shape), _TOLD * level

    def example(
        self, key: jax.Array, x: Float[Array, "b H W 3"]
    ) -> tuple[Float[Array, "b H W 3"], Float[Array, " b"]]:
        """``augment`` of the shrunk pictures at random levels: a condition to train with."""
        k_level, k_noise = jax.random.split(key)
        return self.augment(k_noise, self.shrink(x), jax.random.uniform(k_level, x.shape[:1]))
