"""Feedback learning: other networks look at what a generator draws.

    L = w_d L_diffusion + sum_k w_k L_k(D(x0'), row)                                       (1)

x0' is the clean latent that the generator predicts after some steps of its sampler
(:mod:`emu_jax.process.feedback`), D the frozen decoder, L_k what a teacher asks of the image
(:mod:`emu_jax.tasks.teachers`). L_diffusion is the loss of the generator's own training.

Teachers whose images come about in the same way (:class:`Trajectory`) get the same images. In
UniFL (Zhang et al. 2024, arXiv 2404.05595) those that know what is in an image get predictions that
start from this image at half noise, so that x0' keeps its structure and style (algorithm 1);
rewards get predictions that start from noise (equation 5).

One teacher may learn, too: an adversary (:mod:`emu_jax.tasks.adversary`). It is a group of
parameters of its own, updated after the generator. It judges what the updated generator predicts
where the generator's own loss had come to, so nothing is sampled twice.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from emu_jax.errors import UserError
from emu_jax.nn.functional import Params, nest, subtree
from emu_jax.process.feedback import predict_at, sample_to, step_at_log_snr
from emu_jax.process.gaussian import GaussianProcess
from emu_jax.process.guidance import Denoise
from emu_jax.process.sampling import time_grid
from emu_jax.tasks.adversary import Adversary
from emu_jax.tasks.base import Context, Frozen, Loss, Rows, RowSpec, encoded_text, to_pixels
from emu_jax.tasks.generator_task import GeneratorTask
from emu_jax.tasks.sampling import Sampling
from emu_jax.tasks.teachers import Teacher
from emu_jax.text.encoder import TextEncoder

ADVERSARY = "discriminator"  # its parameters, which an export leaves out, and their group
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


class Reached(NamedTuple):
    """Where sampling is looked at: x at the time number ``last`` of its grid."""

    x: Float[Array, "b *d"]
    last: Int[Array, ""]


@dataclass(frozen=True, kw_only=True)
class Feedback(GeneratorTask):
    """``base`` learns from ``teachers``, whose weights lie in ``frozen`` under their names. Of an
    adversary they are parameters of this task. ``trajectories`` has each teacher's, ``encoders``
    are those of the text that teachers read. ``adversary_start`` are the weights from which the
    adversary learns, None: fresh ones.
    """

    teachers: Mapping[str, Teacher]
    weights: Mapping[str, float]
    trajectories: Mapping[str, Trajectory]
    diffusion: float = 1.0
    encoders: Mapping[str, TextEncoder] = field(default_factory=dict)
    adversary_start: Frozen | None = None

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

    @property
    def adversary(self) -> tuple[str, Adversary] | None:
        """The teacher that learns, and its name."""
        found = ((n, t) for n, t in self.teachers.items() if isinstance(t, Adversary))
        return next(found, None)

    @property
    def starts(self) -> Mapping[str, Frozen]:
        return {ADVERSARY: self.adversary_start} if self.adversary_start else {}

    def init(self, key: jax.Array) -> tuple[Params, Params]:
        params, state = self.base.init(key)
        if self.adversary:
            network = self.adversary[1].network
            params = {**params, **nest(ADVERSARY, network.init(jax.random.fold_in(key, 2)))}
        return params, state

    def loss(self, group: str, context: Context) -> Loss:
        """Equation (1) and its terms, or the adversary's own loss."""
        rows = self._read(context, context.batch[self.base.stream])
        if group == ADVERSARY:
            return self._adversary_loss(context, rows)
        terms, handed = {}, None
        for number, path in enumerate(self.paths):
            image, reached = self.draw(context, rows, self._key(context, number), path)
            drawn_for = _repeated(rows, max(1, path.renoised))
            for name, teacher in self.teachers.items():
                if self.trajectories[name] == path:
                    learns = isinstance(teacher, Adversary)
                    handed = reached if learns else handed
                    weights = (
                        jax.lax.stop_gradient(subtree(context.params, ADVERSARY))
                        if learns
                        else context.frozen[name]
                    )
                    terms[name] = teacher.loss(weights, image, drawn_for)
        total = sum((self.weights[name] * x for name, x in terms.items()), jnp.zeros(()))
        if self.diffusion:
            terms["diffusion"] = jnp.mean(self.base.losses(context, rows))
            total += self.diffusion * terms["diffusion"]
        return Loss(total, context.state, terms, handed)

    def _adversary_loss(self, context: Context, rows: Rows) -> Loss:
        """Of the row's own images, which have passed the codec, and of what the generator predicts
        in their place.
        """
        assert self.adversary and context.handed
        name, teacher = self.adversary
        reached = Reached(*context.handed["generator"])
        generator = jax.lax.stop_gradient(context.params)
        path = self.trajectories[name]
        drawn = self._look(context._replace(params=generator), rows, reached, path)
        key = self._key(context, len(self.paths))
        real = self.base.decode(context.frozen, self.base.clean(context.frozen, rows, key))
        value, scalars = teacher.own_loss(
            subtree(context.params, ADVERSARY), jax.lax.stop_gradient(drawn), real, rows
        )
        return Loss(value, context.state, scalars)

    def validate(self, context: Context) -> dict[str, tuple[jax.Array, jax.Array]]:
        """The loss of the generator's own training. What teachers say of it is no validation."""
        return self.base.validate(context)

    def preview(self, context: Context) -> dict[str, UInt8[Array, "n h w 3"]]:
        """Samples, and images as the teachers get them."""
        rows = jax.tree.map(lambda x: x[:_SHOWN], context.batch[self.base.stream])
        rows = self._read(context, rows)
        shown = self.base.preview(context)
        for number, path in enumerate(self.paths):
            image, _ = self.draw(context, rows, self._key(context, number), path)
            shown[f"feedback_{number}" if number else "feedback"] = to_pixels(image)
        return shown

    def _read(self, context: Context, rows: Rows) -> Rows:
        """The rows with their latents and with the outputs of text encoders, each computed once:
        ``texts`` those of the generator's, ``encoded`` those that teachers read.
        """
        rows = self.base.with_latents(context.frozen, rows)
        texts = self.base.encode(context.frozen, rows)
        encoded = {
            name: texts[name]
            if name in texts
            else encoded_text(name, encoder, context.frozen, rows)
            for name, encoder in self.encoders.items()
        }
        return {**rows, "texts": texts, "encoded": encoded}

    @property
    def paths(self) -> list[Trajectory]:
        """The distinct trajectories."""
        found: list[Trajectory] = []
        for path in self.trajectories.values():
            found += [] if path in found else [path]
        return found

    def _key(self, context: Context, number: int) -> jax.Array:
        return jax.random.fold_in(context.key, _FEEDBACK + number)

    def draw(
        self, context: Context, rows: Rows, key: jax.Array, path: Trajectory
    ) -> tuple[Float[Array, "nb H W 3"], Reached]:
        """Images in [-1, 1], differentiable in the parameters by the last calls of the denoiser,
        and where the last call was made. With ``renoised`` = n there are n images of each row, all
        rows one after the other.
        """
        sampling, process = path.sampling, self._process
        k_clean, k_start, k_last, k_steps, k_through, k_again = jax.random.split(key, 6)
        times = time_grid(process, sampling.steps, sampling.spacing)
        last = sampling.steps - jax.random.randint(k_last, (), path.latest, path.earliest + 1)
        if path.start is None:
            first, shape = jnp.int32(0), self._shape(rows)
            x = process.prior(k_start, shape)
        else:
            first = jnp.minimum(step_at_log_snr(process, times, path.start), last)
            clean = self.base.clean(context.frozen, rows, k_clean)
            x = process.sample_forward(k_start, clean, times[first])
        least, most = path.through
        n = least if least == most else jax.random.randint(k_through, (), least, most + 1)
        x = sample_to(
            lambda params: self._denoise(context._replace(params=params), rows, sampling),
            context.params, process, sampling.sampler, times, k_steps, x, first, last,
            through=(most, n), transform=sampling.transform,
        )  # fmt: skip
        if path.renoised:
            still = context._replace(params=jax.lax.stop_gradient(context.params))
            denoise = self._denoise(still, rows, sampling)
            x0 = predict_at(denoise, process, times, x, last, transform=sampling.transform).x0
            rows = _repeated(rows, path.renoised)
            x = process.sample_forward(k_again, _repeated(x0, path.renoised), times[last])
        return self._look(context, rows, Reached(x, last), path), Reached(x, last)

    def _look(
        self, context: Context, rows: Rows, reached: Reached, path: Trajectory
    ) -> Float[Array, "b H W 3"]:
        """The decoded prediction, by one call of the denoiser."""
        sampling, process = path.sampling, self._process
        times = time_grid(process, sampling.steps, sampling.spacing)
        denoise = self._denoise(context, rows, sampling)
        x0 = predict_at(denoise, process, times, *reached, transform=sampling.transform).x0
        # The decoder's activations are most of the step's memory: they are computed again.
        return jax.checkpoint(lambda x0: self.base.decode(context.frozen, x0))(x0)

    def _denoise(self, context: Context, rows: Rows, sampling: Sampling) -> Denoise:
        """The guided network with the parameters and for the texts of ``rows``."""
        base, params, sizes = self.base, context.params, rows["sizes"]
        conditions = base.condition(params, rows["texts"], sizes)
        null = None
        if sampling.guidance_scale != 1:
            null = base.condition(params, base.null_rows(len(sizes)), sizes, "unconditional")
        return base.guided(params, conditions, null, sampling)

    @property
    def _process(self) -> GaussianProcess:
        assert isinstance(self.base.process, GaussianProcess)  # as assembled
        return self.base.process

    def _shape(self, rows: Rows) -> tuple[int, ...]:
        moments = jax.tree.leaves(rows["moments"])[0]
        return (moments.shape[0], *self.base.codec.row(*moments.shape[1:3]))


def _repeated(tree: Any, n: int) -> Any:
    """n times all rows, one after the other."""
    return tree if n == 1 else jax.tree.map(lambda x: jnp.concatenate([x] * n), tree)
