"""CLIP's two towers (Radford et al. 2021, arXiv:2103.00020): pre-LayerNorm transformers.

The text tower attends causally and pools at the end-of-text token. The image tower has a class
token before its patches and pools there. Both can end in a projection to the common space.
Parameters are named as in the published files, including ``pre_layrnorm``. Sizes of the text tower:

                   width  layers  heads  feed-forward  activation  projection
    ViT-L            768      12     12          3072  quick_gelu
    OpenCLIP-H      1024      23     16          4096  gelu                    (24 layers in all; SD
                                                                               2.1 ships 23)
    OpenCLIP-bigG   1280      32     20          5120  gelu              1280
"""

from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from emu_jax.nn.attention import Attend, attend, merge_heads, split_heads
from emu_jax.nn.layers import LayerNorm, Table, activation, linear

Layer = Literal["last", "penultimate"]
# Configs that are older than the entry for the end-of-text token say 2 there. With these the token
# is the one with the highest number.
_LEGACY_EOS = 2


class ClipText(nnx.Module):
    """From token ids to states and one pooled vector.

    ``projection`` is the width that pooled vectors are projected to (None: no projection). ``eos``
    is the number of the end-of-text token in the config.
    """

    def __init__(
        self,
        *,
        vocabulary: int = 49408,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        feed_forward: int = 3072,
        positions: int = 77,
        act: str = "quick_gelu",
        eps: float = 1e-5,
        projection: int | None = None,
        eos: int = 49407,
        attend: Attend = attend,
        rngs: nnx.Rngs,
    ):
        self.eos = eos
        self.text_model = TextModel(
            TextEmbeddings(vocabulary, width, positions, rngs=rngs),
            Encoder(width, layers, heads, feed_forward, act, eps, attend, rngs=rngs),
            LayerNorm(width, eps=eps, rngs=rngs),
        )
        self.text_projection = (
            linear(width, projection, bias=False, rngs=rngs) if projection else None
        )

    def __call__(
        self, ids: Int[Array, "b l"], layer: Layer = "last"
    ) -> tuple[Float[Array, "b l width"], Float[Array, "b p"]]:
        """(states, pooled). The final norm is applied to the states of the last layer, not to those
        of the penultimate layer. ``pooled`` is always from the last layer.
        """
        penultimate, last = self.text_model(ids)
        if self.eos == _LEGACY_EOS:
            end = jnp.argmax(ids, axis=1)
        else:
            end = jnp.argmax(ids == self.eos, axis=1)  # the first: padding may be the same token
        pooled = jnp.take_along_axis(last, end[:, None, None], axis=1)[:, 0]
        if self.text_projection is not None:
            pooled = self.text_projection(pooled)
        return (last if layer == "last" else penultimate), pooled


class TextModel(nnx.Module):
    def __init__(self, embeddings: "TextEmbeddings", encoder: "Encoder", norm: LayerNorm):
        self.embeddings = embeddings
        self.encoder = encoder
        self.final_layer_norm = norm

    def __call__(
        self, ids: Int[Array, "b l"]
    ) -> tuple[Float[Array, "b l width"], Float[Array, "b l width"]]:
        """(states of the penultimate layer, states of the last layer after the final norm)."""
        causal = jnp.tri(ids.shape[1], dtype=bool)[None, None]
        penultimate, last = self.encoder(self.embeddings(ids), causal)
        return penultimate, self.final_layer_norm(last)


class TextEmbeddings(nnx.Module):
    def __init__(self, vocabulary: int, width: int, positions: int, *, rngs: nnx.Rngs):
        self.token_embedding = Table(vocabulary, width, rngs=rngs)
        self.position_embedding = Table(positions, width, rngs=rngs)

    def __call__(self, ids: Int[Array, "b l"]) -> Float[Array, "b l width"]:
        return self.token_embedding(ids) + self.position_embedding(jnp.arange(ids.shape[1]))


class ClipVision(nnx.Module):
    """From square images, normalized as CLIP's, to one embedding each (ViT-L/14 by default)."""

    def __init__(
        self,
        *,
        image_size: int = 224,
        patch_size: int = 14,
        width: int = 1024,
        layers: int = 24,
        heads: int = 16,
        feed_forward: int = 4096,
        act: str = "quick_gelu",
        eps: float = 1e-5,
        projection: int | None = 768,
        attend: Attend = attend,
        rngs: nnx.Rngs,
    ):
        self.vision_model = VisionModel(
            VisionEmbeddings(image_size, patch_size, width, rngs=rngs),
            LayerNorm(width, eps=eps, rngs=rngs),
            Encoder(width, layers, heads, feed_forward, act, eps, attend, rngs=rngs),
            LayerNorm(width, eps=eps, rngs=rngs),
        )
        self.visual_projection = (
            linear(width, projection, bias=False, rngs=rngs) if projection else None
        )

    def __call__(self, x: Float[Array, "b s s 3"]) -> Float[Array, "b d"]:
        """Embeddings, not normalized to length one."""
        pooled = self.vision_model(x)
        return pooled if self.visual_projection is None else self.visual_projection(pooled)


