"""Perceptual feedback learning: frozen networks look at what a generator draws.

    L = w_d L_diffusion + sum_k w_k L_k(D(x0'), row)                                       (1)

x0' is the clean latent that the generator predicts after some steps of its sampler
(:mod:`emu_jax.process.feedback`), D the frozen decoder, L_k what a teacher asks of the image
(:mod:`emu_jax.tasks.teachers`): PeFL, algorithm 1 of UniFL (Zhang et al. 2024, arXiv 2404.05595).
Sampling starts from the row's own image at half noise, so that x0' keeps its structure and style,
which dense ground truth needs. L_diffusion is the loss of the generator's own training.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from emu_jax.errors import UserError
from emu_jax.process.feedback import predict_after, predict_again, step_at_log_snr
from emu_jax.process.gaussian import GaussianProcess
from emu_jax.process.guidance import Denoise
from emu_jax.process.sampling import time_grid
from emu_jax.tasks.base import Context, Loss, Rows, RowSpec, encoded_text, to_pixels
from emu_jax.tasks.generation import Sampling
from emu_jax.tasks.generator_task import GeneratorTask
from emu_jax.tasks.teachers import Teacher
from emu_jax.text.encoder import TextEncoder

_SHOWN = 8
_FEEDBACK = 2**30  # folded into the step's key


@dataclass(frozen=True)
class Trajectory:
    """Where sampling starts, where it is looked at, and how far the gradient goes back.

    ``sampling`` gives sampler, steps, spacing and guidance in training. It starts from the row's
    image at the step whose log-SNR is nearest to ``start``, None: from pure noise. The call with a
    gradient is ``latest`` to ``earliest`` steps before the end, at random. ``through`` are the
    fewest and the most calls, up to this one, that the gradient passes. With ``renoised`` = n > 0
    the prediction has none: noise is added to it n times, and n further calls are those with one.
    """

    sampling: Sampling
    start: float | None = -0.96
    latest: int = 1
    earliest: int = 5
    through: tuple[int, int] = (1, 1)
    renoised: int = 0

    def __post_init__(self):
        if not 1 <= self.latest <= self.earliest <= self.sampling.steps:
            raise UserError(
                f"feedback.latest is {self.latest} and feedback.earliest {self.earliest}; use "
                f"1 <= latest <= earliest <= feedback.sampling.steps ({self.sampling.steps})."
            )
        least, most = self.through
        if not 1 <= least <= most:
            raise UserError(
                f"feedback.through is {self.through}; use the fewest and the most calls with a "
                "gradient, 1 or more."
            )
        if most > 1 and (self.start is not None or self.renoised):
            raise UserError(
                f"feedback.through is {self.through}; more than one call with a gradient needs "
                "feedback.start='noise' and feedback.renoised=0."
            )
        if self.earliest + most - 1 > self.sampling.steps:
            raise UserError(
                f"feedback.earliest is {self.earliest} and feedback.through {self.through}, but "
                f"sampling has {self.sampling.steps} calls; use earliest + through - 1 of at most "
                f"{self.sampling.steps}."
            )


@dataclass(frozen=True, kw_only=True)
class Feedback(GeneratorTask):
    """``base`` learns from ``teachers``, whose weights lie in ``frozen`` under their names.
    ``encoders`` are those of the text that teachers read.
    """

    teachers: Mapping[str, Teacher]
    weights: Mapping[str, float]
    trajectory: Trajectory
    diffusion: float = 1.0
    encoders: Mapping[str, TextEncoder] = field(default_factory=dict)

    @property
    def streams(self) -> dict[str, RowSpec]:
        further = tuple(dict.fromkeys(x for t in self.teachers.values() for x in t.further))
        columns = {name: v for t in self.teachers.values() for name, v in t.columns.items()}
        uncached = any(teacher.originals for teacher in self.teachers.values())
        return {
            name: replace(
                rows,
                encoders={**rows.encoders, **self.encoders},
                further=further,
                columns=columns,
                latents=None if uncached else rows.latents,
            )
            for name, rows in self.base.streams.items()
        }

    def loss(self, group: str, context: Context) -> Loss:
        """Equation (1), and its terms."""
        rows = self.base.with_latents(context.frozen, context.batch[self.base.stream])
        image = self.draw(context, rows, jax.random.fold_in(context.key, _FEEDBACK))
        encoded = {
            name: encoded_text(name, encoder, context.frozen, rows)
            for name, encoder in self.encoders.items()
        }
        drawn_for = _repeated({**rows, "encoded": encoded}, max(1, self.trajectory.renoised))
        terms = {
            name: teacher.loss(context.frozen[name], image, drawn_for)
            for name, teacher in self.teachers.items()
        }
        total = sum((self.weights[name] * x for name, x in terms.items()), jnp.zeros(()))
        if self.diffusion:
            terms["diffusion"] = jnp.mean(self.base.losses(context, rows))
            total += self.diffusion * terms["diffusion"]
        return Loss(total, context.state, terms)

    def validate(self, context: Context) -> dict[str, tuple[jax.Array, jax.Array]]:
        """The loss of the generator's own training. What teachers say of it is no validation."""
        return self.base.validate(context)

    def preview(self, context: Context) -> dict[str, UInt8[Array, "n h w 3"]]:
        """Samples, and images as the teachers get them."""
        rows = jax.tree.map(lambda x: x[:_SHOWN], context.batch[self.base.stream])
        rows = self.base.with_latents(context.frozen, rows)
        image = self.draw(context, rows, jax.random.fold_in(context.key, _FEEDBACK))
        return {**self.base.preview(context), "feedback": to_pixels(image)}

    def draw(self, context: Context, rows: Rows, key: jax.Array) -> Float[Array, "nb H W 3"]:
        """Images in [-1, 1], differentiable in the parameters by the last calls of the denoiser.
        With ``renoised`` = n there are n of each row, all rows one after the other.
        """
        base, path = self.base, self.trajectory
        sampling, process = path.sampling, base.process
        assert isinstance(process, GaussianProcess)  # as assembled
        k_clean, k_start, k_last, k_steps, k_through, k_again = jax.random.split(key, 6)
        times = time_grid(process, sampling.steps, sampling.spacing)
        last = sampling.steps - jax.random.randint(k_last, (), path.latest, path.earliest + 1)
        if path.start is None:
            first, shape = jnp.int32(0), self._shape(rows)
            x = process.prior(k_start, shape)
        else:
            first = jnp.minimum(step_at_log_snr(process, times, path.start), last)
            clean = base.clean(context.frozen, rows, k_clean)
            x = process.sample_forward(k_start, clean, times[first])
        encoded = base.encode(context.frozen, rows)

        def make_denoise(params: Any, times_each: int = 1) -> Denoise:
            text, sizes = _repeated((encoded, rows["sizes"]), times_each)
            null = base.null_rows(len(sizes)) if sampling.guidance_scale != 1 else None
            return base.guided(
                params,
                base.condition(params, text, sizes),
                None if null is None else base.condition(params, null, sizes, "unconditional"),
                sampling,
            )

        least, most = path.through
        n = least if least == most else jax.random.randint(k_through, (), least, most + 1)
        params = jax.lax.stop_gradient(context.params) if path.renoised else context.params
        predicted = predict_after(
            make_denoise, params, process, sampling.sampler, times, k_steps, x, first, last,
            through=(most, n), transform=sampling.transform,
        )  # fmt: skip
        if path.renoised:
            predicted = predict_again(
                lambda params: make_denoise(params, path.renoised),
                context.params, process, times, k_again,
                _repeated(predicted.x0, path.renoised), last,
                transform=sampling.transform,
            )  # fmt: skip
        # The decoder's activations are most of the step's memory: they are computed again.
        return jax.checkpoint(lambda x0: base.decode(context.frozen, x0))(predicted.x0)

    def _shape(self, rows: Rows) -> tuple[int, ...]:
        moments = jax.tree.leaves(rows["moments"])[0]
        return (moments.shape[0], *self.base.codec.row(*moments.shape[1:3]))


def _repeated(tree: Any, n: int) -> Any:
    """n times all rows, one after the other."""
    return tree if n == 1 else jax.tree.map(lambda x: jnp.concatenate([x] * n), tree)
