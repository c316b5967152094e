"""aMUSEd's denoiser (Patil et al. 2024): from a map of tokens to logits, by a transformer between
two blocks of convolutions.

    embed               token embeddings, projected to ``channels``
    down_block          ConvNeXt-like residual blocks, each followed by two cross-attentions to the
                        text; with ``resample`` the map is halved first
    transformer_layers  self-attention, cross-attention to the text, gated MLP, over all positions
    up_block            as down_block; with ``resample`` the map is doubled at the end
    mlm_layer           to the codes

Structured and named as diffusers' UVit2DModel; no layer has a bias. A conditioning vector c of
pooled text and micro-conditions scales and shifts by a linear map of silu(c):

    x (1 + scale(c)) + shift(c)                                                            (1)

In the transformer x is a layer's normalized input, in the other blocks the output of a residual
block. The linear maps start at zero.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from emu_jax.errors import UserError
from emu_jax.nn.attention import Attend, Attention, attend
from emu_jax.nn.embeddings import TimestepEmbedding
from emu_jax.nn.layers import LayerNorm, RMSNorm, Table, conv, linear
from emu_jax.nn.stack import Constrain, Gather, Stack
from emu_jax.nn.transformer import FeedForward

Map = Float[Array, "b h w c"]
Positions = Float[Array, "b n d"]
Conditioning = Float[Array, "b p"]  # silu(c), which all layers share
Text = Float[Array, "b l t"]
Mask = Bool[Array, "b l"] | None  # which of the text's states may be attended to


class UVit(nnx.Module):
    """``codes`` codes. The embedding table has ``vocabulary`` rows; the last row is that of [MASK],
    the token ``codes`` (public tables are padded: 8,256 rows for 8,192 codes).

    ``width``, ``depth``, ``heads`` and ``mlp_width`` belong to the transformer. The blocks around
    it have ``channels`` and ``block_heads``, and ``blocks`` pairs of residual block and attention
    each.

    ``scan``, ``remat`` and ``gather`` change how the transformer is computed, not what:
    :mod:`emu_jax.nn.stack`.
    """

    def __init__(
        self,
        *,
        codes: int,
        width: int = 1024,
        depth: int = 22,
        heads: int = 16,
        mlp_width: int = 2816,
        channels: int = 768,
        embed_width: int = 768,
        blocks: int = 3,
        block_heads: int = 12,
        context_width: int,
        vector_width: int | None,
        vocabulary: int | None = None,
        resample: bool = False,
        eps: float = 1e-6,
        scan: bool = False,
        remat: str = "none",
        attend: Attend = attend,
        constrain: Constrain = lambda x: x,
        gather: Gather | None = None,
        rngs: nnx.Rngs,
    ):
        rows = vocabulary or codes + 1
        if rows <= codes:
            raise UserError(
                f"The uvit's vocabulary is {rows}; use more than {codes}, for the codes and [MASK]."
            )
        if not vector_width:
            raise UserError(
                "A uvit needs a vector, but the conditioner gives none; use a text encoder with a "
                "pooled vector, or sizes."
            )
        for size, parts in ((width, heads), (channels, block_heads)):
            if size % parts:
                raise UserError(f"A uvit's width {size} is not a multiple of its {parts} heads.")
        self.codes, self.rows, self.constrain = codes, rows, constrain
        self.encoder_proj = linear(context_width, width, bias=False, rngs=rngs)
        self.encoder_proj_layer_norm = RMSNorm(width, eps=eps, rngs=rngs)
        self.embed = Embed(rows, embed_width, channels, eps, rngs=rngs)
        self.cond_embed = TimestepEmbedding(vector_width, width, bias=False, rngs=rngs)

        def block(**ends: bool) -> Block:
            return Block(channels, block_heads, width, blocks, eps, attend, **ends, rngs=rngs)

        self.down_block = block(down=resample)
        self.project_to_hidden_norm = RMSNorm(channels, eps=eps, rngs=rngs)
        self.project_to_hidden = linear(channels, width, bias=False, rngs=rngs)
        layers = [Layer(width, heads, mlp_width, eps, attend, rngs=rngs) for _ in range(depth)]
        self.transformer_layers = Stack(
            layers, scan=scan, remat=remat, gather=gather, constrain=constrain
        )
        self.project_from_hidden_norm = RMSNorm(width, eps=eps, rngs=rngs)
        self.project_from_hidden = linear(width, channels, bias=False, rngs=rngs)
        self.up_block = block(up=resample)
        self.mlm_layer = Head(channels, embed_width, codes, eps, rngs=rngs)

    def __call__(
        self,
        x: Int[Array, "b h w"],
        timestep: Float[Array, " b"],
        context: Float[Array, "b l c"],
        mask: Mask,
        vector: Float[Array, "b p"],
    ) -> Float[Array, "b h w k"]:
        """Logits. ``timestep`` is ignored: the number of [MASK] tokens carries the same
        information.
        """
        conditioning = jax.nn.silu(self.cond_embed(vector))
        text = self.encoder_proj_layer_norm(self.encoder_proj(context))
        y = self.embed(jnp.where(x == self.codes, self.rows - 1, x))
        y = self.constrain(self.down_block(y, conditioning, text, mask))
        b, h, w, _ = y.shape
        y = self.project_to_hidden(self.project_to_hidden_norm(y)).reshape(b, h * w, -1)
        y = self.transformer_layers(y, conditioning, text, mask)
        y = self.project_from_hidden(self.project_from_hidden_norm(y)).reshape(b, h, w, -1)
        return self.mlm_layer(self.constrain(self.up_block(y, conditioning, text, mask)))


class Embed(nnx.Module):
    def __init__(self, rows: int, width: int, channels: int, eps: float, *, rngs: nnx.Rngs):
        self.embeddings = Table(rows, width, rngs=rngs)
        self.layer_norm = RMSNorm(width, eps=eps, rngs=rngs)
        self.conv = conv(width, channels, 1, bias=False, rngs=rngs)

    def __call__(self, x: Int[Array, "b h w"]) -> Map:
        return self.conv(self.layer_norm(self.embeddings(x)))


class Head(nnx.Module):
    def __init__(self, channels: int, width: int, codes: int, eps: float, *, rngs: nnx.Rngs):
        self.conv1 = conv(channels, width, 1, bias=False, rngs=rngs)
        self.layer_norm = RMSNorm(width, eps=eps, rngs=rngs)
        self.conv2 = conv(width, codes, 1, bias=False, rngs=rngs)

    def __call__(self, x: Map) -> Float[Array, "b h w k"]:
        return self.conv2(self.layer_norm(self.conv1(x)))


# The transformer ---------------------------------------------------------------------------------


class Layer(nnx.Module):
    """x + f(norm(x)) for both attentions and the MLP, each norm with equation (1)."""

    def __init__(
        self, width: int, heads: int, mlp_width: int, eps: float, attend: Attend, *, rngs: nnx.Rngs
    ):
        def norm(inner: nnx.Module) -> ConditionedNorm:
            return ConditionedNorm(inner, width, rngs=rngs)

        def attention() -> Attention:
            return Attention(width, heads, width // heads, out_bias=False, attend=attend, rngs=rngs)

        self.norm1, self.attn1 = norm(RMSNorm(width, eps=eps, rngs=rngs)), attention()
        self.norm2, self.attn2 = norm(RMSNorm(width, eps=eps, rngs=rngs)), attention()
        self.norm3 = norm(LayerNorm(width, eps=eps, bias=False, rngs=rngs))
        self.ff = FeedForward(width, mlp_width, bias=False, rngs=rngs)

    def __call__(
        self, x: Positions, conditioning: Conditioning, text: Text, mask: Mask
    ) -> Positions:
        x = x + self.attn1(self.norm1(x, conditioning))
        x = x + self.attn2(self.norm2(x, conditioning), text, mask)
        return x + self.ff(self.norm3(x, conditioning))


class ConditionedNorm(nnx.Module):
    """Equation (1) for the normalized x."""

    def __init__(self, norm: nnx.Module, width: int, *, rngs: nnx.Rngs):
        self.linear = linear(width, 2 * width, bias=False, zero=True, rngs=rngs)
        self.norm = norm

    def __call__(self, x: Positions, conditioning: Conditioning) -> Positions:
        return _modulated(self.norm(x), self.linear(conditioning))


def _modulated(
    x: Float[Array, "b *n c"], modulation: Float[Array, "b 2*c"]
) -> Float[Array, "b *n c"]:
    """Equation (1); ``modulation`` is (scale, shift)."""
    modulation = modulation.reshape(modulation.shape[0], *(1,) * (x.ndim - 2), -1)
    scale, shift = jnp.split(modulation, 2, axis=-1)
    return x * (1 + scale) + shift


# The blocks around it ----------------------------------------------------------------------------


class Block(nnx.Module):
    """``blocks`` times a residual block and attention to the text. The map is halved before them
    (``down``) or doubled after them (``up``)."""

    def __init__(
        self,
        channels: int,
        heads: int,
        width: int,
        blocks: int,
        eps: float,
        attend: Attend,
        *,
        down: bool = False,
        up: bool = False,
        rngs: nnx.Rngs,
    ):
        self.downsample = Halve(channels, eps, rngs=rngs) if down else None
        self.res_blocks = nnx.List(
            ConvNextBlock(channels, width, eps, rngs=rngs) for _ in range(blocks)
        )
        self.attention_blocks = nnx.List(
            TextBlock(channels, heads, width, attend, rngs=rngs) for _ in range(blocks)
        )
        self.upsample = Double(channels, eps, rngs=rngs) if up else None

    def __call__(
        self, x: Map, conditioning: Conditioning, text: Text, mask: Mask
    ) -> Float[Array, "b h2 w2 c"]:
        if self.downsample is not None:
            x = self.downsample(x)
        b, h, w, c = x.shape
        for residual, attention in zip(self.res_blocks, self.attention_blocks, strict=True):
            x = residual(x, conditioning).reshape(b, h * w, c)
            x = attention(x, text, mask).reshape(b, h, w, c)
        return x if self.upsample is None else self.upsample(x)


class ConvNextBlock(nnx.Module):
    """A depthwise convolution and an MLP, then equation (1)."""

    def __init__(self, channels: int, width: int, eps: float, *, rngs: nnx.Rngs):
        self.depthwise = conv(channels, channels, groups=channels, bias=False, rngs=rngs)
        self.norm = RMSNorm(channels, eps=eps, rngs=rngs)
        self.channelwise_linear_1 = linear(channels, 4 * channels, bias=False, rngs=rngs)
        self.channelwise_norm = GlobalResponseNorm(4 * channels)
        self.channelwise_linear_2 = linear(4 * channels, channels, bias=False, rngs=rngs)
        self.cond_embeds_mapper = linear(width, 2 * channels, bias=False, zero=True, rngs=rngs)

    def __call__(self, x: Map, conditioning: Conditioning) -> Map:
        y = self.channelwise_linear_1(self.norm(self.depthwise(x)))
        y = self.channelwise_norm(jax.nn.gelu(y, approximate=False))
        return _modulated(x + self.channelwise_linear_2(y), self.cond_embeds_mapper(conditioning))


class GlobalResponseNorm(nnx.Module):
    """Weights channels by their share of a map's energy (Woo et al. 2023):

        x + gamma x |x|_c / (mean over c of |x|_c) + beta                                  (2)

    with |x|_c the norm over all positions of channel c. gamma and beta start at zero.
    """

    def __init__(self, channels: int):
        self.gamma = nnx.Param(jnp.zeros((1, 1, 1, channels)))
        self.beta = nnx.Param(jnp.zeros((1, 1, 1, channels)))

    def __call__(self, x: Map) -> Map:
        energy = jnp.sum(jnp.square(x.astype(jnp.float32)), (1, 2), keepdims=True)
        norm = _root(energy)
        share = norm / (norm.mean(-1, keepdims=True) + 1e-6)
        return self.gamma[...] * (x * share.astype(x.dtype)) + self.beta[...] + x


def _root(x: Array) -> Array:
    """The square root, with a derivative of 0 at 0."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)


