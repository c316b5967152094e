"""The convolutional autoencoder: pictures to a small map of latents, and back.

Structured and named as diffusers' AutoencoderKL, so that public autoencoders convert key by key.
Emu's Fourier feature transform comes before the encoder's first convolution, without parameters:

    phi(x) = concat(x, sin(2^k pi x), cos(2^k pi x)),   k = 0 .. K - 1                          (1)

so that small differences of colour, which the loss hardly sees, are large differences of input.

The encoder of a Kullback-Leibler autoencoder gives the moments (mu, log sigma^2) of a Gaussian over
latents,

    z = mu + sigma eps,   KL(q || N(0, 1)) = 1/2 sum (mu^2 + sigma^2 - 1 - log sigma^2)          (2)

that of a vector-quantised one (``variational=False``) the latents themselves, which
``emu_jax.nn.quantizer`` then replaces by codes.
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

_EPS = 1e-6


class Autoencoder(nnx.Module):
    """f = 2^(len(widths) - 1). ``encode`` gives moments, ``decode`` pictures, both by method.

    Without ``variational`` the moments are the mean alone, ``latent_channels`` wide.

    ``blocks`` residual blocks a stage in the encoder, ``decoder_blocks`` (default ``blocks`` + 1)
    in the decoder, whose stages are ``decoder_widths`` (default ``widths``; both from full size to
    the smallest). ``quant_conv``: 1 x 1 convolutions on both sides of the latents.
    ``zero_to_one``: inside, pictures are in [0, 1] (aMUSEd's); outside they are in [-1, 1].
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

    def encode(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b h/f w/f m"]:
        """Moments (mean, then any log-variance, on the last axis) of pictures in [-1, 1]."""
        x = (x + 1) / 2 if self.zero_to_one else x
        moments = self.encoder(fourier_features(x, self.fourier_bands))
        return moments if self.quant_conv is None else self.quant_conv(moments)

    def decode(self, z: Float[Array, "b h/f w/f c"]) -> Float[Array, "b h w 3"]:
        """Pictures, about in [-1, 1] (nothing clips them)."""
        x = self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z))
        return 2 * x - 1 if self.zero_to_one else x

    def __call__(
        self, x: Float[Array, "b h w 3"], key: jax.Array
    ) -> tuple[Float[Array, "b h w 3"], Float[Array, "b h/f w/f 2*c"]]:
        """(reconstruction of one sample of the latents, moments)."""
        moments = self.encode(x)
        return self.decode(sample(moments, key)), moments


class Encoder(nnx.Module):
    """Feature maps of ``in_channels`` to ones of ``out_channels``, halved between stages."""

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

    def __call__(self, x: Map) -> Map:
        x = self.constrain(self.conv_in(x))
        for block in self.down_blocks:
            x = self.constrain(block(x))
        x = self.constrain(self.mid_block(x))
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class Decoder(nnx.Module):
    """The encoder's mirror image; ``widths`` too are listed from full size to the smallest."""

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

    def __call__(self, x: Map) -> Map:
        x = self.constrain(self.mid_block(self.conv_in(x)))
        for block in self.up_blocks:
            x = self.constrain(block(x))
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


def _stages(widths: Sequence[int]) -> list[tuple[int, int, bool]]:
    """(input width, width, whether another stage follows) of each stage."""
    last = len(widths) - 1
    return [(widths[max(i - 1, 0)], width, i < last) for i, width in enumerate(widths)]


class Stage(nnx.Module):
    """Residual blocks of one size, then perhaps a change of size."""

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
        # Public encoders pad only below and to the right before they stride.
        self.downsamplers = nnx.List(
            [Downsample(out_channels, padding=(0, 1), rngs=rngs)] if down else []
        )
        self.upsamplers = nnx.List([Upsample(out_channels, rngs=rngs)] if up else [])

    def __call__(self, x: Map) -> Map:
        for layer in (*self.resnets, *self.downsamplers, *self.upsamplers):
            x = layer(x)
        return x


class MidBlock(nnx.Module):
    """Two residual blocks at the smallest size, with attention over all positions in between."""

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
    """x + one-head self-attention of the normalised positions."""

    def __init__(self, channels: int, groups: int, attend: Attend, *, rngs: nnx.Rngs):
        super().__init__(channels, 1, channels, bias=True, attend=attend, rngs=rngs)
        self.group_norm = GroupNorm(channels, groups, eps=_EPS, rngs=rngs)

    def __call__(self, x: Map) -> Map:
        b, h, w, c = x.shape
        positions = self.group_norm(x).reshape(b, h * w, c)
        return x + super().__call__(positions).reshape(x.shape)


def fourier_features(x: Map, bands: int) -> Map:
    """Equation (1): c channels become c (1 + 2 ``bands``): x, sines, cosines."""
    if not bands:
        return x
    # In fp32: the angle reaches 2^(K-1) pi, where bf16 has lost the phase.
    angles = [2.0**k * jnp.pi * x.astype(jnp.float32) for k in range(bands)]
    waves = [jnp.sin(a) for a in angles] + [jnp.cos(a) for a in angles]
    return jnp.concatenate([x, *(wave.astype(x.dtype) for wave in waves)], axis=-1)


def mean(moments: Float[Array, "... 2*c"]) -> Float[Array, "... c"]:
    """The Gaussian's mean."""
    return jnp.split(moments, 2, axis=-1)[0]


def log_variance(moments: Float[Array, "... 2*c"]) -> Float[Array, "... c"]:
    """The Gaussian's log-variance, held in [-30, 20] so that its exponential stays finite."""
    return jnp.clip(jnp.split(moments, 2, axis=-1)[1], -30.0, 20.0)


def sample(moments: Float[Array, "... 2*c"], key: jax.Array) -> Float[Array, "... c"]:
    """One draw of the latents."""
    mu = mean(moments)
    return mu + jnp.exp(log_variance(moments) / 2) * jax.random.normal(key, mu.shape, mu.dtype)


def kl(moments: Float[Array, "b h w 2*c"]) -> Float[Array, "b"]:
    """Equation (2), in nats a picture (a sum over positions and channels), in fp32."""
    moments = moments.astype(jnp.float32)
    mu, log_var = mean(moments), log_variance(moments)
    return 0.5 * jnp.sum(mu**2 + jnp.exp(log_var) - 1.0 - log_var, axis=(1, 2, 3))
