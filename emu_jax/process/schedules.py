"""Noise schedules: the factors of signal and noise at time t.

Time runs from t = 0 (clean) to t = 1 (noise). A schedule gives the two factors of

    x_t = alpha(t) x_0 + sigma(t) eps,   eps ~ N(0, 1)                                    (1)
    lambda(t) = log_snr(t) = log(alpha(t)^2 / sigma(t)^2),   decreasing in t               (2)

A variance-preserving (VP) schedule has alpha^2 + sigma^2 = 1, so lambda determines both factors:

    alpha = sqrt(sigmoid(lambda)),   sigma = sqrt(sigmoid(-lambda))                        (3)

``Cosine``: alpha and sigma are the cosine and the sine of an angle that is linear in t, with lambda
within finite bounds (Nichol & Dhariwal 2021; continuous as in Imagen).

``Discrete``: the T steps of DDPM and Stable Diffusion, alpha_i^2 = prod_{j <= i} (1 - beta_j). Step
i = 0..T-1 is at

    t = (i + 1) / T,   i = T t - 1                                                         (4)

so t = 0 is the clean image before the first step. On the grid alpha and sigma come from tables
(computed in float64); between two steps lambda is interpolated; before the first step the
noise-to-signal ratio falls linearly to 0. ``zero_terminal_snr`` shifts and scales alpha so that
alpha(1) = 0 (Lin et al. 2023, algorithm 1).

``Flow``: alpha = 1 - t, sigma = t, the straight path of flow matching. Not variance preserving.

``Shifted``: any of them for another resolution. The same noise hides s times less of an image with
s times the side, so the same difficulty needs s times the noise-to-signal ratio:

    lambda_shifted(t) = lambda(t) - 2 log s                                                (5)

(simple diffusion, Hoogeboom et al. 2023). For ``Flow`` (5) is t -> s t / (1 + (s - 1) t), the shift
of Stable Diffusion 3.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from emu_jax.errors import UserError


class Schedule(ABC):
    """The interface of a schedule. Times and results are fp32 arrays of any shape."""

    steps: int | None = None
    """T of a schedule with discrete steps."""

    zero_terminal: bool = False
    """Whether the signal is gone at t = 1: alpha(1) = 0."""

    @abstractmethod
    def log_snr(self, t: Float[Array, "*t"]) -> Float[Array, "*t"]:
        """lambda(t), equation (2); infinite where there is no noise or no signal."""

    @abstractmethod
    def at_log_snr(self, log_snr: Float[Array, "*t"]) -> Float[Array, "*t"]:
        """The time of a log-SNR: the inverse of ``log_snr``, clipped to [0, 1]."""

    def alpha(self, t: Float[Array, "*t"]) -> Float[Array, "*t"]:
        """The factor of the signal, equation (3) unless the schedule overrides it."""
        return jnp.sqrt(jax.nn.sigmoid(self.log_snr(t)))

    def sigma(self, t: Float[Array, "*t"]) -> Float[Array, "*t"]:
        """The factor of the noise, equation (3) unless the schedule overrides it."""
        return jnp.sqrt(jax.nn.sigmoid(-self.log_snr(t)))

    def training_time(self, u: Float[Array, "*t"], low: float, high: float) -> Float[Array, "*t"]:
        """The time at position u in [0, 1) of the training range [low, high]."""
        return low + (high - low) * u

    def network_time(self, t: Float[Array, "*t"]) -> Float[Array, "*t"]:
        """The time from which timestep inputs are made: t, unless the schedule is shifted."""
        return t

    def index(self, t: Float[Array, "*t"]) -> Float[Array, "*t"]:
        """The discrete step i at t, equation (4), as a float; fractional between two steps."""
        raise UserError(
            f"The schedule {type(self).__name__} has no integer steps; set process.time_input to "
            '"continuous" or "log_snr".'
        )


@dataclass(frozen=True)
class Cosine(Schedule):
    """alpha = cos, sigma = sin of an angle linear in t, between two bounds of the log-SNR."""

    log_snr_max: float = 20.0
    log_snr_min: float = -20.0

    def log_snr(self, t: Float[Array, "*t"]) -> Float[Array, "*t"]:
        low, high = self._angles()
        # The cosine is computed as the sine of the complement, which is more accurate in fp32.
        angle = low + (high - low) * t
        left = (np.pi / 2 - high) + (high - low) * (1 - t)
        return 2 * (jnp.log(jnp.sin(left)) - jnp.log(jnp.sin(angle)))

    def at_log_snr(self, log_snr: Float[Array, "*t"]) -> Float[Array, "*t"]:
        low, high = self._angles()
        angle = jnp.arctan(jnp.exp(-log_snr / 2))
        return jnp.clip((angle - low) / (high - low), 0, 1)

    def _angles(self) -> tuple[float, float]:
        return (
            float(np.arctan(np.exp(-self.log_snr_max / 2))),
            float(np.arctan(np.exp(-self.log_snr_min / 2))),
        )


@dataclass(frozen=True)
class Flow(Schedule):
    """alpha = 1 - t, sigma = t."""

    zero_terminal = True

    def log_snr(self, t: Float[Array, "*t"]) -> Float[Array, "*t"]:
        return 2 * (jnp.log1p(-t) - jnp.log(t))

    def at_log_snr(self, log_snr: Float[Array, "*t"]) -> Float[Array, "*t"]:
        return jax.nn.sigmoid(-log_snr / 2)

    def alpha(self, t: Float[Array, "*t"]) -> Float[Array, "*t"]:
        return 1 - t

    def sigma(self, t: Float[Array, "*t"]) -> Float[Array, "*t"]:
        return t


@dataclass(frozen=True)
class Discrete(Schedule):
    """T steps from betas; the defaults are Stable Diffusion's.

    curve: "scaled_linear" (square roots linear: Stable Diffusion), "linear" (DDPM, with beta from
    1e-4 to 0.02) or "cosine" (Nichol & Dhariwal's table, capped at 0.999, which does not use
    beta_start and beta_end: DeepFloyd IF).
    """

    curve: Literal["linear", "scaled_linear", "cosine"] = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    steps: int = 1000  # pyright: ignore[reportIncompatibleVariableOverride]
    zero_terminal_snr: bool = False

    def __post_init__(self):
        if self.curve not in ("linear", "scaled_linear", "cosine"):
            raise UserError(
                f"The beta curve is {self.curve!r}; use one of linear, scaled_linear, cosine."
            )

    @property
    def zero_terminal(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.zero_terminal_snr

    def betas(self) -> np.ndarray:
        """float64 [T], before any rescaling to zero terminal SNR."""
        if self.curve == "linear":
            return np.linspace(self.beta_start, self.beta_end, self.steps)
        if self.curve == "scaled_linear":
            return np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.steps) ** 2
        edges = np.cos((np.arange(self.steps + 1) / self.steps + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.minimum(1 - edges[1:] / edges[:-1], 0.999)

    def alphas(self) -> np.ndarray:
        """float64 [T]: alpha at every step (the square root of what papers call alpha-bar)."""
        alphas = np.sqrt(np.cumprod(1 - self.betas()))
        if self.zero_terminal_snr:
            alphas = (alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])
        return alphas

    def log_snr(self, t: Float[Array, "*t"]) -> Float[Array, "*t"]:
        return self._look_up(t, _tables(self).log_snr, lambda log_snr: log_snr)

    def at_log_snr(self, log_snr: Float[Array, "*t"]) -> Float[Array, "*t"]:
        table = _tables(self).finite_log_snr
        grid = np.arange(1, self.steps + 1, dtype=np.float32) / self.steps
        before = jnp.exp((table[0] - jnp.maximum(log_snr, table[0])) / 2) / self.steps
        return jnp.where(log_snr > table[0], before, jnp.interp(-log_snr, -table, grid))

    def alpha(self, t: Float[Array, "*t"]) -> Float[Array, "*t"]:
        return self._look_up(t, _tables(self).alpha, lambda x: jnp.sqrt(jax.nn.sigmoid(x)))

    def sigma(self, t: Float[Array, "*t"]) -> Float[Array, "*t"]:
        return self._look_up(t, _tables(self).sigma, lambda x: jnp.sqrt(jax.nn.sigmoid(-x)))

    def training_time(self, u: Float[Array, "*t"], low: float, high: float) -> Float[Array, "*t"]:
        """A point of the grid: the published models are trained on integer steps only."""
        first = max(round(low * self.steps), 1)
        last = max(round(high * self.steps), first)
        return jnp.minimum(jnp.floor(first + u * (last - first + 1)), last) / self.steps

    def index(self, t: Float[Array, "*t"]) -> Float[Array, "*t"]:
        # T t differs from the integer by a rounding error: below 1e-4 for a thousand steps.
        step = jnp.asarray(t, jnp.float32) * self.steps
        whole = jnp.round(step)
        return jnp.where(jnp.abs(step - whole) < 1e-3, whole, step) - 1

    def _look_up(
        self, t: Float[Array, "*t"], table: np.ndarray, from_log_snr: Callable
    ) -> Float[Array, "*t"]:
        """``table`` on the grid, ``from_log_snr`` of the interpolated log-SNR elsewhere."""
        log_snr = jnp.asarray(_tables(self).finite_log_snr)
        index = self.index(t)
        below = jnp.clip(jnp.floor(index), 0, self.steps - 1).astype(jnp.int32)
        above = jnp.minimum(below + 1, self.steps - 1)
        part = jnp.clip(index - below, 0, 1)
        inside = log_snr[below] * (1 - part) + log_snr[above] * part
        before = log_snr[0] - 2 * jnp.log(jnp.maximum(index + 1, 0))
        off_grid = from_log_snr(jnp.where(index < 0, before, inside))
        return jnp.where(index == below, jnp.asarray(table)[below], off_grid)


@dataclass(frozen=True)
class Shifted(Schedule):
    """``base`` with ``shift`` times the noise-to-signal ratio at every t, equation (5).

    ``network_time`` is the time at which ``base`` has this log-SNR, so a timestep input means the
    same at every resolution.
    """

    base: Schedule
    shift: float

    def __post_init__(self):
        if self.shift <= 0:
            raise UserError(f"process.shift is {self.shift}; use a value above 0.")
        if self.base.steps is not None and not self.base.zero_terminal:
            raise UserError(
                f"process.shift is {self.shift}, but a table that ends before pure noise cannot be "
                "shifted beyond its end; use zero terminal SNR (zero_terminal_snr=True) or another "
                "schedule."
            )

    @property
    def steps(self) -> int | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.base.steps

    @property
    def zero_terminal(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.base.zero_terminal

    def network_time(self, t: Float[Array, "*t"]) -> Float[Array, "*t"]:
        return self.base.at_log_snr(self.base.log_snr(t) - 2 * np.log(self.shift))

    def log_snr(self, t: Float[Array, "*t"]) -> Float[Array, "*t"]:
        return self.base.log_snr(self.network_time(t))

    def at_log_snr(self, log_snr: Float[Array, "*t"]) -> Float[Array, "*t"]:
        return self.base.at_log_snr(log_snr + 2 * np.log(self.shift))

    def alpha(self, t: Float[Array, "*t"]) -> Float[Array, "*t"]:
        return self.base.alpha(self.network_time(t))

    def sigma(self, t: Float[Array, "*t"]) -> Float[Array, "*t"]:
        return self.base.sigma(self.network_time(t))

    def training_time(self, u: Float[Array, "*t"], low: float, high: float) -> Float[Array, "*t"]:
        return self.base.training_time(u, low, high)

    def index(self, t: Float[Array, "*t"]) -> Float[Array, "*t"]:
        return self.base.index(self.network_time(t))


class _Tables(NamedTuple):
    alpha: np.ndarray
    sigma: np.ndarray
    log_snr: np.ndarray
    finite_log_snr: np.ndarray  # to interpolate up to a last step without signal


@cache
def _tables(schedule: Discrete) -> _Tables:
    """The values on the grid, fp32 [T] each, computed in float64."""
    alpha = schedule.alphas()
    variance = 1 - alpha**2
    with np.errstate(divide="ignore"):
        log_snr = np.log(alpha**2) - np.log(variance)
    tables = alpha, np.sqrt(variance), log_snr, np.maximum(log_snr, -40)
    return _Tables(*(table.astype(np.float32) for table in tables))
