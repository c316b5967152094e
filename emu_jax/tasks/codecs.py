"""Codecs map between images and the space in which a generator works.

``moments`` is what a cache may store. ``sample`` draws the generator's clean data from it inside
the training step. ``decode`` returns images in [-1, 1].

Latents are normalized per channel to zero mean and unit variance. The statistics are measured after
the autoencoder's training and stored with it. Decoding of latents is differentiable. Tokens are
code indices.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from emu_jax.nn import autoencoder as gaussian
from emu_jax.nn.functional import Network, Params, subtree
from emu_jax.nn.quantizer import lookup, nearest
from emu_jax.tasks.tiling import tiled

LATENT_SHIFT, LATENT_SCALE = "latent/shift", "latent/scale"
CODEBOOK = "codebook/embedding"


class Codec(Protocol):
    """``factor`` is the downsampling factor: pixels per position along each side."""

    @property
    def factor(self) -> int: ...

    def row(self, height: int, width: int) -> tuple[int, ...]:
        """The shape of one image's clean data, for ``height`` x ``width`` positions."""
        ...

    def moments(self, params: Params, x: Float[Array, "b H W 3"]) -> jax.Array: ...

    def sample(self, params: Params, moments: jax.Array, key: jax.Array) -> jax.Array: ...

    def decode(self, params: Params, z: jax.Array) -> Float[Array, "b H W 3"]: ...


@dataclass(frozen=True)
class AutoencoderCodec:
    """A KL autoencoder with its latent statistics. ``tile`` as in :func:`run_network`."""

    network: Network
    channels: int
    factor: int
    tile: int = 0

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of :func:`codec_params`."""
        statistic = jax.ShapeDtypeStruct((self.channels,), jnp.float32)
        return {**self.network.shapes(), LATENT_SHIFT: statistic, LATENT_SCALE: statistic}

    def row(self, height: int, width: int) -> tuple[int, ...]:
        return height, width, self.channels

    def moments(self, params: Params, x: Float[Array, "b H W 3"]) -> Float[Array, "b h w m"]:
        return run_network(self, params, x, "encode")

    def sample(
        self, params: Params, moments: Float[Array, "b h w m"], key: jax.Array
    ) -> Float[Array, "b h w c"]:
        z = gaussian.sample(moments, key)
        return (z - params[LATENT_SHIFT]) / params[LATENT_SCALE]

    def decode(self, params: Params, z: Float[Array, "b h w c"]) -> Float[Array, "b H W 3"]:
        z = z * params[LATENT_SCALE] + params[LATENT_SHIFT]
        return run_network(self, params, z, "decode")


@dataclass(frozen=True)
class IdentityCodec:
    """Pixel space: the clean data is the image itself."""

    channels: int = 3
    factor: int = 1

    def row(self, height: int, width: int) -> tuple[int, ...]:
        return height, width, self.channels

    def moments(self, params: Params, x: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        return x

    def sample(
        self, params: Params, moments: Float[Array, "b h w 3"], key: jax.Array
    ) -> Float[Array, "b h w 3"]:
        return moments

    def decode(self, params: Params, z: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        return z


@dataclass(frozen=True)
class TokenCodec:
    """A vector-quantized autoencoder: an image is a map of code indices. The codebook has ``codes``
    vectors of ``width`` channels. ``tile`` as in :func:`run_network`.
    """

    network: Network
    codes: int
    width: int
    factor: int
    tile: int = 0

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of :func:`codec_params`."""
        codebook = jax.ShapeDtypeStruct((self.codes, self.width), jnp.float32)
        return {**self.network.shapes(), CODEBOOK: codebook}

    def row(self, height: int, width: int) -> tuple[int, ...]:
        return height, width

    def moments(self, params: Params, x: Float[Array, "b H W 3"]) -> Int[Array, "b h w"]:
        return nearest(params[CODEBOOK], run_network(self, params, x, "encode"))

    def sample(
        self, params: Params, moments: Int[Array, "b h w"], key: jax.Array
    ) -> Int[Array, "b h w"]:
        return moments

    def decode(self, params: Params, z: Int[Array, "b h w"]) -> Float[Array, "b H W 3"]:
        return run_network(self, params, lookup(params[CODEBOOK], z), "decode")


def run_network(
    codec: AutoencoderCodec | TokenCodec,
    params: Params,
    x: Float[Array, "b h w c"],
    method: Literal["encode", "decode"],
) -> Float[Array, "b i j d"]:
    """The encoder or the decoder of a codec, in overlapping tiles of ``tile`` pixels if an image
    is larger and ``tile`` is not 0.
    """

    def network(x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        return codec.network(params, x, method=method)

    sides = (codec.factor, 1) if method == "encode" else (1, codec.factor)
    return tiled(network, x, codec.tile // codec.factor, *sides) if codec.tile else network(x)


def codec_params(model: Mapping[str, Any]) -> Params:
    """A codec's parameters, from the trained model of an autoencoding task."""
    stored = (CODEBOOK,) if CODEBOOK in model else (LATENT_SHIFT, LATENT_SCALE)
    return {**subtree(dict(model), "autoencoder"), **{path: model[path] for path in stored}}
