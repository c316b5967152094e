"""aMUSEd's denoiser (Patil et al. 2024): a map of tokens to logits, blocks around a transformer.

    embed               a vector a token, to ``channels``
    down_block          residual blocks in ConvNeXt's manner, each followed by two attentions to the
                        text; first halved where ``resample``
    transformer_layers  self-attention, attention to the text, gated MLP, over all positions
    up_block            as down_block; doubled at the end where ``resample``
    mlm_layer           to the codes

Structured and named as diffusers' UVit2DModel; no layer has a bias. What it is told, a vector c of
pooled text and micro-conditions, scales and shifts by a linear map of silu(c):

    x (1 + scale(c)) + shift(c)                                                            (1)

a layer's normalised input in the transformer, a residual block's output in the blocks. The maps
start at zero.
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
Told = Float[Array, "b p"]  # silu(c), which all layers share
Text = Float[Array, "b l d"]
Seen = Bool[Array, "b l"] | None  # which of the text's states may be attended to


class UVit(nnx.Module):
    """``codes`` codes; the table has ``vocabulary`` rows, of which the last is [MASK]'s, the token
    ``codes`` (public ones are padded: 8,256 rows for 8,192 codes).

    ``width``, ``depth``, ``heads`` and ``mlp_width`` are the transformer's; the blocks around it
    are of ``channels``, ``blocks`` pairs each, with ``block_heads``. ``scan`` keeps the transformer
    as one loop, ``remat`` names what is kept of each layer (:mod:`emu_jax.nn.stack`).
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
            raise UserError(f"{codes} codes and [MASK] take more than {rows} rows of a vocabulary.")
        if not vector_width:
            raise UserError(
                "A uvit is told a vector: give a text encoder's pooled vector, or sizes."
            )
        for size, parts in ((width, heads), (channels, block_heads)):
            if size % parts:
                raise UserError(f"A uvit's width {size} does not divide into {parts} heads.")
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
        t: Float[Array, " b"],
        context: Float[Array, "b l c"],
        mask: Bool[Array, "b l"] | None,
        vector: Float[Array, "b p"],
    ) -> Float[Array, "b h w k"]:
        """Logits. ``t`` is not looked at: the masks say how far things are."""
        told = jax.nn.silu(self.cond_embed(vector))
        text = self.encoder_proj_layer_norm(self.encoder_proj(context))
        y = self.embed(jnp.where(x == self.codes, self.rows - 1, x))
        y = self.constrain(self.down_block(y, told, text, mask))
        b, h, w, _ = y.shape
        y = self.project_to_hidden(self.project_to_hidden_norm(y)).reshape(b, h * w, -1)
        y = self.transformer_layers(y, told, text, mask)
        y = self.project_from_hidden(self.project_from_hidden_norm(y)).reshape(b, h, w, -1)
        return self.mlm_layer(self.constrain(self.up_block(y, told, text, mask)))


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
    """x + f(norm(x)) for both attentions and the MLP, each norm by (1)."""

    def __init__(
        self, width: int, heads: int, mlp_width: int, eps: float, attend: Attend, *, rngs: nnx.Rngs
    ):
        def norm(inner: nnx.Module) -> ToldNorm:
            return ToldNorm(inner, width, rngs=rngs)

        def attention() -> Attention:
            return Attention(width, heads, width // heads, out_bias=False, attend=attend, rngs=rngs)

        self.norm1, self.attn1 = norm(RMSNorm(width, eps=eps, rngs=rngs)), attention()
        self.norm2, self.attn2 = norm(RMSNorm(width, eps=eps, rngs=rngs)), attention()
        self.norm3 = norm(LayerNorm(width, eps=eps, bias=False, rngs=rngs))
        self.ff = FeedForward(width, mlp_width, bias=False, rngs=rngs)

    def __call__(self, x: Positions, told: Told, text: Text, mask: Seen) -> Positions:
        x = x + self.attn1(self.norm1(x, told))
        x = x + self.attn2(self.norm2(x, told), text, mask)
        return x + self.ff(self.norm3(x, told))


class ToldNorm(nnx.Module):
    """Equation (1) of the normalised x."""

    def __init__(self, norm: nnx.Module, width: int, *, rngs: nnx.Rngs):
        self.linear = linear(width, 2 * width, bias=False, zero=True, rngs=rngs)
        self.norm = norm

    def __call__(self, x: Positions, told: Told) -> Positions:
        return _modulated(self.norm(x), self.linear(told))


def _modulated(x: Float[Array, "b *n c"], by: Float[Array, "b 2*c"]) -> Float[Array, "b *n c"]:
    """Equation (1), ``by`` being (scale, shift)."""
    by = by.reshape(by.shape[0], *(1,) * (x.ndim - 2), -1)
    scale, shift = jnp.split(by, 2, axis=-1)
    return x * (1 + scale) + shift


# The blocks around it ----------------------------------------------------------------------------


class Block(nnx.Module):
    """``blocks`` times a residual block and attention to the text; halved first (``down``), or
    doubled last (``up``)."""

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

    def __call__(self, x: Map, told: Told, text: Text, mask: Seen) -> Map:
        if self.downsample is not None:
            x = self.downsample(x)
        b, h, w, c = x.shape
        for residual, attention in zip(self.res_blocks, self.attention_blocks, strict=True):
            x = residual(x, told).reshape(b, h * w, c)
            x = attention(x, text, mask).reshape(b, h, w, c)
        return x if self.upsample is None else self.upsample(x)


class ConvNextBlock(nnx.Module):
    """A convolution channel by channel and an MLP, then (1)."""

    def __init__(self, channels: int, width: int, eps: float, *, rngs: nnx.Rngs):
        self.depthwise = conv(channels, channels, groups=channels, bias=False, rngs=rngs)
        self.norm = RMSNorm(channels, eps=eps, rngs=rngs)
        self.channelwise_linear_1 = linear(channels, 4 * channels, bias=False, rngs=rngs)
        self.channelwise_norm = GlobalResponseNorm(4 * channels)
        self.channelwise_linear_2 = linear(4 * channels, channels, bias=False, rngs=rngs)
        self.cond_embeds_mapper = linear(width, 2 * channels, bias=False, zero=True, rngs=rngs)

    def __call__(self, x: Map, told: Told) -> Map:
        y = self.channelwise_linear_1(self.norm(self.depthwise(x)))
        y = self.channelwise_norm(jax.nn.gelu(y, approximate=False))
        return _modulated(x + self.channelwise_linear_2(y), self.cond_embeds_mapper(told))


class GlobalResponseNorm(nnx.Module):
    """Channels weighed by their share of a map's energy (Woo et al. 2023), from zero on:

    x + gamma x |x|_c / mean over c of |x|_c + beta,   |x|_c over all positions of channel c
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
    """The square root, whose slope at 0 is taken as 0."""
    some = x > 0
    return jnp.where(some, jnp.sqrt(jnp.where(some, x, 1)), 0)


class TextBlock(nnx.Module):
    """Twice x + attention to the text (and never to x itself)."""

    def __init__(self, channels: int, heads: int, width: int, attend: Attend, *, rngs: nnx.Rngs):
        def attention() -> Attention:
            return Attention(
                channels, heads, channels // heads, out_bias=False, attend=attend, rngs=rngs
            )

        # The public class has no map where the widths agree.
        same = width == channels
        self.kv_mapper = None if same else linear(width, channels, bias=False, rngs=rngs)
        self.norm1, self.attn1 = RMSNorm(channels, rngs=rngs), attention()
        self.norm2, self.attn2 = RMSNorm(channels, rngs=rngs), attention()

    def __call__(self, x: Positions, text: Text, mask: Seen) -> Positions:
        if self.kv_mapper is not None:
            text = self.kv_mapper(jax.nn.silu(text))
        x = x + self.attn1(self.norm1(x), text, mask)
        return x + self.attn2(self.norm2(x), text, mask)


class Halve(nnx.Module):
    """Every 2 x 2 normalised positions become one."""

    def __init__(self, channels: int, eps: float, *, rngs: nnx.Rngs):
        self.norm = RMSNorm(channels, eps=eps, rngs=rngs)
        self.conv = conv(channels, channels, 2, stride=2, padding=(0, 0), bias=False, rngs=rngs)

    def __call__(self, x: Map) -> Map:
        h, w = x.shape[1:3]
        if h % 2 or w % 2:
            raise UserError(f"A map of {h} x {w} tokens cannot be halved: choose an even size.")
        return self.conv(self.norm(x))


class Double(nnx.Module):
    """Every normalised position becomes 2 x 2."""

    def __init__(self, channels: int, eps: float, *, rngs: nnx.Rngs):
        self.norm = RMSNorm(channels, eps=eps, rngs=rngs)
        self.conv = Spread(channels, rngs=rngs)

    def __call__(self, x: Map) -> Map:
        return self.conv(self.norm(x))


class Spread(nnx.Module):
    """A transposed 2 x 2 convolution of stride 2, which is a product. Its kernel is
    [2, 2, out, in]: torch keeps such a one with inputs in front.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.lecun_normal(in_axis=-1, out_axis=-2)
        self.kernel = nnx.Param(init(rngs.params(), (2, 2, channels, channels)))

    def __call__(self, x: Map) -> Map:
        b, h, w, c = x.shape
        y = jnp.einsum("bhwi,uvoi->bhuwvo", x, self.kernel[...])
        return y.reshape(b, 2 * h, 2 * w, c)
