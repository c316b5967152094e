"""SOLO: instance segmentation by location (Wang et al. 2020, arXiv:1912.04488).

An image is divided into S x S cells. The category branch says which class has its center in a cell;
the mask branch has one map per cell, the mask of the instance that belongs to it. Both branches
read a feature pyramid, and are the same for all of its levels; a level with fewer cells is for
larger objects.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from emu_jax.nn.layers import GroupNorm, conv, upsample_nearest
from emu_jax.nn.resizing import bilinear

_RARE = -4.59512  # the logit of probability 0.01: almost all cells are empty


class Level(NamedTuple):
    """One level's logits: of S x S cells' classes, and of each cell's mask, row by row."""

    classes: Float[Array, "b s s c"]
    masks: Float[Array, "b i j s*s"]


class Solo(nnx.Module):
    """``backbone`` gives maps of ``widths`` channels, each half as large as the one before.

    ``grids[l]`` is the number of cells per side at level l. With as many levels as published (five:
    four maps and one below), the finest level is halved and the coarsest is brought to the size of
    its neighbor; otherwise the levels are the finest maps of the pyramid as they are.
    """

    def __init__(
        self,
        backbone: Callable[..., Sequence[Array]],
        widths: Sequence[int],
        *,
        classes: int = 80,
        grids: Sequence[int] = (40, 36, 24, 16, 12),
        width: int = 256,
        depth: int = 7,
        groups: int = 32,
        rngs: nnx.Rngs,
    ):
        self.backbone = backbone
        self.neck = Pyramid(widths, width, len(grids), rngs=rngs)
        self.grids = tuple(grids)
        branch = partial(Branch, width=width, depth=depth, groups=groups, rngs=rngs)
        self.class_branch, self.mask_branch = branch(width), branch(width + 2)
        normal = nnx.initializers.normal(0.01)
        last = partial(
            nnx.Conv, kernel_init=normal, bias_init=nnx.initializers.constant(_RARE), rngs=rngs
        )
        self.class_head = last(width, classes, (3, 3))
        self.mask_heads = nnx.List(last(width, grid**2, (1, 1)) for grid in grids)

    def __call__(self, x: Float[Array, "b h w 3"]) -> list[Level]:
        """``x``: images in [-1, 1]."""
        maps = self.neck(self.backbone(x))
        if len(self.grids) > 1:
            rows, columns = maps[0].shape[1:3]
            maps[0] = bilinear(maps[0], (rows // 2, columns // 2), half_pixel=True)
        if self.neck.extra:
            rows, columns = maps[-2].shape[1:3]
            maps[-1] = bilinear(maps[-1], (rows, columns), half_pixel=True)
        return [self._level(x, i) for i, x in enumerate(maps)]

    def _level(self, x: Float[Array, "b i j c"], level: int) -> Level:
        grid = self.grids[level]
        cells = bilinear(x, (grid, grid), half_pixel=True)
        masks = self.mask_branch(jnp.concatenate([x, _coordinates(x)], axis=-1))
        doubled = (2 * masks.shape[1], 2 * masks.shape[2])
        masks = bilinear(masks, doubled, half_pixel=True)
        return Level(
            self.class_head(self.class_branch(cells)),
            self.mask_heads[level](masks),
        )


class Branch(nnx.Module):
    """``depth`` 3 x 3 convolutions, each with a group norm and a relu."""

    def __init__(self, inputs: int, *, width: int, depth: int, groups: int, rngs: nnx.Rngs):
        self.convs = nnx.List(
            conv(inputs if i == 0 else width, width, bias=False, rngs=rngs) for i in range(depth)
        )
        self.norms = nnx.List(GroupNorm(width, groups, rngs=rngs) for _ in range(depth))

    def __call__(self, x: Float[Array, "b i j c"]) -> Float[Array, "b i j width"]:
        for convolution, norm in zip(self.convs, self.norms, strict=True):
            x = nnx.relu(norm(convolution(x)))
        return x


class Pyramid(nnx.Module):
    """A feature pyramid (Lin et al. 2017): every map has the width and the context of the coarsest.

    It gives the ``levels`` finest maps; one more than there are is half as large as the coarsest.
    """

    def __init__(self, widths: Sequence[int], width: int, levels: int, *, rngs: nnx.Rngs):
        self.extra = levels > len(widths)
        self.lateral_convs = nnx.List(conv(inputs, width, 1, rngs=rngs) for inputs in widths)
        self.fpn_convs = nnx.List(conv(width, width, rngs=rngs) for _ in widths[:levels])

    def __call__(self, maps: Sequence[Array]) -> list[Float[Array, "b i j width"]]:
        """From the finest to the coarsest, as ``maps``."""
        merged = [lateral(x) for lateral, x in zip(self.lateral_convs, maps, strict=True)]
        for i in range(len(merged) - 1, 0, -1):
            finer = merged[i - 1]
            above = upsample_nearest(merged[i])[:, : finer.shape[1], : finer.shape[2]]
            merged[i - 1] = finer + above
        out = [smooth(x) for smooth, x in zip(self.fpn_convs, merged, strict=False)]
        return [*out, out[-1][:, ::2, ::2]] if self.extra else out


class SmallBackbone(nnx.Module):
    """Residual stages for small images: map i has 1 / 2^(i + 1) of the size; map 0 is not given."""

    def __init__(self, widths: Sequence[int] = (32, 64, 128), *, groups: int, rngs: nnx.Rngs):
        inputs, stages = 3, []
        for width in widths:
            stages.append(
                nnx.Dict(
                    down=conv(inputs, width, stride=2, rngs=rngs),
                    norm=GroupNorm(width, groups, rngs=rngs),
                    block=Branch(width, width=width, depth=2, groups=groups, rngs=rngs),
                )
            )
            inputs = width
        self.stages = nnx.List(stages)

    def __call__(self, x: Float[Array, "b h w 3"]) -> list[Float[Array, "b i j c"]]:
        maps = []
        for stage in self.stages:
            x = nnx.relu(stage.norm(stage.down(x)))
            x = x + stage.block(x)
            maps.append(x)
        return maps[1:]


def _coordinates(x: Float[Array, "b i j c"]) -> Float[Array, "b i j 2"]:
    """Column and row of every position, from -1 to 1."""
    b, rows, columns, _ = x.shape
    y, z = jnp.linspace(-1, 1, rows), jnp.linspace(-1, 1, columns)
    grid = jnp.stack(jnp.meshgrid(z, y), axis=-1).astype(x.dtype)
    return jnp.broadcast_to(jax.lax.stop_gradient(grid), (b, rows, columns, 2))
