"""Learning from pairs of images without a reward: Diffusion-DPO (Wallace et al. 2023, arXiv
2311.12908).

Of a row's two images for one prompt, ``image`` is the preferred one and ``other`` is not, unless
votes say otherwise. Both are corrupted by the same noise at the same time. With the errors e and e'
of the preferred and of the other one under the generator, and f and f' under a frozen reference,
which is the generator before training,

    L = -E log sigma(-b [(e - f) - (e' - f')])                                             (1)

Gaussian processes: e is the mean square error of eps, whatever the network predicts; b = beta / 2.

Masked generation: e estimates -log p of the image's N tokens, and b = beta. If the order of tokens
is random, -log p <= E_r[N c] for a share r of masked tokens that is uniform, with c the mean
cross-entropy of the masked ones. The process draws r = sin(pi t / 2) for a uniform t, so

    e = N c (pi / 2) cos(pi t / 2)                                                         (2)
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from emu_jax.data.mixture import Integers
from emu_jax.nn.functional import Params
from emu_jax.process.gaussian import GaussianProcess
from emu_jax.process.protocol import Corrupted
from emu_jax.tasks.base import Context, Loss, Rows, RowSpec
from emu_jax.tasks.generator_task import GeneratorTask
from emu_jax.tasks.preferences import OTHER, VOTES, majority

REFERENCE = "reference"


@dataclass(frozen=True, kw_only=True)
class Dpo(GeneratorTask):
    """``base`` learns from pairs. ``frozen`` holds the reference's parameters as "reference".

    ``votes``: the majority says which image is preferred, and a tie teaches nothing; with "none"
    rows have no votes, and it is always ``image``.
    """

    votes: Literal["majority", "none"]
    beta: float = 5000.0

    @property
    def streams(self) -> dict[str, RowSpec]:
        columns = dict.fromkeys(VOTES if self.votes == "majority" else (), Integers())
        return {
            name: replace(rows, further=(OTHER,), columns=columns)
            for name, rows in self.base.streams.items()
        }

    def loss(self, group: str, context: Context) -> Loss:
        """Equation (1), and the share of pairs whose preferred image gained more."""
        margins = self.margins(context, context.batch[self.base.stream])
        right = jnp.sum(margins > 0) / jnp.maximum(jnp.sum(margins != 0), 1)
        loss = jnp.mean(-jax.nn.log_sigmoid(margins))
        return Loss(loss, context.state, {"preference": loss, "accuracy": right})

    def validate(self, context: Context) -> dict[str, tuple[jax.Array, jax.Array]]:
        """The generator's own loss, and what the loss here logs, of held-out pairs."""
        rows = context.batch[self.base.stream]
        margins, valid = self.margins(context, rows), rows["valid"].astype(jnp.float32)
        losses, decided = -jax.nn.log_sigmoid(margins), valid * (margins != 0)
        return self.base.validate(context) | {
            "preference": (jnp.sum(losses * valid), jnp.sum(valid)),
            "accuracy": (jnp.sum((margins > 0) * decided), jnp.sum(decided)),
        }

    def preview(self, context: Context) -> dict[str, UInt8[Array, "n h w 3"]]:
        return self.base.preview(context)

    def margins(self, context: Context, rows: Rows) -> Float[Array, " b"]:
        """What sigma has in equation (1), for each row."""
        base, frozen = self.base, context.frozen
        k_latent, k_process = jax.random.split(context.key)
        other = rows | base.latents(frozen, rows["further"][OTHER])
        images = (base.with_latents(frozen, rows), other)
        both = jax.tree.map(
            lambda *x: jnp.concatenate(x),
            *(base.process.corrupt(k_process, base.clean(frozen, x, k_latent)) for x in images),
        )
        encoded = base.encode(frozen, rows)

        def errors(params: Params) -> Float[Array, "2 b"]:
            conditions = base.condition(params, encoded, rows["sizes"])
            conditions = jax.tree.map(lambda x: jnp.concatenate([x, x]), conditions)
            output = base.denoise(params, both.x, both.timestep_input, conditions)
            return jnp.stack(jnp.split(error(base.process, output, both), 2))

        ours, theirs = errors(context.params), errors(frozen[REFERENCE])
        gained = jax.lax.stop_gradient(theirs) - ours
        factor = self.beta / 2 if isinstance(base.process, GaussianProcess) else self.beta
        margins = factor * (gained[0] - gained[1])
        return margins * majority(rows) if self.votes == "majority" else margins


def error(process: Any, output: Float[Array, "b *o"], corrupted: Corrupted) -> Float[Array, " b"]:
    """e of equation (1) for each row."""
    if isinstance(process, GaussianProcess):
        output, plain = process.split_output(output)[0], replace(process, variance="fixed")
        eps = (plain.predict(y, corrupted.x, corrupted.t).eps for y in (output, corrupted.target))
        difference = next(eps) - next(eps)
        return jnp.mean(difference**2, axis=range(1, difference.ndim))
    tokens = corrupted.target.size // corrupted.target.shape[0]
    mean = process.loss(output, corrupted) / corrupted.weight
    return tokens * mean * (jnp.pi / 2) * jnp.cos(jnp.pi / 2 * corrupted.t)
