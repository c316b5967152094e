"""Adversarial feedback: a reward that learns to tell the generator's images from real ones.

A frozen reward is soon fooled: images get a high score and look worse. UniFL (Zhang et al. 2024,
arXiv 2404.05595, equation 6) trains it with the generator. With images x of the data, which have
passed the codec as x0' has,

    generator   L_G = -E r(x0', c)                                                         (1)
    reward      L_D = -E [log sigma(r(x, c)) + log(1 - sigma(r(x0', c)))]
                      + (gamma / 2) E |d r(x, c) / dx|^2                                   (2)

(1) is the raw score: it has a gradient however sure the reward is. The last term of (2), R1
(Mescheder et al. 2018), is no part of the paper; gamma is 0 unless a config says otherwise. In the
paper r starts as the reward of the dimension detail.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from emu_jax.data.mixture import Column
from emu_jax.nn.functional import Network, Params
from emu_jax.tasks.base import Metrics, Rows
from emu_jax.tasks.rewards import Images, Reward
from emu_jax.text.encoder import TextEncoder


@dataclass(frozen=True)
class Adversary:
    """A teacher that learns, by the output number ``output`` of ``reward`` with the parameters of
    ``network``. ``text`` names the output of ``encoder`` in the rows, ``r1`` is gamma.
    """

    reward: Reward
    network: Network
    encoder: TextEncoder | None = None
    output: int = 0
    r1: float = 0.0
    text: str = ""
    originals: bool = False
    further: tuple[str, ...] = ()
    columns: Mapping[str, Column] = field(default_factory=dict)

    def loss(self, frozen: Params, image: Images, rows: Rows) -> Float[Array, ""]:
        """Equation (1)."""
        return -jnp.mean(self.score(frozen, image, rows))

    def own_loss(
        self, params: Params, drawn: Images, real: Images, rows: Rows
    ) -> tuple[Float[Array, ""], Metrics]:
        """Equation (2), and what to log: mean scores, and the share of images told apart by the
        sign of their score.
        """
        ours, theirs = self.score(params, drawn, rows), self.score(params, real, rows)
        loss = jnp.mean(jax.nn.softplus(-theirs) + jax.nn.softplus(ours))
        right = jnp.mean(jnp.stack([theirs > 0, ours < 0]).astype(jnp.float32))
        scalars = {"real": jnp.mean(theirs), "drawn": jnp.mean(ours), "accuracy": right}
        if self.r1:
            slope = jax.grad(lambda x: jnp.sum(self.score(params, x, rows)))(real)
            scalars["r1"] = jnp.mean(jnp.sum(slope.astype(jnp.float32) ** 2, (1, 2, 3)))
            loss = loss + self.r1 / 2 * scalars["r1"]
        return loss, scalars

    def score(self, params: Params, image: Images, rows: Rows) -> Float[Array, " b"]:
        """r of images in [-1, 1]."""
        text = rows["encoded"][self.text] if self.encoder else None
        found = self.reward.score(params, jnp.clip(image, -1, 1), text)
        return found[:, self.output]
