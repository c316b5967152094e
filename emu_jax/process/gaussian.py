"""The Gaussian process: noise is added to data, and a network learns to remove it.

At time t, with alpha and sigma from the schedule,

    x = alpha x0 + sigma eps                                                               (1)

The network's output is one of four combinations of x0 and eps. Its inverse with (1):

    eps :  eps                        x0 = (x - sigma eps) / alpha                         (2)
    x0  :  x0                         eps = (x - alpha x0) / sigma                         (3)
    v   :  v = alpha eps - sigma x0   x0 = (alpha x - sigma v) / (alpha^2 + sigma^2)
                                      eps = (sigma x + alpha v) / (alpha^2 + sigma^2)      (4)
    flow:  u = eps - x0               x0 = (x - sigma u) / (alpha + sigma)
                                      eps = (x + alpha u) / (alpha + sigma)                (5)

The divisors in (4) and (5) are 1 for variance-preserving schedules and for flow matching. (2) has
no solution where alpha = 0, so eps prediction with zero terminal SNR is an error.

The loss of an example is the mean square of output - target, times a weight. min-SNR weighting
(Hang et al. 2023) weights the square error *of x0* by min(SNR, gamma), SNR = alpha^2 / sigma^2. An
error d in x0 is an error of  -(alpha/sigma) d in eps,  -((alpha^2 + sigma^2)/sigma) d in v  and
-((alpha + sigma)/sigma) d in u, which gives, with m = min(alpha^2, gamma sigma^2),

    w_eps = m / alpha^2    w_x0 = m / sigma^2
    w_v   = m / (alpha^2 + sigma^2)^2    w_flow = m / (alpha + sigma)^2                    (6)

Noise offset (Emu uses 0.02 in pre-training, 0.1 in quality-tuning): independent noise hardly
changes the mean of a channel, which leaks the brightness of the target. So in training

    eps = N(0, 1)[b, h, w, c] + offset N(0, 1)[b, 1, 1, c]                                 (7)

It is for training only. ``prior`` and ``sample_forward``, where sampling starts, do not use it: the
network has learned not to rely on the mean of its input, the most probable mean offset is 0, and
all published models that were trained this way are sampled from plain N(0, 1).

In training t is uniform, or, as in Esser et al. 2024, has a logit-normal density, which puts the
examples where they teach most (location > 0: towards noise, where the text decides the layout):

    t = sigmoid(location + scale n),  n ~ N(0, 1)                                          (8)

A network may also predict a variance, in a second half of its channels (Nichol & Dhariwal 2021;
DeepFloyd IF): how much new noise an ancestral step adds (``emu_jax.process.samplers``). The loss
reads only the first half and gives the second no gradient.

Everything here is computed and returned in fp32, whatever the dtype of the arguments.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from emu_jax.errors import UserError
from emu_jax.nn.arguments import check_arguments
from emu_jax.process.noise import Keys, normal, split, uniform
from emu_jax.process.protocol import Corrupted, Time, Transform
from emu_jax.process.registry import SCHEDULES
from emu_jax.process.schedules import Schedule, Shifted
from emu_jax.registry import look_up

LOG_SNR_INPUT_BOUND = 20.0


class Prediction(NamedTuple):
    """What an output predicts about x = alpha x0 + sigma eps."""

    x0: Float[Array, "b *d"]
    eps: Float[Array, "b *d"]
    variance: Float[Array, "b *d"] | None = None
    """The variance of an ancestral step, from -1 (the least possible) to 1 (the most)."""


@dataclass(frozen=True)
class GaussianProcess:
    """A schedule, the prediction and the timestep input of the network, the weights of examples.

    time_input: "index" (the integer steps of Stable Diffusion, as float), "continuous" (1000 t) or
    "log_snr" (clipped to +-20). weighting: "none", or "min_snr" with ``gamma``. time_density:
    "uniform", or "logit_normal" with ``time_location`` and ``time_scale``. bounds: the range of t
    in training and in ``time_grid``; the lower one is above 0, where there is no noise to predict.
    variance: "fixed", or, for a network that predicts one, "learned_range" (sampling uses it) or
    "ignored" (sampling does not).
    """

    schedule: Schedule
    prediction: Literal["eps", "x0", "v", "flow"] = "v"
    time_input: Literal["index", "continuous", "log_snr"] = "continuous"
    weighting: Literal["none", "min_snr"] = "none"
    gamma: float = 5.0
    time_density: Literal["uniform", "logit_normal"] = "uniform"
    time_location: float = 0.0
    time_scale: float = 1.0
    noise_offset: float = 0.0
    bounds: tuple[float, float] = (1e-3, 1.0)
    variance: Literal["fixed", "learned_range", "ignored"] = "fixed"

    def __post_init__(self):
        _choice("prediction", self.prediction, ("eps", "x0", "v", "flow"))
        _choice("time_input", self.time_input, ("index", "continuous", "log_snr"))
        _choice("weighting", self.weighting, ("none", "min_snr"))
        _choice("time_density", self.time_density, ("uniform", "logit_normal"))
        _choice("variance", self.variance, ("fixed", "learned_range", "ignored"))
        low, high = self.bounds
        if not 0 < low < high <= 1:
            raise UserError(
                f"process.bounds is {self.bounds}; use two times with 0 < low < high <= 1."
            )
        for field in ("gamma", "time_scale"):
            if getattr(self, field) <= 0:
                raise UserError(f"process.{field} is {getattr(self, field)}; use a value above 0.")
        if self.noise_offset < 0:
            raise UserError(f"process.noise_offset is {self.noise_offset}; use 0 or more.")
        if self.time_input == "index" and self.schedule.steps is None:
            raise UserError(
                'process.time_input="index" needs a schedule with discrete steps; use "continuous" '
                'or "log_snr", or a discrete schedule.'
            )
        if self.prediction == "eps" and self.schedule.zero_terminal and high == 1:
            raise UserError(
                'process.prediction="eps" says nothing about the image at zero terminal SNR; use '
                '"v", "x0" or "flow", or a schedule that keeps some signal at t = 1.'
            )

    def corrupt(
        self,
        key: Keys,
        x0: Float[Array, "b *d"],
        t: Time | None = None,
    ) -> Corrupted:
        """A training example of every row, by (1) and (7); t is random unless given. One key, or
        one per row.
        """
        x0 = jnp.asarray(x0, jnp.float32)
        rows = x0.shape[0]
        key_t, key_eps, key_offset = split(key, 3)
        if t is None:
            t = self.schedule.training_time(self._random_position(key_t, rows), *self.bounds)
        t = jnp.broadcast_to(jnp.asarray(t, jnp.float32), (rows,))
        eps = normal(key_eps, x0.shape)
        if self.noise_offset:
            per_channel = (rows, *(1 for _ in x0.shape[1:-1]), x0.shape[-1])
            eps += self.noise_offset * normal(key_offset, per_channel)
        alpha, sigma = self._factors(t, x0)
        return Corrupted(
            x=alpha * x0 + sigma * eps,
            t=t,
            timestep_input=self.timestep_input(t),
            target=self.output(Prediction(x0, eps), t),
            weight=self.weight(t),
        )

    def channels(self, data: int) -> int:
        """The number of output channels of a network for data with ``data`` channels."""
        return data if self.variance == "fixed" else 2 * data

    def split_output(
        self, output: Float[Array, "b *o"]
    ) -> tuple[Float[Array, "b *d"], Float[Array, "b *d"] | None]:
        """The prediction of x, and of the variance if there is one."""
        if self.variance == "fixed":
            return output, None
        prediction, variance = jnp.split(output, 2, axis=-1)
        return prediction, variance

    def loss(self, output: Float[Array, "b *o"], corrupted: Corrupted) -> Float[Array, " b"]:
        """The weighted mean square error of each row, without the variance."""
        error = jnp.asarray(self.split_output(output)[0], jnp.float32) - corrupted.target
        return corrupted.weight * jnp.mean(error**2, axis=range(1, error.ndim))

    def predict(
        self,
        output: Float[Array, "b *o"],
        x: Float[Array, "b *d"],
        t: Time,
        transform: Transform | None = None,
    ) -> Prediction:
        """(x0, eps) of an output, by (2) to (5), and the variance if sampling uses it.

        ``transform`` acts on x0 (clipping, thresholding); eps then follows from it by (3).
        """
        x = jnp.asarray(x, jnp.float32)
        output, variance = self.split_output(jnp.asarray(output, jnp.float32))
        alpha, sigma = self._factors(t, x)
        match self.prediction:
            case "eps":
                x0, eps = (x - sigma * output) / alpha, output
            case "x0":
                x0, eps = output, (x - alpha * output) / sigma
            case "v":
                norm = alpha**2 + sigma**2
                x0, eps = (alpha * x - sigma * output) / norm, (sigma * x + alpha * output) / norm
            case "flow":
                norm = alpha + sigma
                x0, eps = (x - sigma * output) / norm, (x + alpha * output) / norm
        if transform is not None:
            x0 = transform(x0)
            eps = (x - alpha * x0) / sigma
        return Prediction(x0, eps, variance if self.variance == "learned_range" else None)

    def output(self, prediction: Prediction, t: Time) -> Float[Array, "b *d"]:
        """The output that predicts ``prediction``: the inverse of ``predict``."""
        x0, eps, _ = prediction
        alpha, sigma = self._factors(t, x0)
        match self.prediction:
            case "eps":
                return eps
            case "x0":
                return x0
            case "v":
                return alpha * eps - sigma * x0
            case "flow":
                return eps - x0

    def timestep_input(self, t: Float[Array, "*t"]) -> Float[Array, "*t"]:
        """The timestep input of the network at t, as ``time_input`` says."""
        t = jnp.asarray(t, jnp.float32)
        match self.time_input:
            case "index":
                return self.schedule.index(t)
            case "continuous":
                return 1000 * self.schedule.network_time(t)
            case "log_snr":
                bound = LOG_SNR_INPUT_BOUND
                return jnp.clip(self.schedule.log_snr(t), -bound, bound)

    def weight(self, t: Float[Array, "*t"]) -> Float[Array, "*t"]:
        """The weight of the square error of an output at t: 1, or (6)."""
        t = jnp.asarray(t, jnp.float32)
        if self.weighting == "none":
            return jnp.ones_like(t)
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        least = jnp.minimum(alpha**2, self.gamma * sigma**2)
        match self.prediction:
            case "eps":
                return least / alpha**2
            case "x0":
                return least / sigma**2
            case "v":
                return least / (alpha**2 + sigma**2) ** 2
            case "flow":
                return least / (alpha + sigma) ** 2

    def clean_data(self, prediction: Prediction, x: Float[Array, "b *d"]) -> Float[Array, "b *d"]:
        """The predicted x0."""
        return prediction.x0

    def prior(self, key: Keys, shape: Sequence[int]) -> Float[Array, "b *d"]:
        """Where sampling starts: N(0, 1) without noise offset. One key, or one per row."""
        return normal(key, shape)

    def sample_forward(self, key: Keys, x0: Float[Array, "b *d"], t: Time) -> Float[Array, "b *d"]:
        """x at t given x0, by (1) without noise offset. One key, or one per row."""
        x0 = jnp.asarray(x0, jnp.float32)
        alpha, sigma = self._factors(t, x0)
        return alpha * x0 + sigma * normal(key, x0.shape)

    def known_at(self, key: Keys, known: Float[Array, "b *d"], t: Time) -> Float[Array, "b *d"]:
        """The known part has the same noise level as the rest."""
        return self.sample_forward(key, known, t)

    def held_at(self, keep: Float[Array, "..."], t: Time) -> Bool[Array, "..."]:
        """Until t = 1 - keep, so that what stays in part is sampled for the rest of the time and
        fits both sides (Levin & Fried 2023); what stays entirely is held to the end.
        """
        return (keep + t > 1) | (keep >= 1)

    def _random_position(self, key: Keys, rows: int) -> Float[Array, " b"]:
        """The position of each row's t between the bounds, 0 to 1, with the density of (8)."""
        if self.time_density == "uniform":
            return uniform(key, (rows,))
        return jax.nn.sigmoid(self.time_location + self.time_scale * normal(key, (rows,)))

    def _factors(self, t: Time, x: Float[Array, "b *d"]) -> tuple[Array, Array]:
        """alpha and sigma at t, in a shape that multiplies x."""
        t = jnp.asarray(t, jnp.float32)
        t = t.reshape(t.shape + (1,) * (x.ndim - t.ndim))
        return self.schedule.alpha(t), self.schedule.sigma(t)


def make_gaussian(*, schedule: str, shift: float = 1.0, **arguments: Any) -> GaussianProcess:
    """The process of the keys of ``config.process``; ``schedule`` is a name of the registry."""
    named = look_up(SCHEDULES, schedule, "process.schedule")()
    if "bounds" in arguments:
        arguments["bounds"] = tuple(arguments["bounds"])
    check_arguments(GaussianProcess, arguments, "process")
    return GaussianProcess(named if shift == 1 else Shifted(named, shift), **arguments)


def _choice(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"process.{field} is {value!r}; use one of {', '.join(allowed)}.")
