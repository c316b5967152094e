"""The Gaussian process: pictures turn into noise, and a network learns the way back.

At time t, with alpha and sigma from the schedule,

    x = alpha x0 + sigma eps                                                               (1)

The network's output is one of four combinations of x0 and eps. Its inverse with (1):

    eps :  eps                        x0 = (x - sigma eps) / alpha                         (2)
    x0  :  x0                         eps = (x - alpha x0) / sigma                         (3)
    v   :  v = alpha eps - sigma x0   x0 = (alpha x - sigma v) / (alpha^2 + sigma^2)
                                      eps = (sigma x + alpha v) / (alpha^2 + sigma^2)      (4)
    flow:  u = eps - x0               x0 = (x - sigma u) / (alpha + sigma)
                                      eps = (x + alpha u) / (alpha + sigma)                (5)

(4) and (5) divide by one where the schedule is variance preserving or a straight flow. (2) cannot
find x0 where alpha = 0, so eps prediction with zero terminal SNR is refused.

The loss of an example is the mean square of output - target, times a weight. min-SNR weighting
(Hang et al. 2023) wants min(SNR, gamma) times the square error *of x0*, SNR = alpha^2 / sigma^2. An
error d in x0 is an error of  -(alpha/sigma) d in eps,  -((alpha^2 + sigma^2)/sigma) d in v  and
-((alpha + sigma)/sigma) d in u, which gives, with m = min(alpha^2, gamma sigma^2),

    w_eps = m / alpha^2    w_x0 = m / sigma^2
    w_v   = m / (alpha^2 + sigma^2)^2    w_flow = m / (alpha + sigma)^2                    (6)

Noise offset (Emu uses 0.02 in pre-training, 0.1 in quality-tuning): a channel's mean is otherwise
barely disturbed by noise and leaks the brightness of the answer, so in training

    eps = N(0, 1)[b, h, w, c] + offset N(0, 1)[b, 1, 1, c]                                 (7)

It belongs to training only. ``prior`` and ``diffuse``, where samplers start, leave it out: the
network has learnt not to rely on the mean of its input, the most probable mean offset is none, and
published models trained this way are all sampled from plain N(0, 1).

Training draws t uniformly, or, as Esser et al. 2024, from a logit-normal density, which spends the
examples where they teach most (location > 0: towards noise, where the text decides the layout):

    t = sigmoid(location + scale n),  n ~ N(0, 1)                                          (8)

A network may say a variance besides, in a second half of its channels (Nichol & Dhariwal 2021;
DeepFloyd IF): how much noise an ancestral step is to put in anew (``emu_jax.process.samplers``).
The loss looks at the first half alone and gives the second no gradient.

Everything here is computed and returned in fp32, whatever the dtype of what comes in.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from emu_jax.errors import UserError
from emu_jax.process.noise import normal
from emu_jax.process.protocol import Corrupted, Transform
from emu_jax.process.schedules import Schedule

TOLD_LOG_SNR_BOUND = 20.0


class Prediction(NamedTuple):
    """What an output says about x: x = alpha x0 + sigma eps."""

    x0: Float[Array, "b *d"]
    eps: Float[Array, "b *d"]
    variance: Float[Array, "b *d"] | None = None
    """Where in its range the variance of an ancestral step lies, from -1 to 1 (least to most)."""


@dataclass(frozen=True)
class GaussianProcess:
    """A schedule, what the network predicts, what it is told of t, and how examples are weighted.

    time_input: "index" (Stable Diffusion's integer steps, as float), "continuous" (1000 t) or
    "log_snr" (held within +-20). weighting: "none", or "min_snr" with ``gamma``. time_density:
    "uniform", or "logit_normal" with ``time_location`` and ``time_scale``. bounds: the times that
    training draws from and ``time_grid`` spans; the lower one stays above 0, where there is no
    noise left to predict. variance: "fixed", or, of a network that says one, "learned_range" where
    sampling reads it and "ignored" where it is left unread.
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
            raise UserError(f"bounds must be two times with 0 < low < high <= 1, not {self.bounds}")
        if self.gamma <= 0 or self.time_scale <= 0 or self.noise_offset < 0:
            raise UserError("gamma and time_scale must be above 0 and noise_offset not below 0")
        if self.time_input == "index" and self.schedule.steps is None:
            raise UserError(
                'time_input="index" needs a schedule of discrete steps:'
                ' use "continuous" or "log_snr", or the schedule Discrete'
            )
        if self.prediction == "eps" and self.schedule.zero_terminal and high == 1:
            raise UserError(
                'prediction="eps" says nothing about the picture at zero terminal SNR:'
                ' predict "v", "x0" or "flow", or use a schedule that keeps some signal at t = 1'
            )

    def corrupt(
        self,
        key: jax.Array,
        x0: Float[Array, "b *d"],
        t: Float[Array, "*b"] | float | None = None,
    ) -> Corrupted:
        """A training example of every row, by (1) and (7); t is drawn where not given."""
        x0 = jnp.asarray(x0, jnp.float32)
        rows = x0.shape[0]
        key_t, key_eps, key_offset = jax.random.split(key, 3)
        if t is None:
            t = self.schedule.between(self._draw_time(key_t, rows), *self.bounds)
        t = jnp.broadcast_to(jnp.asarray(t, jnp.float32), (rows,))
        eps = jax.random.normal(key_eps, x0.shape)
        if self.noise_offset:
            per_channel = (rows, *(1 for _ in x0.shape[1:-1]), x0.shape[-1])
            eps += self.noise_offset * jax.random.normal(key_offset, per_channel)
        alpha, sigma = self._factors(t, x0)
        return Corrupted(
            x=alpha * x0 + sigma * eps,
            t=t,
            timestep_input=self.timestep_input(t),
            target=self.output(Prediction(x0, eps), t),
            weight=self.weight(t),
        )

    def channels(self, data: int) -> int:
        """How many channels a network's output has, of data of so many."""
        return data if self.variance == "fixed" else 2 * data

    def split(self, output: Float[Array, "b *o"]) -> tuple[Array, Array | None]:
        """What an output says of x, and the variance, where it says one."""
        if self.variance == "fixed":
            return output, None
        said, variance = jnp.split(output, 2, axis=-1)
        return said, variance

    def loss(self, output: Float[Array, "b *o"], corrupted: Corrupted) -> Float[Array, " b"]:
        """Each row's weighted mean square error; a variance has no part in it."""
        error = jnp.asarray(self.split(output)[0], jnp.float32) - corrupted.target
        return corrupted.weight * jnp.mean(error**2, axis=range(1, error.ndim))

    def predict(
        self,
        output: Float[Array, "b *o"],
        x: Float[Array, "b *d"],
        t: Float[Array, "*b"],
        transform: Transform | None = None,
    ) -> Prediction:
        """(x0, eps) of an output, by (2) to (5), and a variance that is to be read.

        ``transform`` acts on x0 (clipping, thresholding); eps then follows from it by (3).
        """
        x = jnp.asarray(x, jnp.float32)
        output, variance = self.split(jnp.asarray(output, jnp.float32))
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

    def output(self, prediction: Prediction, t: Float[Array, "*b"]) -> Float[Array, "b *d"]:
        """What an output says of x that says ``prediction``: the inverse of ``predict``."""
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

    def timestep_input(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """What the network is told of t."""
        t = jnp.asarray(t, jnp.float32)
        match self.time_input:
            case "index":
                return self.schedule.index(t)
            case "continuous":
                return 1000 * self.schedule.clock(t)
            case "log_snr":
                return jnp.clip(self.schedule.log_snr(t), -TOLD_LOG_SNR_BOUND, TOLD_LOG_SNR_BOUND)

    def weight(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """The weight of the square error of an output at t: one, or (6)."""
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

    def prior(self, key: jax.Array, shape: Sequence[int]) -> Float[Array, "..."]:
        """Where sampling starts: N(0, 1) without noise offset; one key, or one for each row."""
        return normal(key, shape)

    def diffuse(
        self, key: jax.Array, x0: Float[Array, "b *d"], t: Float[Array, "*b"] | float
    ) -> Float[Array, "b *d"]:
        """x at t of a given picture, by (1) without noise offset; one key, or one for each row."""
        x0 = jnp.asarray(x0, jnp.float32)
        alpha, sigma = self._factors(t, x0)
        return alpha * x0 + sigma * normal(key, x0.shape)

    def shown(
        self, key: jax.Array, known: Float[Array, "b *d"], t: Float[Array, ""]
    ) -> Float[Array, "b *d"]:
        """A known part is as noisy as all the rest."""
        return self.diffuse(key, known, t)

    def _draw_time(self, key: jax.Array, rows: int) -> Float[Array, " b"]:
        """Where between the bounds each row's t lies, 0 to 1, by the density of (8)."""
        if self.time_density == "uniform":
            return jax.random.uniform(key, (rows,))
        return jax.nn.sigmoid(
            self.time_location + self.time_scale * jax.random.normal(key, (rows,))
        )

    def _factors(self, t, x) -> tuple[Array, Array]:
        """alpha and sigma at t (a scalar or one a row), shaped to multiply x."""
        t = jnp.asarray(t, jnp.float32)
        t = t.reshape(t.shape + (1,) * (x.ndim - t.ndim))
        return self.schedule.alpha(t), self.schedule.sigma(t)


def _choice(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f'{field}="{value}" is not known: choose {", ".join(allowed)}')
