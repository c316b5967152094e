"""A small reward: how good an image is for a text.

    image --convolutions--> maps --cross-attention to the text's tokens--> features --> scores

The features are the means of all stages' maps, as a judge's, so that a score can depend on fine
detail, and those of the last map after it has attended to the text. The head is linear. Several
``outputs`` are the rewards of several dimensions with one tower: a dimension is a row of the head.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from emu_jax.nn.attention import Attention
from emu_jax.nn.clip import Mlp
from emu_jax.nn.image_tower import ImageTower
from emu_jax.nn.layers import LayerNorm, linear
from emu_jax.nn.stack import Constrain


class RewardTower(ImageTower):
    """``text_width`` is the width of the text's states; ``heads`` are those of the attention."""

    def __init__(
        self,
        *,
        text_width: int,
        outputs: int = 1,
        widths: Sequence[int] = (48, 96, 192),
        blocks: int = 2,
        heads: int = 4,
        groups: int = 8,
        constrain: Constrain = lambda x: x,
        rngs: nnx.Rngs,
    ):
        super().__init__(widths, blocks, groups, constrain, rngs=rngs)
        width = widths[-1]
        self.norm_image = LayerNorm(width, rngs=rngs)
        self.attention = Attention(
            width, heads, width // heads, context_width=text_width, rngs=rngs
        )
        self.norm_mlp = LayerNorm(width, rngs=rngs)
        self.mlp = Mlp(width, 2 * width, "gelu", rngs=rngs)
        self.head = linear(sum(widths) + width, outputs, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b h w 3"],
        states: Float[Array, "b l t"],
        mask: Bool[Array, "b l"],
    ) -> Float[Array, "b outputs"]:
        """Scores of images in [-1, 1] for texts."""
        maps = self.maps(x)
        tokens = maps[-1].reshape(x.shape[0], -1, maps[-1].shape[-1])
        tokens = tokens + self.attention(self.norm_image(tokens), states, mask)
        tokens = tokens + self.mlp(self.norm_mlp(tokens))
        means = [jnp.mean(x, (1, 2)) for x in maps]
        means.append(jnp.mean(jax.nn.silu(self.norm_out(tokens)), 1))
        return self.head(jnp.concatenate(means, -1))
