"""Segment Anything (Kirillov et al. 2023, arXiv:2304.02643): from points or a box to masks.

The image encoder (``emu_jax.nn.sam_vision``) runs once per image. Points and the corners of a box
become tokens, by random Fourier features of their positions and an embedding of their kind. Two
layers attend from these tokens and four learned mask tokens to the image and back; the product of
each mask token with the enlarged image features is a mask. Beside each mask the network estimates
its intersection over union with the true one. Parameters are named as in the published files.

Masks as prompts are not supported.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from emu_jax.nn.attention import Attend, attend, merge_heads, split_heads
from emu_jax.nn.layers import LayerNorm, Table, linear
from emu_jax.nn.sam_vision import Mlp, SamVision

OUTSIDE, INSIDE, NO_POINT = 0, 1, -1
"""Kinds of points: outside the mask, inside it, and none (padding)."""
_CORNERS = (2, 3)  # embeddings of a box's top left and bottom right corner
_EPS = 1e-6


class Sam(nnx.Module):
    """``masks`` is the number of mask tokens; the first one is for a single, unambiguous mask."""

    def __init__(
        self,
        vision: SamVision,
        *,
        image_size: int = 1024,
        channels: int = 256,
        layers: int = 2,
        heads: int = 8,
        feed_forward: int = 2048,
        downsample: int = 2,
        masks: int = 4,
        iou_depth: int = 3,
        iou_width: int = 256,
        attend: Attend = attend,
        rngs: nnx.Rngs,
    ):
        self.image_size = image_size
        self.shared_image_embedding = Fourier(channels // 2, rngs=rngs)
        self.vision_encoder = vision
        self.prompt_encoder = PromptEncoder(channels, rngs=rngs)
        transformer = TwoWay(channels, layers, heads, feed_forward, downsample, attend, rngs=rngs)
        self.mask_decoder = MaskDecoder(
            transformer, channels, masks, iou_depth, iou_width, rngs=rngs
        )

    def __call__(
        self,
        x: Float[Array, "b s s 3"],
        points: Float[Array, "b n 2"],
        kinds: Int[Array, "b n"],
        box: Float[Array, "b 4"] | None = None,
    ) -> tuple[Float[Array, "b m i i"], Float[Array, "b m"]]:
        """(logits of three masks at a quarter of the image's size, their estimated intersection
        over union).

        ``x`` is normalized and padded to a square; ``points`` are (x, y) in its pixels and ``box``
        is (left, top, right, bottom).
        """
        image = self.vision_encoder(x)
        b, side = image.shape[:2]
        tokens = self._tokens(points, kinds, box)
        image = image + self.prompt_encoder.no_mask_embed.embedding[...][0]
        ticks = (jnp.arange(side) + 0.5) / side
        grid = jnp.stack(jnp.meshgrid(ticks, ticks), -1)  # (x, y)
        positions = self.shared_image_embedding(grid).reshape(1, side * side, -1)
        positions = jnp.broadcast_to(positions, (b, *positions.shape[1:]))
        return self.mask_decoder(image, positions, tokens)

    def _tokens(
        self,
        points: Float[Array, "b n 2"],
        kinds: Int[Array, "b n"],
        box: Float[Array, "b 4"] | None,
    ) -> Float[Array, "b k c"]:
        parts, embed = self.prompt_encoder, self.shared_image_embedding
        table = jnp.concatenate([row.embedding[...] for row in parts.point_embed])
        if box is None:  # published models were trained with one more token where there is no box
            points = jnp.pad(points, ((0, 0), (0, 1), (0, 0)))
            kinds = jnp.pad(kinds, ((0, 0), (0, 1)), constant_values=NO_POINT)
        known = kinds[..., None] != NO_POINT
        found = embed((points + 0.5) / self.image_size) + table[jnp.maximum(kinds, 0)]
        tokens = jnp.where(known, found, parts.not_a_point_embed.embedding[...][0])
        if box is None:
            return tokens
        corners = embed((box.reshape(-1, 2, 2) + 0.5) / self.image_size)
        return jnp.concatenate([tokens, corners + table[jnp.array(_CORNERS)]], axis=1)


class PromptEncoder(nnx.Module):
    """Embeddings of the kinds of points and corners, and of their absence."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.no_mask_embed = Table(1, channels, rngs=rngs)
        self.not_a_point_embed = Table(1, channels, rngs=rngs)
        self.point_embed = nnx.List(Table(1, channels, rngs=rngs) for _ in range(4))


