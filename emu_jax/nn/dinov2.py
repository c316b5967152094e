"""DINOv2's vision transformer (Oquab et al. 2023, arXiv:2304.07193).

Pre-norm blocks whose branches are scaled per channel (LayerScale), with a class token whose final
state is the image's feature. Parameters are named as in the files that transformers writes.

             width  layers  heads
    small      384      12      6
    base       768      12     12
    large     1024      24     16
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from emu_jax.nn.attention import Attend, attend, merge_heads, split_heads
from emu_jax.nn.clip import Mlp
from emu_jax.nn.layers import LayerNorm, linear
from emu_jax.nn.resizing import bicubic

_EPS = 1e-6


class Dinov2(nnx.Module):
    """From images, normalized by ImageNet's statistics, to the class token's final state."""

    def __init__(
        self,
        *,
        image_size: int = 518,
        patch_size: int = 14,
        width: int = 1024,
        layers: int = 24,
        heads: int = 16,
        attend: Attend = attend,
        rngs: nnx.Rngs,
    ):
        self.embeddings = Embeddings(image_size // patch_size, patch_size, width, rngs=rngs)
        self.encoder = nnx.Dict(
            layer=nnx.List(Block(width, heads, attend, rngs=rngs) for _ in range(layers))
        )
        self.layernorm = LayerNorm(width, eps=_EPS, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b width"]:
        x = self.embeddings(x)
        for block in self.encoder.layer:
            x = block(x)
        return self.layernorm(x[:, 0])


class Embeddings(nnx.Module):
    """A class token, then the patches row by row. Position embeddings are learned at one size
    (``grid`` x ``grid`` patches) and resized to any other.
    """

    def __init__(self, grid: int, patch_size: int, width: int, *, rngs: nnx.Rngs):
        normal = nnx.initializers.normal(0.02)
        self.grid = grid
        self.cls_token = nnx.Param(normal(rngs.params(), (1, 1, width)))
        self.position_embeddings = nnx.Param(normal(rngs.params(), (1, grid**2 + 1, width)))
        size = (patch_size, patch_size)
        projection = nnx.Conv(3, width, size, strides=size, padding="VALID", rngs=rngs)
        self.patch_embeddings = nnx.Dict(projection=projection)

    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b n width"]:
        patches = self.patch_embeddings.projection(x)
        b, rows, columns, width = patches.shape
        token, positions = jnp.split(self.position_embeddings[...], [1], axis=1)
        if (rows, columns) != (self.grid, self.grid):
            positions = positions.reshape(1, self.grid, self.grid, width)
            positions = bicubic(positions, (rows, columns)).reshape(1, -1, width)
        token = jnp.broadcast_to(self.cls_token[...] + token, (b, 1, width))
        return jnp.concatenate([token, patches.reshape(b, -1, width) + positions], axis=1)


class Block(nnx.Module):
    def __init__(self, width: int, heads: int, attend: Attend, *, rngs: nnx.Rngs):
        self.norm1 = LayerNorm(width, eps=_EPS, rngs=rngs)
        self.attention = nnx.Dict(
            attention=nnx.Dict(
                {name: linear(width, width, rngs=rngs) for name in ("query", "key", "value")}
            ),
            output=nnx.Dict(dense=linear(width, width, rngs=rngs)),
        )
        self.layer_scale1 = LayerScale(width)
        self.norm2 = LayerNorm(width, eps=_EPS, rngs=rngs)
        self.mlp = Mlp(width, 4 * width, "gelu", rngs=rngs)
        self.layer_scale2 = LayerScale(width)
        self.heads, self.attend = heads, attend

    def __call__(self, x: Float[Array, "b n width"]) -> Float[Array, "b n width"]:
        project, h = self.attention.attention, self.norm1(x)
        q, k, v = (
            split_heads(layer(h), self.heads)
            for layer in (project.query, project.key, project.value)
        )
        h = self.attention.output.dense(merge_heads(self.attend(q, k, v, None)))
        x = x + self.layer_scale1(h)
        return x + self.layer_scale2(self.mlp(self.norm2(x)))


class LayerScale(nnx.Module):
    def __init__(self, width: int):
        self.lambda1 = nnx.Param(jnp.ones(width))

    def __call__(self, x: Float[Array, "b n width"]) -> Float[Array, "b n width"]:
        return x * self.lambda1[...]
