"""Frozen networks that look at a generator's images, and what they ask of them.

Structure (UniFL, Zhang et al. 2024, arXiv 2404.05595, equation 4): the instances of the original
are where they were; the loss of SOLO (:mod:`emu_jax.tasks.solo`) with the true instances.

Layout (equation 9): the label of every pixel is that of the original; the cross-entropy of DeepLab
(:mod:`emu_jax.tasks.semantic`).

Style (equation 8): the correlations between the features of VGG-16 are those of the original. With
F_l [h w, c] the features after the last relu of block l, the Gram matrix and the loss are

    G_l(x) = F_l^T F_l / (h w)                                                             (1)
    L = sum_l w_l mean_ij (G_l(x0') - G_l(x))_ij^2                                         (2)

The paper gives neither layers nor weights nor the scale of (1); these are a config's.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from emu_jax.data.mixture import Column
from emu_jax.nn.functional import Network, Params
from emu_jax.nn.resizing import resized
from emu_jax.tasks.base import Rows, to_unit_range
from emu_jax.tasks.segmentation import Segmentation
from emu_jax.tasks.semantic import SemanticSegmentation


class Teacher(Protocol):
    """``originals``: it reads the rows' own images. ``further`` and ``columns`` are what else rows
    hold for it, as in :class:`emu_jax.tasks.base.RowSpec`.
    """

    originals: bool
    further: tuple[str, ...]
    columns: Mapping[str, Column]

    def loss(self, frozen: Params, image: Float[Array, "b h w 3"], rows: Rows) -> Float[Array, ""]:
        """What it asks of images in [-1, 1], drawn for ``rows``; ``frozen`` are its weights."""
        ...


@dataclass(frozen=True)
class Segmenter:
    """Structure and layout: the loss of a trained segmenter with what is known of the original.

    Images of more than ``side`` x ``side`` pixels are reduced to as many, since a segmenter knows
    things of the size in which training has shown them. None: they are not.
    """

    segmentation: Segmentation | SemanticSegmentation
    side: int | None = None
    originals: bool = False
    further: tuple[str, ...] = field(init=False)
    columns: Mapping[str, Column] = field(init=False)

    def __post_init__(self):
        (rows,) = self.segmentation.streams.values()
        object.__setattr__(self, "further", rows.further)
        object.__setattr__(self, "columns", rows.columns)

    def loss(self, frozen: Params, image: Float[Array, "b h w 3"], rows: Rows) -> Float[Array, ""]:
        h, w = image.shape[1:3]
        if self.side and h * w > self.side**2:
            scale = self.side / math.sqrt(h * w)
            size = round(h * scale), round(w * scale)
            image = resized(image, size, "lanczos3")
            maps = {name: rows["further"][name] for name in self.further}
            maps = {
                name: jax.image.resize(x, (len(x), *size), "nearest") for name, x in maps.items()
            }
            rows = {**rows, "further": {**rows["further"], **maps}}
        return self.segmentation.asks(frozen, image, rows)


@dataclass(frozen=True)
class Style:
    """Equation (2): ``network`` gives the maps of every block, ``weights`` are those of (2), 0 for
    a block that is left out.
    """

    network: Network
    weights: Sequence[float]
    compute_dtype: Any = jnp.float32
    originals: bool = True
    further: tuple[str, ...] = ()
    columns: Mapping[str, Column] = field(default_factory=dict)

    def loss(self, frozen: Params, image: Float[Array, "b h w 3"], rows: Rows) -> Float[Array, ""]:
        original = to_unit_range(rows["image"]).astype(self.compute_dtype)
        pairs = zip(
            self.network(frozen, image.astype(self.compute_dtype)),
            self.network(frozen, original),
            strict=True,
        )
        terms = [
            weight * jnp.mean((gram(ours) - gram(theirs)) ** 2)
            for weight, (ours, theirs) in zip(self.weights, pairs, strict=True)
            if weight
        ]
        return sum(terms, jnp.zeros(()))


def gram(features: Float[Array, "b h w c"]) -> Float[Array, "b c c"]:
    """Equation (1), in fp32."""
    flat = features.reshape(features.shape[0], -1, features.shape[-1]).astype(jnp.float32)
    return jnp.einsum("bni,bnj->bij", flat, flat) / flat.shape[1]
