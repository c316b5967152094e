"""A small image-text model like CLIP: two towers with one embedding space.

The image tower (:mod:`emu_jax.nn.image_tower`) has two outputs. ``embedding`` is trained to match
the text's embedding. ``features`` are the means of every stage's map, early stages first: they also
represent how an image is finished, not only what it shows. The text tower is two dense layers on a
frozen encoder's pooled vector.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from emu_jax.nn.image_tower import ImageTower
from emu_jax.nn.layers import linear
from emu_jax.nn.stack import Constrain

_INITIAL_TEMPERATURE = 0.07
_MAX_LOG_SCALE = math.log(100.0)  # CLIP's bound


class ImageEmbedding(NamedTuple):
    """The image tower's outputs; ``embedding`` has length one."""

    embedding: Float[Array | np.ndarray, "b d"]
    features: Float[Array | np.ndarray, "b f"]


class ContrastiveModel(ImageTower):
    """``embed_image``, ``embed_text``, and ``logits`` between the two.

    ``widths`` are the channels of the image stages (``blocks`` residual blocks each; the first
    stage's map has a quarter of the image's side). ``text_width`` is the width of the pooled text,
    ``width`` that of the common space.
    """

    def __init__(
        self,
        *,
        text_width: int,
        widths: Sequence[int] = (48, 96, 192),
        blocks: int = 2,
        width: int = 128,
        groups: int = 8,
        constrain: Constrain = lambda x: x,
        rngs: nnx.Rngs,
    ):
        super().__init__(widths, blocks, groups, constrain, rngs=rngs)
        self.image_projection = linear(widths[-1], width, bias=False, rngs=rngs)
        self.text_in = linear(text_width, 2 * width, rngs=rngs)
        self.text_projection = linear(2 * width, width, bias=False, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.asarray(-math.log(_INITIAL_TEMPERATURE)))

    def embed_image(self, x: Float[Array, "b h w 3"]) -> ImageEmbedding:
        """Images in [-1, 1], of any size that the stages can halve."""
        maps = self.maps(x)
        means = [jnp.mean(x, (1, 2)) for x in maps]
        pooled = jnp.mean(jax.nn.silu(self.norm_out(maps[-1])), (1, 2))
        embedding = _unit(self.image_projection(pooled))
        return ImageEmbedding(embedding, jnp.concatenate(means, -1))

    def embed_text(self, pooled: Float[Array, "b p"]) -> Float[Array, "b d"]:
        """Embeddings of length one, from an encoder's pooled vectors."""
        return _unit(self.text_projection(jax.nn.gelu(self.text_in(pooled))))

    def logits(self, image: Float[Array, "n d"], text: Float[Array, "m d"]) -> Float[Array, "n m"]:
        """Scaled cosine similarities in fp32."""
        scale = jnp.exp(jnp.minimum(self.logit_scale[...], _MAX_LOG_SCALE))
        return scale * (image.astype(jnp.float32) @ text.astype(jnp.float32).T)


def _unit(x: Float[Array, "b d"]) -> Float[Array, "b d"]:
    y = x.astype(jnp.float32)
    return (y * jax.lax.rsqrt(jnp.sum(jnp.square(y), -1, keepdims=True) + 1e-12)).astype(x.dtype)
