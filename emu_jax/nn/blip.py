"""BLIP: a ViT, and a BERT that attends to the image's patches (Li et al. 2022, arXiv:2201.12086).

ImageReward (Xu et al. 2023, arXiv:2304.05977) reads the text in both directions. The captioner
(:mod:`emu_jax.nn.captioner`) reads it token by token, with keys and values of earlier tokens.

Parameters are named as in ImageReward's file, without the prefix ``blip.``. Sizes by default are
its own: ViT-L/16 at 224 pixels, BERT-base with a vocabulary of two more tokens.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from emu_jax.nn.attention import attend, key_mask, merge_heads, split_heads
from emu_jax.nn.bert import Dense, Residual
from emu_jax.nn.clip import Mlp
from emu_jax.nn.layers import LayerNorm, Table, linear
from emu_jax.nn.score_head import ScoreHead

# Keys and values, [b, n, heads, head width] each.
Keys = tuple[jax.Array, jax.Array]

_VISION_EPS, _TEXT_EPS = 1e-6, 1e-12
# Of the rewards of its validation set.
MEAN, DEVIATION = 0.16717362830052426, 1.0333394966054072


class ImageReward(nnx.Module):
    """The standardized reward of images, normalized as CLIP's, for prompts."""

    def __init__(
        self,
        *,
        image_size: int = 224,
        patch_size: int = 16,
        vision_width: int = 1024,
        vision_layers: int = 24,
        vision_heads: int = 16,
        vocabulary: int = 30524,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        feed_forward: int = 3072,
        positions: int = 512,
        rngs: nnx.Rngs,
    ):
        self.visual_encoder = VisionTransformer(
            image_size, patch_size, vision_width, vision_layers, vision_heads, rngs=rngs
        )
        self.text_encoder = TextEncoder(
            vocabulary,
            width,
            layers,
            heads,
            feed_forward,
            positions,
            vision_width,
            rngs=rngs,
        )
        self.mlp = ScoreHead(width, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b s s 3"], ids: Int[Array, "b l"], mask: Bool[Array, "b l"]
    ) -> Float[Array, " b"]:
        return (self.reward(x, ids, mask) - MEAN) / DEVIATION

    def reward(
        self, x: Float[Array, "b s s 3"], ids: Int[Array, "b l"], mask: Bool[Array, "b l"]
    ) -> Float[Array, " b"]:
        """The reward before it is standardized, in which training compares images."""
        states = self.text_encoder(ids, mask, self.visual_encoder(x))
        return self.mlp(states[:, 0])


