"""Super-resolution's further condition: a low-resolution picture, as pixels or as tokens.

In a cascade each stage is trained on shrunk pictures of its data and used on what the stage before
has drawn.

Pixels (Imagen, Saharia et al. 2022) are not as clean when they were drawn. Conditioning
augmentation closes the gap: in training the low-resolution picture z is noised to a level
s ~ U(0, 1), and the network is told which,

    z_s = cos(pi s / 2) z + sin(pi s / 2) eps                                              (1)

so that in sampling a small s says how far to trust it. DeepFloyd IF noises it by a table of steps
instead, as ``schedule`` has it at t = s, and tells the network the step.

Tokens (Muse, Chang et al. 2023) are those of the stage before, in its own codebook: of the shrunk
picture in training, and in sampling the drawn ones themselves. They are handed on as they are: the
tokens of their decoded picture would be others.

Either way a stage is the Generation task with one of the two classes here, whose methods give what
its loss and its sampler put into ``Conditions``.
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

LOW_CODEC = "low_codec"  # among the frozen networks: what reads the low-resolution picture
_TOLD = 1000.0  # what the network is told of s = 1, as of a time


def shrink(x: Float[Array, "b H W 3"], factor: int) -> Float[Array, "b h w 3"]:
    """The mean of every factor x factor pixels."""
    b, height, width, c = x.shape
    if height % factor or width % factor:
        raise UserError(f"Pictures of {height} x {width} do not shrink {factor}-fold.")
    return jnp.mean(x.reshape(b, height // factor, factor, width // factor, factor, c), (2, 4))


@dataclass(frozen=True)
class LowResolution:
    """Pixels. ``factor``: how much smaller the picture is; ``level``: s in sampling.

    ``crop`` > 0: training looks at windows of so many pixels, anywhere in the picture, which a
    network of convolutions carries over to whole ones. ``schedule``: discrete steps of noise in
    place of (1). ``align_corners``: the picture is enlarged from the centres of its corner pixels
    to those of the large one's, and not from edge to edge.
    """

    input_kind: ClassVar[str] = "images"
    networks: ClassVar[tuple[str, ...]] = ()  # the frozen networks that :meth:`latents` reads

    factor: int
    level: float = 0.1
    crop: int = 0
    schedule: Schedule | None = None
    align_corners: bool = False

    def __post_init__(self):
        if self.factor < 2:
            raise UserError(f"A super-resolution factor is 2 or more, not {self.factor}.")
        if not 0 <= self.level <= 1:
            raise UserError(f"The level of noise in sampling is from 0 to 1, not {self.level}.")
        if self.crop % self.factor:
            raise UserError(f"A crop of {self.crop} pixels is no multiple of {self.factor}.")
        if self.schedule is not None and self.schedule.steps is None:
            raise UserError(
                "The noise in a low-resolution picture is a schedule's of discrete steps, or none: "
                "set low_resolution.schedule to one of them, or leave it empty."
            )

    @property
    def scale(self) -> int:
        """Pixels along a side of the large picture for each position of the low data."""
        return self.factor

    def blank(self, n: int, side: int) -> Float[Array, "n h h 3"]:
        """Low data of n large pictures of ``side`` pixels that show nothing."""
        return jnp.zeros((n, side // self.scale, side // self.scale, 3))

    def latents(self, frozen: Mapping[str, Params], x: Float[Array, "b H W 3"]) -> dict[str, Array]:
        """Nothing but the clean data is to be kept."""
        return {}

    def from_clean(
        self, rows: Mapping[str, Any], x0: Float[Array, "b H W 3"]
    ) -> Float[Array, "b h w 3"]:
        """The low-resolution pictures of clean data."""
        return shrink(x0, self.factor)

    def encode(
        self, frozen: Mapping[str, Params], shown: UInt8[Array, "b h w 3"]
    ) -> Float[Array, "b h w 3"]:
        """Given pictures as low data."""
        return to_unit_range(shown)

    def to_image(
        self, frozen: Mapping[str, Params], low: Float[Array, "b h w 3"]
    ) -> Float[Array, "b H W 3"]:
        """Low data to look at."""
        return self.enlarge(low)

    def enlarge(self, low: Float[Array, "b h w 3"]) -> Float[Array, "b H W 3"]:
        """``factor`` times as large, bilinear."""
        b, h, w, c = low.shape
        shape = (b, h * self.factor, w * self.factor, c)
        if not self.align_corners:
            return jax.image.resize(low, shape, "bilinear")
        scale = jnp.array([(n * self.factor - 1) / (n - 1) for n in (h, w)])
        return jax.image.scale_and_translate(
            low, shape, (1, 2), scale, (1 - scale) / 2, "linear", antialias=False
        )

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
        """(what the network sees of ``low``, enlarged and with noise, what it is told).

        One key, or one for each row.
        """
        z = self.enlarge(low)
        level = jnp.broadcast_to(jnp.asarray(level, jnp.float32), z.shape[:1])
        if self.schedule is None:
            angle = jnp.pi / 2 * level
            alpha, sigma, told = jnp.cos(angle), jnp.sin(angle), _TOLD * level
        else:
            alpha, sigma = self.schedule.alpha(level), self.schedule.sigma(level)
            told = self.schedule.index(level)
        alpha, sigma = (factor[:, None, None, None] for factor in (alpha, sigma))
        return alpha * z + sigma * normal(key, z.shape), told

    def training_conditions(self, key: jax.Array, low: Float[Array, "b h w 3"]) -> dict[str, Array]:
        """The conditions to train with: ``augment`` at random levels."""
        k_level, k_noise = jax.random.split(key)
        level = jax.random.uniform(k_level, low.shape[:1])
        if self.schedule is not None:
            level = self.schedule.training_time(level, 0, 1)
        spatial, level = self.augment(k_noise, low, level)
        return {"spatial": spatial, "level": level}

    def sampling_conditions(
        self, keys: jax.Array, low: Float[Array, "b h w 3"]
    ) -> dict[str, Array]:
        """The conditions to draw with: ``augment`` at the one level."""
        spatial, level = self.augment(keys, low, self.level)
        return {"spatial": spatial, "level": level}


@dataclass(frozen=True)
class LowTokens:
    """Tokens of the codec ``low_codec``. ``factor``: how much smaller its picture is, 1 where only
    its codebook is coarser.
    """

    input_kind: ClassVar[str] = "tokens"
    networks: ClassVar[tuple[str, ...]] = (LOW_CODEC,)

    codec: TokenCodec
    factor: int = 1

    def __post_init__(self):
        if self.factor < 1:
            raise UserError(f"A super-resolution factor of tokens is 1 or more, not {self.factor}.")

    @property
    def scale(self) -> int:
        """Pixels along a side of the large picture for each position of the low data."""
        return self.factor * self.codec.factor

    def blank(self, n: int, side: int) -> Int[Array, "n h h"]:
        """Low data of n large pictures of ``side`` pixels, all of one code."""
        return jnp.zeros((n, side // self.scale, side // self.scale), jnp.int32)

    def latents(self, frozen: Mapping[str, Params], x: Float[Array, "b H W 3"]) -> dict[str, Array]:
        """The tokens of the shrunk pictures, to be kept beside the clean data."""
        return {"low": self._encode(frozen, shrink(x, self.factor))}

    def from_clean(self, rows: Mapping[str, Any], x0: Int[Array, "b H W"]) -> Int[Array, "b h w"]:
        """The low-resolution tokens of a batch."""
        return rows["low"]

    def encode(
        self,
        frozen: Mapping[str, Params],
        shown: UInt8[Array, "b h w 3"] | Int[Array, "b h w"],
    ) -> Int[Array, "b h w"]:
        """Given tokens, or those of given pictures, as low data."""
        return shown if shown.ndim == 3 else self._encode(frozen, to_unit_range(shown))

    def to_image(
        self, frozen: Mapping[str, Params], low: Int[Array, "b h w"]
    ) -> Float[Array, "b h2 w2 3"]:
        """Low data to look at."""
        return self.codec.decode(frozen[LOW_CODEC], low)

    def window(self, key: jax.Array, x: Int[Array, "b H W"]) -> Int[Array, "b H W"]:
        """The maps: a transformer's places are those of whole ones."""
        return x

    def training_conditions(self, key: jax.Array, low: Int[Array, "b h w"]) -> dict[str, Array]:
        """The conditions to train with."""
        return {"low": low}

    def sampling_conditions(self, keys: jax.Array, low: Int[Array, "b h w"]) -> dict[str, Array]:
        """The conditions to draw with."""
        return {"low": low}

    def _encode(
        self, frozen: Mapping[str, Params], x: Float[Array, "b h w 3"]
    ) -> Int[Array, "b h2 w2"]:
        height, width = x.shape[1:3]
        if height % self.codec.factor or width % self.codec.factor:
            raise UserError(
                f"Pictures of {height} x {width} are no whole number of tokens, each of "
                f"{self.codec.factor} x {self.codec.factor} pixels."
            )
        return self.codec.moments(frozen[LOW_CODEC], x)


Low = LowResolution | LowTokens