class TextBlock(nnx.Module):
    """Twice x + cross-attention to the text, without self-attention."""

    def __init__(self, channels: int, heads: int, width: int, attend: Attend, *, rngs: nnx.Rngs):
        def attention() -> Attention:
            return Attention(
                channels, heads, channels // heads, out_bias=False, attend=attend, rngs=rngs
            )

        # diffusers' class has no projection where the widths are equal.
        same = width == channels
        self.kv_mapper = None if same else linear(width, channels, bias=False, rngs=rngs)
        self.norm1, self.attn1 = RMSNorm(channels, rngs=rngs), attention()
        self.norm2, self.attn2 = RMSNorm(channels, rngs=rngs), attention()

    def __call__(self, x: Positions, text: Text, mask: Mask) -> Positions:
        if self.kv_mapper is not None:
            text = self.kv_mapper(jax.nn.silu(text))
        x = x + self.attn1(self.norm1(x), text, mask)
        return x + self.attn2(self.norm2(x), text, mask)


class Halve(nnx.Module):
    """Halves the normalized map: every 2 x 2 positions become one."""

    def __init__(self, channels: int, eps: float, *, rngs: nnx.Rngs):
        self.norm = RMSNorm(channels, eps=eps, rngs=rngs)
        self.conv = conv(channels, channels, 2, stride=2, padding=(0, 0), bias=False, rngs=rngs)

    def __call__(self, x: Map) -> Float[Array, "b h//2 w//2 c"]:
        h, w = x.shape[1:3]
        if h % 2 or w % 2:
            raise UserError(f"A map of {h} x {w} tokens cannot be halved; use even sizes.")
        return self.conv(self.norm(x))


class Double(nnx.Module):
    """Doubles the normalized map: every position becomes 2 x 2."""

    def __init__(self, channels: int, eps: float, *, rngs: nnx.Rngs):
        self.norm = RMSNorm(channels, eps=eps, rngs=rngs)
        self.conv = Spread(channels, rngs=rngs)

    def __call__(self, x: Map) -> Float[Array, "b 2*h 2*w c"]:
        return self.conv(self.norm(x))


class Spread(nnx.Module):
    """A transposed 2 x 2 convolution of stride 2, computed as a matrix product. The kernel is
    [2, 2, out, in], because torch stores transposed convolutions with the inputs first.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.lecun_normal(in_axis=-1, out_axis=-2)
        self.kernel = nnx.Param(init(rngs.params(), (2, 2, channels, channels)))

    def __call__(self, x: Map) -> Float[Array, "b 2*h 2*w c"]:
        b, h, w, c = x.shape
        y = jnp.einsum("bhwi,uvoi->bhuwvo", x, self.kernel[...])
        return y.reshape(b, 2 * h, 2 * w, c)
