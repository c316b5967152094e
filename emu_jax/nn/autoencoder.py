"""The convolutional autoencoder: from images to a smaller map of latents, and back.

Structured and named as diffusers' AutoencoderKL, so that public autoencoders convert key by key.
Before the encoder's first convolution is Emu's Fourier feature transform, which has no parameters:

    phi(x) = concat(x, sin(2^k pi x), cos(2^k pi x)),   k = 0 .. K - 1                          (1)

It makes small differences of color, which hardly change the loss, large differences of the input.

The encoder of a Kullback-Leibler autoencoder gives the moments (mu, log sigma^2) of a Gaussian over
latents,

    z = mu + sigma eps,   KL(q || N(0, 1)) = 1/2 sum (mu^2 + sigma^2 - 1 - log sigma^2)          (2)

The encoder of a vector-quantized autoencoder (``variational=False``) gives the latents themselves,
which ``emu_jax.nn.quantizer`` then replaces by codes.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from emu_jax.nn.attention import Attend, Attention, attend
from emu_jax.nn.layers import Downsample, GroupNorm, Upsample, conv
from emu_jax.nn.resnet import ResnetBlock
from emu_jax.nn.stack import Constrain

Map = Float[Array, "b h w c"]
Result = Float[Array, "b h2 w2 c2"]  # a map of another size

_EPS = 1e-6


class Autoencoder(nnx.Module):
    """Two methods: ``encode`` gives moments, ``decode`` images. The factor between their sides is
    f = 2^(len(widths) - 1).

    Without ``variational`` the moments are the mean alone, with ``latent_channels`` channels.

    The encoder has ``blocks`` residual blocks per stage, the decoder ``decoder_blocks`` (default
    ``blocks`` + 1). The decoder's stages have ``decoder_widths`` (default ``widths``); both lists
    go from full size to the smallest. ``quant_conv`` adds 1 x 1 convolutions before and after the
    latents. With ``zero_to_one`` (aMUSEd) the network's images are in [0, 1] internally; those of
    ``encode`` and ``decode`` are always in [-1, 1].
    """

    def __init__(
        self,
        *,
        widths: Sequence[int] = (128, 256, 512, 512),
        blocks: int = 2,
        latent_channels: int = 16,
        variational: bool = True,
        groups: int = 32,
        mid_attention: bool = True,
        fourier_bands: int = 0,
        quant_conv: bool = False,
        zero_to_one: bool = False,
        decoder_widths: Sequence[int] | None = None,
        decoder_blocks: int | None = None,
        attend: Attend = attend,
        constrain: Constrain = lambda x: x,
        rngs: nnx.Rngs,
    ):
        self.fourier_bands, self.zero_to_one = fourier_bands, zero_to_one
        encoded = latent_channels * (2 if variational else 1)
        common = {"mid_attention": mid_attention, "attend": attend, "constrain": constrain}
        self.encoder = Encoder(
            3 * (1 + 2 * fourier_bands),
            encoded,
            widths,
            blocks,
            groups,
            **common,
            rngs=rngs,
        )
        self.decoder = Decoder(
            latent_channels,
            3,
            decoder_widths or widths,
            decoder_blocks or blocks + 1,
            groups,
            **common,
            rngs=rngs,
        )
        one = latent_channels
        self.quant_conv = conv(encoded, encoded, 1, rngs=rngs) if quant_conv else None
        self.post_quant_conv = conv(one, one, 1, rngs=rngs) if quant_conv else None

    def encode(self, x: Float[Array, "b H W 3"]) -> Float[Array, "b h w m"]:
        """Moments (mean, then log-variance if any, on the last axis) of images in [-1, 1]."""
        x = (x + 1) / 2 if self.zero_to_one else x
        moments = self.encoder(fourier_features(x, self.fourier_bands))
        return moments if self.quant_conv is None else self.quant_conv(moments)

    def decode(self, z: Float[Array, "b h w c"]) -> Float[Array, "b H W 3"]:
        """Images, approximately in [-1, 1] (they are not clipped)."""
        x = self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z))
        return 2 * x - 1 if self.zero_to_one else x


class Encoder(nnx.Module):
    """From ``in_channels`` to ``out_channels``; the map is halved between stages."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int],
        blocks: int,
        groups: int,
        *,
        mid_attention: bool = True,
        attend: Attend = attend,
        constrain: Constrain = lambda x: x,
        rngs: nnx.Rngs,
    ):
        self.conv_in = conv(in_channels, widths[0], rngs=rngs)
        self.down_blocks = nnx.List(
            Stage(a, b, blocks, groups, down=more, rngs=rngs) for a, b, more in _stages(widths)
        )
        self.mid_block = MidBlock(widths[-1], groups, mid_attention, attend, rngs=rngs)
        self.conv_norm_out = GroupNorm(widths[-1], groups, eps=_EPS, rngs=rngs)
        self.conv_out = conv(widths[-1], out_channels, rngs=rngs)
        self.constrain = constrain

    def __call__(self, x: Map) -> Result:
        x = self.constrain(self.conv_in(x))
        for block in self.down_blocks:
            x = self.constrain(block(x))
        x = self.constrain(self.mid_block(x))
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class Decoder(nnx.Module):
    """The encoder in reverse; ``widths`` also go from full size to the smallest."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int],
        blocks: int,
        groups: int,
        *,
        mid_attention: bool = True,
        attend: Attend = attend,
        constrain: Constrain = lambda x: x,
        rngs: nnx.Rngs,
    ):
        self.conv_in = conv(in_channels, widths[-1], rngs=rngs)
        self.mid_block = MidBlock(widths[-1], groups, mid_attention, attend, rngs=rngs)
        self.up_blocks = nnx.List(
            Stage(a, b, blocks, groups, up=more, rngs=rngs) for a, b, more in _stages(widths[::-1])
        )
        self.conv_norm_out = GroupNorm(widths[0], groups, eps=_EPS, rngs=rngs)
        self.conv_out = conv(widths[0], out_channels, rngs=rngs)
        self.constrain = constrain

    def __call__(self, x: Map) -> Result:
        x = self.constrain(self.mid_block(self.conv_in(x)))
        for block in self.up_blocks:
            x = self.constrain(block(x))
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


def _stages(widths: Sequence[int]) -> list[tuple[int, int, bool]]:
    """(input width, width, whether another stage follows) of each stage."""
    last = len(widths) - 1
    return [(widths[max(i - 1, 0)], width, i < last) for i, width in enumerate(widths)]


class Stage(nnx.Module):
    """Residual blocks of one size, then a change of size, if any."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        blocks: int,
        groups: int,
        *,
        down: bool = False,
        up: bool = False,
        rngs: nnx.Rngs,
    ):
        self.resnets = nnx.List(
            ResnetBlock(
                out_channels if i else in_channels, out_channels, groups=groups, eps=_EPS, rngs=rngs
            )
            for i in range(blocks)
        )
        # Public encoders pad strided convolutions at the bottom and right only.
        self.downsamplers = nnx.List(
            [Downsample(out_channels, padding=(0, 1), rngs=rngs)] if down else []
        )
        self.upsamplers = nnx.List([Upsample(out_channels, rngs=rngs)] if up else [])

    def __call__(self, x: Map) -> Result:
        for layer in (*self.resnets, *self.downsamplers, *self.upsamplers):
            x = layer(x)
        return x