class Fourier(nnx.Module):
    """Sines and cosines of positions, (x, y) between 0 and 1, along random directions."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        initial = nnx.initializers.normal(1.0)(rngs.params(), (2, features))
        self.positional_embedding = nnx.Param(initial)

    def __call__(self, positions: Float[Array, "*b 2"]) -> Float[Array, "*b c"]:
        angle = 2 * jnp.pi * ((2 * positions - 1) @ self.positional_embedding[...])
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


class MaskDecoder(nnx.Module):
    def __init__(
        self,
        transformer: "TwoWay",
        channels: int,
        masks: int,
        iou_depth: int,
        iou_width: int,
        *,
        rngs: nnx.Rngs,
    ):
        self.iou_token = Table(1, channels, rngs=rngs)
        self.mask_tokens = Table(masks, channels, rngs=rngs)
        self.transformer = transformer
        self.upscale_conv1 = Doubling(channels, channels // 4, rngs=rngs)
        self.upscale_layer_norm = LayerNorm(channels // 4, eps=_EPS, rngs=rngs)
        self.upscale_conv2 = Doubling(channels // 4, channels // 8, rngs=rngs)
        self.output_hypernetworks_mlps = nnx.List(
            FeedForward(channels, channels, channels // 8, 3, rngs=rngs) for _ in range(masks)
        )
        self.iou_prediction_head = FeedForward(channels, iou_width, masks, iou_depth, rngs=rngs)

    def __call__(
        self,
        image: Float[Array, "b h h c"],
        positions: Float[Array, "b n c"],
        prompts: Float[Array, "b k c"],
    ) -> tuple[Float[Array, "b m i i"], Float[Array, "b m"]]:
        b, side, _, c = image.shape
        own = jnp.concatenate([self.iou_token.embedding[...], self.mask_tokens.embedding[...]])
        tokens = jnp.concatenate([jnp.broadcast_to(own, (b, *own.shape)), prompts], axis=1)
        tokens, image = self.transformer(tokens, image.reshape(b, -1, c), positions)
        large = self.upscale_conv1(image.reshape(b, side, side, c))
        large = nnx.gelu(self.upscale_layer_norm(large), approximate=False)
        large = nnx.gelu(self.upscale_conv2(large), approximate=False)
        heads = enumerate(self.output_hypernetworks_mlps)
        factors = jnp.stack([head(tokens[:, 1 + i]) for i, head in heads], axis=1)
        masks = jnp.einsum("bmc,bijc->bmij", factors, large)
        return masks[:, 1:], self.iou_prediction_head(tokens[:, 0])[:, 1:]


class Doubling(nnx.Module):
    """A transposed convolution of size and stride 2; its kernel is [2, 2, out, in]."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        initial = nnx.initializers.lecun_normal(in_axis=-1, out_axis=-2)
        self.kernel = nnx.Param(initial(rngs.params(), (2, 2, outputs, inputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        b, h, w, _ = x.shape
        y = jnp.einsum("bhwc,ijdc->bhiwjd", x, self.kernel[...])
        return y.reshape(b, 2 * h, 2 * w, -1) + self.bias[...]


class FeedForward(nnx.Module):
    def __init__(self, inputs: int, width: int, outputs: int, depth: int, *, rngs: nnx.Rngs):
        self.proj_in = linear(inputs, width, rngs=rngs)
        self.layers = nnx.List(linear(width, width, rngs=rngs) for _ in range(depth - 2))
        self.proj_out = linear(width, outputs, rngs=rngs)

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b d"]:
        for layer in (self.proj_in, *self.layers):
            x = nnx.relu(layer(x))
        return self.proj_out(x)


class TwoWay(nnx.Module):
    """Attention from tokens to the image and back; positions are added to queries and keys."""

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        feed_forward: int,
        downsample: int,
        attend: Attend,
        *,
        rngs: nnx.Rngs,
    ):
        inner = width // downsample
        self.layers = nnx.List(
            TwoWayLayer(width, inner, heads, feed_forward, i == 0, attend, rngs=rngs)
            for i in range(layers)
        )
        self.final_attn_token_to_image = Cross(width, inner, heads, attend, rngs=rngs)
        self.layer_norm_final_attn = LayerNorm(width, rngs=rngs)

    def __call__(
        self,
        tokens: Float[Array, "b k c"],
        image: Float[Array, "b n c"],
        positions: Float[Array, "b n c"],
    ) -> tuple[Float[Array, "b k c"], Float[Array, "b n c"]]:
        x = tokens
        for layer in self.layers:
            x, image = layer(x, image, tokens, positions)
        x = x + self.final_attn_token_to_image(x + tokens, image + positions, image)
        return self.layer_norm_final_attn(x), image


class TwoWayLayer(nnx.Module):
    def __init__(
        self,
        width: int,
        inner: int,
        heads: int,
        feed_forward: int,
        first: bool,
        attend: Attend,
        *,
        rngs: nnx.Rngs,
    ):
        self.first = first
        self.self_attn = Cross(width, width, heads, attend, rngs=rngs)
        self.layer_norm1 = LayerNorm(width, eps=_EPS, rngs=rngs)
        self.cross_attn_token_to_image = Cross(width, inner, heads, attend, rngs=rngs)
        self.layer_norm2 = LayerNorm(width, eps=_EPS, rngs=rngs)
        self.mlp = Mlp(width, feed_forward, "relu", rngs=rngs)
        self.layer_norm3 = LayerNorm(width, eps=_EPS, rngs=rngs)
        self.cross_attn_image_to_token = Cross(width, inner, heads, attend, rngs=rngs)
        self.layer_norm4 = LayerNorm(width, eps=_EPS, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b k c"],
        image: Float[Array, "b n c"],
        tokens: Float[Array, "b k c"],
        positions: Float[Array, "b n c"],
    ) -> tuple[Float[Array, "b k c"], Float[Array, "b n c"]]:
        # In the first layer x are the tokens themselves.
        query, skip = (x, 0) if self.first else (x + tokens, x)
        x = self.layer_norm1(skip + self.self_attn(query, query, x))
        x = x + self.cross_attn_token_to_image(x + tokens, image + positions, image)
        x = self.layer_norm2(x)
        x = self.layer_norm3(x + self.mlp(x))
        back = self.cross_attn_image_to_token(image + positions, x + tokens, x)
        return x, self.layer_norm4(image + back)


class Cross(nnx.Module):
    def __init__(self, width: int, inner: int, heads: int, attend: Attend, *, rngs: nnx.Rngs):
        self.q_proj = linear(width, inner, rngs=rngs)
        self.k_proj = linear(width, inner, rngs=rngs)
        self.v_proj = linear(width, inner, rngs=rngs)
        self.out_proj = linear(inner, width, rngs=rngs)
        self.heads, self.attend = heads, attend

    def __call__(
        self, q: Float[Array, "b n c"], k: Float[Array, "b m c"], v: Float[Array, "b m c"]
    ) -> Float[Array, "b n c"]:
        q, k, v = (
            split_heads(layer(x), self.heads)
            for layer, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        )
        return self.out_proj(merge_heads(self.attend(q, k, v, None)))
