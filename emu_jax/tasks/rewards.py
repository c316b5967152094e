"""Rewards: networks that score an image for a text, and what they ask of a generator.

A reward is compared with itself only: of two images for one text, the better one has the higher
score. So its scores have no unit. They are standardized by their mean m and deviation s over
validation images, and a preferred image has on average the standardized score alpha:

    r(x, c) = (score(x, c) - m) / s                                                        (1)

m, s and alpha lie beside the weights of a reward (``MEAN``, ``DEVIATION``, ``ALPHA``), one number
for each of its outputs.

As a teacher (:mod:`emu_jax.tasks.teachers`) a reward asks that images are as good as preferred ones
and no better, which is the term of dimension d in UniFL's decoupled aesthetic loss (Zhang et al.
2024, arXiv 2404.05595, equation 5), and with alpha = 2 ReFL's loss (Xu et al. 2023):

    L_d = E max(0, alpha_d - r_d(x0', c))                                                  (2)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from emu_jax.data.mixture import Column
from emu_jax.nn.conditioner import Encoded
from emu_jax.nn.functional import Network, Params, subtree
from emu_jax.nn.resizing import cropped
from emu_jax.tasks.base import Rows, cast
from emu_jax.text.encoder import TextEncoder

MEAN, DEVIATION, ALPHA = (f"standard/{name}" for name in ("mean", "deviation", "alpha"))
# Of pixels in [0, 1].
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

Images = Float[Array, "b h w 3"]
Resize = Callable[[Images], Images]


class Reward(Protocol):
    def score(
        self, params: Params, image: Images, text: Encoded | None
    ) -> Float[Array, "b outputs"]:
        """The scores of images in [-1, 1], of any size, before (1)."""
        ...


@dataclass(frozen=True)
class TowerReward:
    """:class:`emu_jax.nn.reward.RewardTower`, for images of ``side`` pixels; it resizes as the
    input pipeline does.
    """

    network: Network
    side: int
    compute_dtype: Any = jnp.float32

    def score(
        self, params: Params, image: Images, text: Encoded | None
    ) -> Float[Array, "b outputs"]:
        assert text is not None
        x, states = cast((cropped(image, self.side, "lanczos3"), text.states), self.compute_dtype)
        network = cast(params, self.compute_dtype)
        return self.network(network, x, states, text.mask).astype(jnp.float32)


@dataclass(frozen=True)
class BlipReward:
    """:class:`emu_jax.nn.blip.ImageReward`. The states of its text are the ids of the tokens."""

    network: Network
    side: int
    compute_dtype: Any = jnp.float32

    def score(
        self, params: Params, image: Images, text: Encoded | None
    ) -> Float[Array, "b outputs"]:
        assert text is not None
        x = clip_input(cropped(image, self.side)).astype(self.compute_dtype)
        network, ids = cast(params, self.compute_dtype), text.states[..., 0].astype(jnp.int32)
        found = self.network(network, x, ids, text.mask, method="reward")
        return found[:, None].astype(jnp.float32)


@dataclass(frozen=True)
class ClipReward:
    """``scale`` times the cosine of a CLIP's embeddings of image and text (PickScore, HPS)."""

    network: Network
    resize: Resize
    scale: float

    def score(
        self, params: Params, image: Images, text: Encoded | None
    ) -> Float[Array, "b outputs"]:
        assert text is not None and text.pooled is not None
        own = _unit(self.network(params, clip_input(self.resize(image))))
        return self.scale * jnp.sum(own * _unit(text.pooled), -1, keepdims=True)


@dataclass(frozen=True)
class AestheticReward:
    """A head on a CLIP's unit embedding of the image, whatever the text (LAION's predictor). The
    parameters of the two are below ``clip/`` and ``head/``.
    """

    clip: Network
    head: Network
    resize: Resize

    def score(
        self, params: Params, image: Images, text: Encoded | None
    ) -> Float[Array, "b outputs"]:
        del text
        embedding = _unit(self.clip(subtree(params, "clip"), clip_input(self.resize(image))))
        return self.head(subtree(params, "head"), embedding)[:, None]


@dataclass(frozen=True)
class Hinge:
    """Equation (2), by the output number ``output``. ``alpha`` None: the stored one; it is
    multiplied by ``alpha_scale``. ``encoder`` reads the text; its output is in ``encoded`` of the
    rows under the name ``text``.
    """

    reward: Reward
    encoder: TextEncoder | None = None
    output: int = 0
    alpha: float | None = None
    alpha_scale: float = 1.0
    text: str = ""
    originals: bool = False
    further: tuple[str, ...] = ()
    columns: Mapping[str, Column] = field(default_factory=dict)

    def loss(self, frozen: Params, image: Images, rows: Rows) -> Float[Array, ""]:
        text = rows["encoded"][self.text] if self.encoder else None
        # As published: what is outside the range of pixels has no gradient.
        score = self.reward.score(frozen, jnp.clip(image, -1, 1), text)
        alpha = frozen[ALPHA] if self.alpha is None else self.alpha
        wanted = jnp.broadcast_to(alpha, score.shape) * self.alpha_scale
        missing = wanted - standardized(frozen, score)
        return jnp.mean(jax.nn.relu(missing[:, self.output]))


def standardized(params: Params, score: Float[Array, "b n"]) -> Float[Array, "b n"]:
    """Equation (1)."""
    return (score - params[MEAN]) / params[DEVIATION]


def clip_input(x: Images) -> Images:
    """Images in [-1, 1], normalized as CLIP's."""
    mean, std = (jnp.asarray(values, x.dtype) for values in (CLIP_MEAN, CLIP_STD))
    return ((x + 1) / 2 - mean) / std


def _unit(x: Float[Array, "b d"]) -> Float[Array, "b d"]:
    x = x.astype(jnp.float32)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