class VisionTransformer(nnx.Module):
    """Final states of a class token and the patches row by row."""

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        width: int,
        layers: int,
        heads: int,
        *,
        feed_forward: int | None = None,
        eps: float = _VISION_EPS,
        rngs: nnx.Rngs,
    ):
        """``feed_forward`` None: four times the width."""
        normal, size = nnx.initializers.normal(0.02), (patch_size, patch_size)
        count = (image_size // patch_size) ** 2
        self.cls_token = nnx.Param(normal(rngs.params(), (1, 1, width)))
        self.pos_embed = nnx.Param(normal(rngs.params(), (1, count + 1, width)))
        projection = nnx.Conv(3, width, size, strides=size, padding="VALID", rngs=rngs)
        self.patch_embed = nnx.Dict(proj=projection)
        hidden = feed_forward or 4 * width
        self.blocks = nnx.List(
            VisionBlock(width, heads, hidden, eps, rngs=rngs) for _ in range(layers)
        )
        self.norm = LayerNorm(width, eps=eps, rngs=rngs)

    def __call__(self, x: Float[Array, "b s s 3"]) -> Float[Array, "b n width"]:
        x = self.patch_embed.proj(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        token = jnp.broadcast_to(self.cls_token[...], (x.shape[0], 1, x.shape[-1]))
        x = jnp.concatenate([token, x], axis=1) + self.pos_embed[...]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class VisionBlock(nnx.Module):
    def __init__(self, width: int, heads: int, feed_forward: int, eps: float, *, rngs: nnx.Rngs):
        self.norm1 = LayerNorm(width, eps=eps, rngs=rngs)
        self.attn = nnx.Dict(
            qkv=linear(width, 3 * width, rngs=rngs), proj=linear(width, width, rngs=rngs)
        )
        self.norm2 = LayerNorm(width, eps=eps, rngs=rngs)
        self.mlp = Mlp(width, feed_forward, "gelu", rngs=rngs)
        self.heads = heads

    def __call__(self, x: Float[Array, "b n width"]) -> Float[Array, "b n width"]:
        qkv = jnp.split(self.attn.qkv(self.norm1(x)), 3, axis=-1)
        q, k, v = (split_heads(y, self.heads) for y in qkv)
        x = x + self.attn.proj(merge_heads(attend(q, k, v, None)))
        return x + self.mlp(self.norm2(x))


class TextEncoder(nnx.Module):
    """A BERT without token types whose layers attend to the image after the text."""

    def __init__(
        self,
        vocabulary: int,
        width: int,
        layers: int,
        heads: int,
        feed_forward: int,
        positions: int,
        image_width: int,
        *,
        eps: float = _TEXT_EPS,
        rngs: nnx.Rngs,
    ):
        self.embeddings = Embeddings(vocabulary, width, positions, eps, rngs=rngs)
        self.encoder = nnx.Dict(
            layer=nnx.List(
                TextLayer(width, heads, feed_forward, image_width, eps, rngs=rngs)
                for _ in range(layers)
            )
        )

    def __call__(
        self,
        ids: Int[Array, "b l"],
        mask: Bool[Array, "b l"],
        image: Float[Array, "b n image_width"],
    ) -> Float[Array, "b l width"]:
        x = self.embeddings(ids, jnp.arange(ids.shape[1]))
        for layer in self.encoder.layer:
            x = layer(x, mask, image)
        return x


class Embeddings(nnx.Module):
    def __init__(self, vocabulary: int, width: int, positions: int, eps: float, *, rngs: nnx.Rngs):
        self.word_embeddings = Table(vocabulary, width, rngs=rngs)
        self.position_embeddings = Table(positions, width, rngs=rngs)
        self.LayerNorm = LayerNorm(width, eps=eps, rngs=rngs)

    def __call__(
        self, ids: Int[Array, "b l"], positions: Int[Array, "..."]
    ) -> Float[Array, "b l width"]:
        return self.LayerNorm(self.word_embeddings(ids) + self.position_embeddings(positions))


class TextLayer(nnx.Module):
    def __init__(
        self,
        width: int,
        heads: int,
        feed_forward: int,
        image_width: int,
        eps: float,
        *,
        rngs: nnx.Rngs,
    ):
        self.attention = Attention(width, width, heads, eps, rngs=rngs)
        self.crossattention = Attention(width, image_width, heads, eps, rngs=rngs)
        self.intermediate = Dense(width, feed_forward, rngs=rngs)
        self.output = Residual(feed_forward, width, eps, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b l width"],
        mask: Bool[Array, "b l"],
        image: Float[Array, "b n image_width"],
    ) -> Float[Array, "b l width"]:
        x = self.attention(x, x, key_mask(mask))
        return self.feed_forward(self.crossattention(x, image, None))

    def feed_forward(self, x: Float[Array, "b l width"]) -> Float[Array, "b l width"]:
        hidden = jax.nn.gelu(self.intermediate.dense(x), approximate=False)
        return self.output(hidden, x)


class Attention(nnx.Module):
    def __init__(self, width: int, context: int, heads: int, eps: float, *, rngs: nnx.Rngs):
        self.self = nnx.Dict(
            query=linear(width, width, rngs=rngs),
            key=linear(context, width, rngs=rngs),
            value=linear(context, width, rngs=rngs),
        )
        self.output = Residual(width, width, eps, rngs=rngs)
        self.heads = heads

    def __call__(
        self,
        x: Float[Array, "b l width"],
        context: Float[Array, "b n c"],
        mask: Bool[Array, "b 1 1 n"] | None,
    ) -> Float[Array, "b l width"]:
        return self.read(x, self.keys(context), mask)

    def keys(self, context: Float[Array, "b n c"]) -> Keys:
        """Keys and values of the context."""
        return (
            split_heads(self.self.key(context), self.heads),
            split_heads(self.self.value(context), self.heads),
        )

    def read(
        self, x: Float[Array, "b l width"], keys: Keys, mask: Bool[Array, "#b 1 1 n"] | None
    ) -> Float[Array, "b l width"]:
        """The output for keys and values that :meth:`keys` has computed."""
        q = split_heads(self.self.query(x), self.heads)
        return self.output(merge_heads(attend(q, *keys, mask)), x)
