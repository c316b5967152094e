"""BLIP's captioner (Li et al. 2022, arXiv:2201.12086): a ViT, and a BERT as a causal decoder.

The network computes one token at a time. Keys and values of earlier tokens are cached, those of the
image's patches are computed once. Several sequences of an image (the beams of a search) share the
image's keys: they are the queries of one attention.

Parameters are named as in :mod:`emu_jax.nn.blip`; the decoder has the published prefix
``text_decoder`` and its output layer shares the table of word embeddings.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from emu_jax.nn.bert import Dense
from emu_jax.nn.blip import Keys, TextEncoder, VisionTransformer
from emu_jax.nn.layers import LayerNorm


class Memory(NamedTuple):
    """What a sequence attends to, by layer: the patches of its image, and the earlier tokens
    [b * sequences, length, heads, head width]."""

    image: tuple[Keys, ...]
    text: tuple[Keys, ...]

    def reordered(self, rows: Int[Array, "b k"]) -> "Memory":
        """The sequences ``rows`` of each image instead of its present ones."""

        def take(x: jax.Array) -> jax.Array:
            b, k = rows.shape
            x = x.reshape(b, -1, *x.shape[1:])
            index = rows.reshape(b, k, *[1] * (x.ndim - 2))
            return jnp.take_along_axis(x, index, axis=1).reshape(b * k, *x.shape[2:])

        return Memory(self.image, jax.tree.map(take, self.text))


class Captioner(nnx.Module):
    def __init__(
        self,
        *,
        image_size: int = 384,
        patch_size: int = 16,
        vision_width: int = 768,
        vision_layers: int = 12,
        vision_heads: int = 12,
        vision_feed_forward: int = 3072,
        vision_eps: float = 1e-5,
        vocabulary: int = 30524,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        feed_forward: int = 3072,
        positions: int = 512,
        eps: float = 1e-12,
        rngs: nnx.Rngs,
    ):
        self.visual_encoder = VisionTransformer(
            image_size,
            patch_size,
            vision_width,
            vision_layers,
            vision_heads,
            feed_forward=vision_feed_forward,
            eps=vision_eps,
            rngs=rngs,
        )
        bert = TextEncoder(
            *(vocabulary, width, layers, heads, feed_forward, positions, vision_width),
            eps=eps,
            rngs=rngs,
        )
        self.text_decoder = Decoder(bert, Predictions(vocabulary, width, eps, rngs=rngs))
        self.shape = heads, width // heads

    def start(self, x: Float[Array, "b s s 3"], sequences: int, length: int) -> Memory:
        """The memory of ``sequences`` sequences of each image, with room for ``length`` tokens."""
        patches = self.visual_encoder(x)
        layers = self.text_decoder.bert.encoder.layer
        image = tuple(layer.crossattention.keys(patches) for layer in layers)
        empty = jnp.zeros((x.shape[0] * sequences, length, *self.shape), patches.dtype)
        return Memory(image, tuple((empty, empty) for _ in layers))

    def step(
        self, ids: Int[Array, "b k"], position: Int[Array, ""], memory: Memory
    ) -> tuple[Float[Array, "b k vocabulary"], Memory]:
        """The logits after a further token of each of an image's k sequences, which all have
        ``position`` tokens before it."""
        bert = self.text_decoder.bert
        x = bert.embeddings(ids, position)
        (b, k, width), length = x.shape, memory.text[0][0].shape[1]
        past = (jnp.arange(length) <= position)[None, None, None]
        text = []
        for layer, image, keys in zip(bert.encoder.layer, *memory, strict=True):
            x = x.reshape(b * k, 1, width)
            new = layer.attention.keys(x)
            k_all, v_all = (
                jax.lax.dynamic_update_slice_in_dim(old, one, position, axis=1)
                for old, one in zip(keys, new, strict=True)
            )
            keys = k_all, v_all
            text.append(keys)
            x = layer.attention.read(x, keys, past).reshape(b, k, width)
            x = layer.feed_forward(layer.crossattention.read(x, image, None))
        table = bert.embeddings.word_embeddings.embedding[...]
        return self.text_decoder.cls.predictions(x, table), Memory(memory.image, tuple(text))


class Decoder(nnx.Module):
    """The parts of the text decoder under their published names."""

    def __init__(self, bert: TextEncoder, predictions: "Predictions"):
        self.bert = bert
        self.cls = nnx.Dict(predictions=predictions)


class Predictions(nnx.Module):
    """Logits: the inner product with every word's embedding, behind a layer and a norm."""

    def __init__(self, vocabulary: int, width: int, eps: float, *, rngs: nnx.Rngs):
        self.transform = Transform(width, eps, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros((vocabulary,)))

    def __call__(
        self, x: Float[Array, "b k width"], table: Float[Array, "v width"]
    ) -> Float[Array, "b k v"]:
        return self.transform(x) @ table.T + self.bias[...]


class Transform(Dense):
    def __init__(self, width: int, eps: float, *, rngs: nnx.Rngs):
        super().__init__(width, width, rngs=rngs)
        self.LayerNorm = LayerNorm(width, eps=eps, rngs=rngs)

    def __call__(self, x: Float[Array, "b k width"]) -> Float[Array, "b k width"]:
        return self.LayerNorm(jax.nn.gelu(self.dense(x), approximate=False))
