"""The conditioning of a super-resolution stage on a low-resolution image, as pixels or as tokens.

In a cascade each stage is trained on shrunk images of its own data. In sampling it receives the
output of the previous stage.

Pixels (Imagen, Saharia et al. 2022): generated images are not as clean as shrunk ones. Conditioning
augmentation closes this gap. In training, the low-resolution image z is noised to a level
s ~ U(0, 1),

    z_s = cos(pi s / 2) z + sin(pi s / 2) eps                                              (1)

and s is an input of the network. In sampling, a small s tells how far the image can be trusted.
DeepFloyd IF adds noise by a table of discrete steps instead (``schedule`` at t = s), and the step
is the input of the network.

Tokens (Muse, Chang et al. 2023): the conditioning is the tokens of the previous stage in its own
codebook. In training these are the tokens of the shrunk image, in sampling the generated tokens.
Generated tokens are passed on directly, because decoding and re-encoding them gives other tokens.

A stage is the Generation task with one of the two classes here. Their methods return the entries
that its loss and its sampler add to ``Conditions``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from emu_jax.errors import UserError
from emu_jax.nn.functional import Params
from emu_jax.process.noise import normal
from emu_jax.process.schedules import Schedule
from emu_jax.tasks.base import to_unit_range
from emu_jax.tasks.codecs import TokenCodec

LOW_CODEC = "low_codec"  # the frozen network that encodes the low-resolution image
_LEVEL_SCALE = 1000.0  # the network's input at s = 1, on the same scale as a timestep


def shrink(x: Float[Array, "b H W 3"], factor: int) -> Float[Array, "b H//{factor} W//{factor} 3"]:
    """The mean of every factor x factor pixels."""
    b, height, width, c = x.shape
    if height % factor or width % factor:
        raise UserError(
            f"An image of {height} x {width} pixels cannot be shrunk {factor}-fold; use sides that "
            f"are multiples of {factor}."
        )
    return jnp.mean(x.reshape(b, height // factor, factor, width // factor, factor, c), (2, 4))


@dataclass(frozen=True)
class LowResolution:
    """Pixels. ``factor`` is the ratio of the image sizes; ``level`` is s in sampling.

    ``crop`` > 0: training uses windows of that many pixels per side from anywhere in the image,
    and a convolutional network generalizes from them to whole images. ``schedule``: a schedule of
    discrete noise steps that replaces (1). ``align_corners``: the enlargement aligns the centers of
    the corner pixels of both images, instead of their edges.
    """

    input_kind: ClassVar[str] = "images"
    networks: ClassVar[tuple[str, ...]] = ()  # the frozen networks that :meth:`latents` uses

    factor: int
    level: float = 0.1
    crop: int = 0
    schedule: Schedule | None = None
    align_corners: bool = False

    def __post_init__(self):
        if self.factor < 2:
            raise UserError(
                f"low_resolution.factor is {self.factor}; use 2 or more in pixel space."
            )
        if not 0 <= self.level <= 1:
            raise UserError(f"low_resolution.level is {self.level}; use a value from 0 to 1.")
        if self.crop % self.factor:
            raise UserError(
                f"low_resolution.crop is {self.crop}; use a multiple of the factor, {self.factor}."
            )
        if self.schedule is not None and self.schedule.steps is None:
            raise UserError(
                f"low_resolution.schedule is {type(self.schedule).__name__}, which has no discrete "
                "steps; use a schedule of discrete steps, or leave it empty."
            )

    @property
    def scale(self) -> int:
        """Pixels of the large image per position of the low-resolution data, along each side."""
        return self.factor

    def blank(self, n: int, side: int) -> Float[Array, "n h h 3"]:
        """Low-resolution data of n blank images, whose large images have ``side`` pixels."""
        return jnp.zeros((n, side // self.scale, side // self.scale, 3))

    def latents(self, frozen: Mapping[str, Params], x: Float[Array, "b H W 3"]) -> dict[str, Array]:
        """Nothing to cache beside the clean data."""
        return {}

    def from_clean(
        self, rows: Mapping[str, Any], x0: Float[Array, "b H W 3"]
    ) -> Float[Array, "b h w 3"]:
        """The low-resolution images of clean data."""
        return shrink(x0, self.factor)

    def encode(
        self, frozen: Mapping[str, Params], given: UInt8[Array, "b h w 3"]
    ) -> Float[Array, "b h w 3"]:
        """Given images as low-resolution data."""
        return to_unit_range(given)

    def to_image(
        self, frozen: Mapping[str, Params], low: Float[Array, "b h w 3"]
    ) -> Float[Array, "b H W 3"]:
        """Low-resolution data as images to display."""
        return self.enlarge(low)

    def enlarge(self, low: Float[Array, "b h w 3"]) -> Float[Array, "b H W 3"]:
        """Bilinear upsampling by ``factor``."""
        b, h, w, c = low.shape
        shape = (b, h * self.factor, w * self.factor, c)
        if not self.align_corners:
            return jax.image.resize(low, shape, "bilinear")
        scale = jnp.array([(n * self.factor - 1) / (n - 1) for n in (h, w)])
        return jax.image.scale_and_translate(
            low, shape, (1, 2), scale, (1 - scale) / 2, "linear", antialias=False
        )

    def window(self, key: jax.Array, x: Float[Array, "b H W 3"]) -> Float[Array, "b h w 3"]:
        """A random window of every image; without ``crop`` the whole images."""
        if not self.crop:
            return x
        b, height, width, c = x.shape
        if min(height, width) < self.crop:
            raise UserError(
                f"low_resolution.crop is {self.crop}, but an image has only {height}x{width} "
                "pixels; use a smaller crop or larger images."
            )
        last = jnp.array([height - self.crop, width - self.crop])
        corners = jax.random.randint(key, (b, 2), 0, last + 1)
        return jax.vmap(
            lambda image, corner: jax.lax.dynamic_slice(
                image, (corner[0], corner[1], 0), (self.crop, self.crop, c)
            )
        )(x, corners)

    def augment(
        self, key: jax.Array, low: Float[Array, "b h w 3"], level: Float[Array, " b"] | float
    ) -> tuple[Float[Array, "b H W 3"], Float[Array, " b"]]:
        """(``low`` enlarged and noised, the network's input for the noise level).

        ``key`` is one key, or one key per row.
        """
        z = self.enlarge(low)
        level = jnp.broadcast_to(jnp.asarray(level, jnp.float32), z.shape[:1])
        if self.schedule is None:
            angle = jnp.pi / 2 * level
            alpha, sigma, level_input = jnp.cos(angle), jnp.sin(angle), _LEVEL_SCALE * level
        else:
            alpha, sigma = self.schedule.alpha(level), self.schedule.sigma(level)
            level_input = self.schedule.index(level)
        alpha, sigma = (factor[:, None, None, None] for factor in (alpha, sigma))
        return alpha * z + sigma * normal(key, z.shape), level_input

    def training_conditions(self, key: jax.Array, low: Float[Array, "b h w 3"]) -> dict[str, Array]:
        """The conditions in training: ``augment`` at random levels."""
        k_level, k_noise = jax.random.split(key)
        level = jax.random.uniform(k_level, low.shape[:1])
        if self.schedule is not None:
            level = self.schedule.training_time(level, 0, 1)
        spatial, level = self.augment(k_noise, low, level)
        return {"spatial": spatial, "level": level}

    def sampling_conditions(
        self, keys: jax.Array, low: Float[Array, "b h w 3"]
    ) -> dict[str, Array]:
        """The conditions in sampling: ``augment`` at the fixed level."""
        spatial, level = self.augment(keys, low, self.level)
        return {"spatial": spatial, "level": level}


@dataclass(frozen=True)
class LowTokens:
    """Tokens of the codec ``low_codec``. ``factor`` is the ratio of the image sizes: 1 where the
    images are equal and only the low-resolution tokens are coarser.
    """

    input_kind: ClassVar[str] = "tokens"
    networks: ClassVar[tuple[str, ...]] = (LOW_CODEC,)

    codec: TokenCodec
    factor: int = 1

    def __post_init__(self):
        if self.factor < 1:
            raise UserError(f"low_resolution.factor is {self.factor}; use 1 or more for tokens.")

    @property
    def scale(self) -> int:
        """Pixels of the large image per position of the low-resolution data, along each side."""
        return self.factor * self.codec.factor

    def blank(self, n: int, side: int) -> Int[Array, "n h h"]:
        """Low-resolution data of n images, all code 0, whose large images have ``side`` pixels."""
        return jnp.zeros((n, side // self.scale, side // self.scale), jnp.int32)

    def latents(self, frozen: Mapping[str, Params], x: Float[Array, "b H W 3"]) -> dict[str, Array]:
        """The tokens of the shrunk images, to cache beside the clean data."""
        return {"low": self._encode(frozen, shrink(x, self.factor))}

    def from_clean(self, rows: Mapping[str, Any], x0: Int[Array, "b H W"]) -> Int[Array, "b h w"]:
        """The low-resolution tokens of a batch."""
        return rows["low"]

    def encode(
        self,
        frozen: Mapping[str, Params],
        given: UInt8[Array, "b h w 3"] | Int[Array, "b h w"],
    ) -> Int[Array, "b h2 w2"]:
        """Given tokens, or the tokens of given images, as low-resolution data."""
        return given if given.ndim == 3 else self._encode(frozen, to_unit_range(given))

    def to_image(
        self, frozen: Mapping[str, Params], low: Int[Array, "b h w"]
    ) -> Float[Array, "b h2 w2 3"]:
        """Low-resolution data as images to display."""
        return self.codec.decode(frozen[LOW_CODEC], low)

    def window(self, key: jax.Array, x: Int[Array, "b H W"]) -> Int[Array, "b H W"]:
        """The whole maps: a transformer's position embeddings are those of whole maps."""
        return x

    def training_conditions(self, key: jax.Array, low: Int[Array, "b h w"]) -> dict[str, Array]:
        """The conditions in training."""
        return {"low": low}

    def sampling_conditions(self, keys: jax.Array, low: Int[Array, "b h w"]) -> dict[str, Array]:
        """The conditions in sampling."""
        return {"low": low}

    def _encode(
        self, frozen: Mapping[str, Params], x: Float[Array, "b h w 3"]
    ) -> Int[Array, "b h2 w2"]:
        height, width = x.shape[1:3]
        if height % self.codec.factor or width % self.codec.factor:
            raise UserError(
                f"A low-resolution image has {height} x {width} pixels; low_codec needs sides that "
                f"are multiples of {self.codec.factor}."
            )
        return self.codec.moments(frozen[LOW_CODEC], x)


Low = LowResolution | LowTokens
