"""The judge: an image tower and a text tower trained to match images with captions.

With unit embeddings u_i of the images and w_j of their captions, and a learned scale s, both towers
minimize (Radford et al. 2021)

    (CE(s u w^T, diagonal) + CE(s w u^T, diagonal)) / 2                                     (1)

Two rows of a batch may have the same content. If the frozen encoder's embeddings of two captions
are nearly equal (cosine above ``same_text``), the rows are not negatives of each other and the pair
is left out of (1).

The judge is used on generated images, so it is trained with augmentations: random translation,
scale, color, blur and noise.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, UInt8

from emu_jax.nn.contrastive import ImageEmbedding
from emu_jax.nn.functional import Network, Params
from emu_jax.tasks.augmenting import disturb
from emu_jax.tasks.base import (
    Context,
    Loss,
    Rows,
    RowSpec,
    Task,
    cast,
    to_pixels,
    to_unit_range,
)
from emu_jax.text.encoder import TextEncoder


@dataclass(frozen=True, kw_only=True)
class Contrastive(Task):
    """``encoders`` holds one text encoder, whose pooled vector is the input of the text tower.

    ``zoom``, ``shift``, ``colour``, ``blur`` and ``noise`` are the strengths of the augmentations.
    """

    model: Network
    encoders: Mapping[str, TextEncoder]
    same_text: float = 0.95
    zoom: float = 0.15
    shift: float = 0.08
    colour: float = 0.15
    blur: float = 0.7
    noise: float = 0.1
    compute_dtype: Any = jnp.float32
    stream: str = "train"

    @property
    def streams(self) -> dict[str, RowSpec]:
        return {self.stream: RowSpec(self.encoders)}

    def init(self, key: jax.Array) -> tuple[Params, Params]:
        return self.model.init(key), {}

    def loss(self, group: str, context: Context) -> Loss:
        """Equation (1), and the share of images whose own caption ranks first."""
        rows = context.batch[self.stream]
        image = self.augment(context.key, to_unit_range(rows["image"]))
        valid = jnp.ones(image.shape[0], bool)
        losses, right = self._pairs(context.params, context.frozen, rows, image, valid)
        return Loss(jnp.mean(losses), context.state, {"top1": jnp.mean(right)})

    def validate(self, context: Context) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Equation (1), and the share of images whose own caption ranks first, within the batch."""
        rows = context.batch[self.stream]
        image, valid = to_unit_range(rows["image"]), rows["valid"]
        losses, right = self._pairs(context.params, context.frozen, rows, image, valid)
        count = jnp.sum(valid.astype(jnp.float32))
        return {"loss": (jnp.sum(losses * valid), count), "top1": (jnp.sum(right * valid), count)}

    def preview(self, context: Context) -> dict[str, jax.Array]:
        """Augmented images."""
        image = to_unit_range(context.batch[self.stream]["image"][:16])
        return {"augmented": to_pixels(self.augment(context.key, image))}

    def embed_images(self, params: Params, image: UInt8[Array, "b h w 3"]) -> ImageEmbedding:
        """Embeddings and features of images, without augmentation."""
        return self._embed_images(params, to_unit_range(image))

    def embed_texts(
        self, params: Params, frozen: Mapping[str, Params], rows: Rows
    ) -> Float[Array, "b d"]:
        """Embeddings of the texts, from tokens or from cached encoder outputs."""
        return self._embed_pooled(params, self._pooled(frozen, rows))

    def augment(self, key: jax.Array, x: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        """Random scale, translation, color, blur and noise, drawn independently for each image."""
        return jax.vmap(self._augment_one)(jax.random.split(key, x.shape[0]), x)

    def _augment_one(self, key: jax.Array, x: Float[Array, "h w 3"]) -> Float[Array, "h w 3"]:
        k_zoom, k_shift, *keys = jax.random.split(key, 7)
        h, w, _ = x.shape
        # The area that moves into the image at its edges has the color of the corner pixel.
        background = x[0, 0]
        zoom = jnp.exp(jax.random.uniform(k_zoom, (), minval=-self.zoom, maxval=self.zoom))
        shift = jax.random.uniform(k_shift, (2,), minval=-self.shift, maxval=self.shift)
        size = jnp.array([h, w], jnp.float32)
        moved = jax.image.scale_and_translate(
            x - background,
            x.shape,
            (0, 1),
            jnp.stack([zoom, zoom]),
            size * (1 - zoom) / 2 + size * shift,
            "linear",
        )
        x = moved + background
        return disturb(keys, x, colour=self.colour, blur=self.blur, noise=self.noise)

    def _pairs(
        self,
        params: Params,
        frozen: Mapping[str, Params],
        rows: Rows,
        image: Float[Array, "b h w 3"],
        valid: Bool[Array, "b"],
    ) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
        """Each row's loss (1), and whether its own caption ranks first; padding rows do not count
        as negatives.
        """
        pooled = self._pooled(frozen, rows)
        embedding = self._embed_images(params, image).embedding
        logits = self.model(params, embedding, self._embed_pooled(params, pooled), method="logits")
        direction = pooled / jnp.linalg.norm(pooled, axis=-1, keepdims=True)
        own = jnp.eye(len(pooled), dtype=bool)
        counted = (direction @ direction.T <= self.same_text) & valid[:, None] & valid[None, :]
        logits = jnp.where(counted | own, logits, -jnp.inf)
        label = jnp.arange(len(pooled))
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels
        losses = (cross_entropy(logits, label) + cross_entropy(logits.T, label)) / 2
        return losses, (jnp.argmax(logits, 1) == label).astype(jnp.float32)

    def _embed_images(self, params: Params, image: Float[Array, "b h w 3"]) -> ImageEmbedding:
        network = cast(params, self.compute_dtype)
        return self.model(network, image.astype(self.compute_dtype), method="embed_image")

    def _embed_pooled(self, params: Params, pooled: Float[Array, "b p"]) -> Float[Array, "b d"]:
        network = cast(params, self.compute_dtype)
        return self.model(network, pooled.astype(self.compute_dtype), method="embed_text")

    def _pooled(self, frozen: Mapping[str, Params], rows: Rows) -> Float[Array, "b p"]:
        ((name, encoder),) = self.encoders.items()
        if name in rows.get("text", {}):
            return jax.lax.stop_gradient(rows["text"][name]["pooled"].astype(jnp.float32))
        tokens = rows["tokens"][name]
        encoded = encoder.apply(frozen[name], tokens["ids"], tokens["mask"])
        assert encoded.pooled is not None, (
            "make_contrastive only takes encoders with a pooled vector"
        )
        return jax.lax.stop_gradient(encoded.pooled.astype(jnp.float32))