class MidBlock(nnx.Module):
    """Two residual blocks at the smallest size, with attention over all positions between them."""

    def __init__(
        self, channels: int, groups: int, attention: bool, attend: Attend, *, rngs: nnx.Rngs
    ):
        self.resnets = nnx.List(
            ResnetBlock(channels, channels, groups=groups, eps=_EPS, rngs=rngs) for _ in range(2)
        )
        self.attentions = nnx.List(
            [SpatialAttention(channels, groups, attend, rngs=rngs)] if attention else []
        )

    def __call__(self, x: Map) -> Map:
        first, second = self.resnets
        x = first(x)
        for attention in self.attentions:
            x = attention(x)
        return second(x)


class SpatialAttention(Attention):
    """x + self-attention of the normalized positions, with one head."""

    def __init__(self, channels: int, groups: int, attend: Attend, *, rngs: nnx.Rngs):
        super().__init__(channels, 1, channels, bias=True, attend=attend, rngs=rngs)
        self.group_norm = GroupNorm(channels, groups, eps=_EPS, rngs=rngs)

    def __call__(self, x: Map) -> Map:
        b, h, w, c = x.shape
        positions = self.group_norm(x).reshape(b, h * w, c)
        return x + super().__call__(positions).reshape(x.shape)


def fourier_features(
    x: Float[Array, "b h w c"], bands: int
) -> Float[Array, "b h w c*(1+2*{bands})"]:
    """Equation (1): c channels become c (1 + 2 ``bands``): x, sines, cosines."""
    if not bands:
        return x
    # In fp32: the angles reach 2^(K-1) pi, where bf16 cannot represent the phase.
    angles = [2.0**k * jnp.pi * x.astype(jnp.float32) for k in range(bands)]
    waves = [jnp.sin(a) for a in angles] + [jnp.cos(a) for a in angles]
    return jnp.concatenate([x, *(wave.astype(x.dtype) for wave in waves)], axis=-1)


def mean(moments: Float[Array, "... m"]) -> Float[Array, "... m//2"]:
    """The Gaussian's mean."""
    return jnp.split(moments, 2, axis=-1)[0]


def log_variance(moments: Float[Array, "... m"]) -> Float[Array, "... m//2"]:
    """The Gaussian's log-variance, clipped to [-30, 20] so that its exponential is finite."""
    return jnp.clip(jnp.split(moments, 2, axis=-1)[1], -30.0, 20.0)


def sample(moments: Float[Array, "... m"], key: jax.Array) -> Float[Array, "... m//2"]:
    """One sample of the latents."""
    mu = mean(moments)
    return mu + jnp.exp(log_variance(moments) / 2) * jax.random.normal(key, mu.shape, mu.dtype)


def kl(moments: Float[Array, "b h w m"]) -> Float[Array, " b"]:
    """Equation (2) in fp32, in nats per image: a sum over positions and channels."""
    moments = moments.astype(jnp.float32)
    mu, log_var = mean(moments), log_variance(moments)
    return 0.5 * jnp.sum(mu**2 + jnp.exp(log_var) - 1.0 - log_var, axis=(1, 2, 3))