class VisionModel(nnx.Module):
    def __init__(
        self,
        embeddings: "VisionEmbeddings",
        norm_in: LayerNorm,
        encoder: "Encoder",
        norm_out: LayerNorm,
    ):
        self.embeddings = embeddings
        self.pre_layrnorm = norm_in
        self.encoder = encoder
        self.post_layernorm = norm_out

    def __call__(self, x: Float[Array, "b s s 3"]) -> Float[Array, "b width"]:
        _, states = self.encoder(self.pre_layrnorm(self.embeddings(x)), None)
        return self.post_layernorm(states[:, 0])


class VisionEmbeddings(nnx.Module):
    """A class token, then the patches row by row, each with a position embedding."""

    def __init__(self, image_size: int, patch_size: int, width: int, *, rngs: nnx.Rngs):
        self.class_embedding = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (width,)))
        self.patch_embedding = nnx.Conv(
            3,
            width,
            (patch_size, patch_size),
            strides=patch_size,
            padding="VALID",
            use_bias=False,
            rngs=rngs,
        )
        self.position_embedding = Table((image_size // patch_size) ** 2 + 1, width, rngs=rngs)

    def __call__(self, x: Float[Array, "b s s 3"]) -> Float[Array, "b n width"]:
        patches = self.patch_embedding(x.astype(self.class_embedding[...].dtype))
        patches = patches.reshape(x.shape[0], -1, patches.shape[-1])
        token = jnp.broadcast_to(self.class_embedding[...], (x.shape[0], 1, patches.shape[-1]))
        return jnp.concatenate([token, patches], axis=1) + self.position_embedding.embedding[...]


# Common to both towers ---------------------------------------------------------------------------


class Encoder(nnx.Module):
    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        feed_forward: int,
        act: str,
        eps: float,
        attend: Attend,
        *,
        rngs: nnx.Rngs,
    ):
        self.layers = nnx.List(
            EncoderLayer(width, heads, feed_forward, act, eps, attend, rngs=rngs)
            for _ in range(layers)
        )

    def __call__(
        self, x: Float[Array, "b n width"], mask: Bool[Array, "1 1 n n"] | None
    ) -> tuple[Float[Array, "b n width"], Float[Array, "b n width"]]:
        """(input of the last layer, its output)."""
        before = x
        for layer in self.layers:
            before, x = x, layer(x, mask)
        return before, x


class EncoderLayer(nnx.Module):
    def __init__(
        self,
        width: int,
        heads: int,
        feed_forward: int,
        act: str,
        eps: float,
        attend: Attend,
        *,
        rngs: nnx.Rngs,
    ):
        self.layer_norm1 = LayerNorm(width, eps=eps, rngs=rngs)
        self.self_attn = SelfAttention(width, heads, attend, rngs=rngs)
        self.layer_norm2 = LayerNorm(width, eps=eps, rngs=rngs)
        self.mlp = Mlp(width, feed_forward, act, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b n width"], mask: Bool[Array, "1 1 n n"] | None
    ) -> Float[Array, "b n width"]:
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.mlp(self.layer_norm2(x))


class SelfAttention(nnx.Module):
    def __init__(self, width: int, heads: int, attend: Attend, *, rngs: nnx.Rngs):
        self.q_proj = linear(width, width, rngs=rngs)
        self.k_proj = linear(width, width, rngs=rngs)
        self.v_proj = linear(width, width, rngs=rngs)
        self.out_proj = linear(width, width, rngs=rngs)
        self.heads, self.attend = heads, attend

    def __call__(
        self, x: Float[Array, "b n width"], mask: Bool[Array, "1 1 n n"] | None
    ) -> Float[Array, "b n width"]:
        q, k, v = (
            split_heads(project(x), self.heads)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(merge_heads(self.attend(q, k, v, mask)))


class Mlp(nnx.Module):
    def __init__(self, width: int, feed_forward: int, act: str, *, rngs: nnx.Rngs):
        self.fc1 = linear(width, feed_forward, rngs=rngs)
        self.fc2 = linear(feed_forward, width, rngs=rngs)
        self.act = activation(act)

    def __call__(self, x: Float[Array, "b n width"]) -> Float[Array, "b n width"]:
        return self.fc2(self.act(self.fc1(x)))
