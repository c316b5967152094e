"""A small network that says which words apply to an image, with the image tower of judges.

    image --convolutions--> maps --means of all stages--> features --> a logit for each word

The features are those of a judge (:mod:`emu_jax.nn.contrastive`), so that a word may be about fine
detail as well as about what is shown.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from emu_jax.nn.image_tower import ImageTower
from emu_jax.nn.layers import linear


class Tagger(ImageTower):
    def __init__(
        self,
        *,
        words: int,
        widths: Sequence[int] = (48, 96, 192),
        blocks: int = 2,
        groups: int = 8,
        rngs: nnx.Rngs,
    ):
        super().__init__(widths, blocks, groups, rngs=rngs)
        self.hidden = linear(sum(widths) + widths[-1], widths[-1], rngs=rngs)
        self.head = linear(widths[-1], words, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b words"]:
        """Logits of images in [-1, 1]."""
        maps = self.maps(x)
        means = [jnp.mean(x, (1, 2)) for x in maps]
        means.append(jnp.max(jax.nn.silu(self.norm_out(maps[-1])), (1, 2)))
        return self.head(jax.nn.gelu(self.hidden(jnp.concatenate(means, -1))))
