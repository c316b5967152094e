"""Samplers: one step of a process, here the Gaussian, from time t to an earlier time s.

A sampler is a pure pair. ``init(x)`` makes its memory; ``step(predict, process, x, memory, t, s,
key)`` gives x at s and the new memory, where ``predict(x, t)`` runs the network and returns
(x0, eps). Tokens have theirs in ``emu_jax.process.decoding``; the loop around all of them is
``emu_jax.process.sampling``.

Without new noise, x follows the probability-flow ODE. Divide x = alpha x0 + sigma eps by alpha or
by sigma, and with the noise-to-signal ratio r = sigma/alpha and w = 1/r the ODE is

    d(x/alpha) = eps dr      and, the same,      d(x/sigma) = x0 dw                        (1)

Euler's step on either form, from t to s, is

    x_s = alpha_s x0 + sigma_s eps                                                         (2)

which is also DDIM's, and for a flow it is x_t + (s - t) u. So ``Euler`` is ``DDIM(eta=0)``.

Ancestral sampling draws from the posterior q(x_s | x_t, x0) of the forward process instead. With
(alpha_t/alpha_s)^2 sigma_s^2 the part of sigma_t^2 that was there at s,

    std^2 = (sigma_s/sigma_t)^2 (sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2)                (3)
    x_s = alpha_s x0 + sqrt(sigma_s^2 - eta^2 std^2) eps + eta std z                       (4)

eta = 1 is DDPM's posterior and also Euler-ancestral (whose sigma_up and sigma_down are std and
sqrt(sigma_s^2 - std^2), over alpha_s). So ``Ancestral`` is ``DDIM(eta=1)``.

(3) is the least that the noise between t and s can be, were x0 known; the most, were nothing known
of x0, is its second factor. A network that says a variance v, -1 to 1, chooses between the logs of
the two (Nichol & Dhariwal 2021, equation 15). In (4) z is then multiplied not by (3) but by

    std_v^2 = (sigma_s/sigma_t)^(1 - v) (sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2)        (5)

``Heun`` (2nd order, two evaluations) steps by (2) to s, asks again there, and uses the mean slope.
What that adds to (2) is, for the two forms of (1),

    (alpha_s r_t - sigma_s) (eps_t - eps_s) / 2     or
    (alpha_s - w_t sigma_s) (x0_s - x0_t) / 2                                              (6)

The first is EDM's and the k-diffusion family's; but it grows without bound with r_t, and in one
step from (nearly) pure noise, as the cosine, zero-terminal and flow schedules begin, it would ruin
the sample. There, r_t > 100, the second is used, which is bounded.

``DPMSolverPP2M`` (2nd order, one evaluation; Lu et al. 2022) solves the second form exactly for an
x0 that is linear in l = log w, taking the slope from the previous step. With h = l_s - l_t and h'
the previous step's,

    x_s = sigma_s/sigma_t x_t + alpha_s (1 - exp(-h)) (x0_t + h/(2h') (x0_t - x0_previous))
                                                                                           (7)

with x0_t alone in the first step, and wherever h or h' is infinite.

At s = 0 every sampler takes alpha = 1 and sigma = 0, and so returns x0.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from emu_jax.errors import UserError
from emu_jax.process.gaussian import GaussianProcess
from emu_jax.process.noise import normal
from emu_jax.process.protocol import Data

MOSTLY_NOISE = 100.0


class Sampler(Protocol):
    """Of one kind of process, whose ``predict`` it knows to read."""

    def init(self, x: Data) -> Any:
        """The memory before the first step."""
        ...

    def step(
        self,
        predict: Callable[[Data, Float[Array, ""]], Any],
        process: Any,
        x: Data,
        memory: Any,
        t: Float[Array, ""],
        s: Float[Array, ""],
        key: jax.Array,
    ) -> tuple[Data, Any]:
        """x at s from x at t, s < t, and the new memory."""
        ...


@dataclass(frozen=True)
class DDIM:
    """Equation (4) (Song et al. 2020); eta = 0 is deterministic, eta = 1 is DDPM's posterior, whose
    noise is that of (5) where the network says a variance.
    """

    eta: float = 0.0

    def init(self, x: Float[Array, "b *d"]) -> tuple[()]:
        return ()

    def step(self, predict, process, x, memory, t, s, key):
        x0, eps, variance = predict(x, t)
        alpha, sigma = _factors(process, s)
        if not self.eta:
            return alpha * x0 + sigma * eps, memory
        alpha_t, sigma_t = _factors(process, t)
        left = alpha_t / alpha * sigma
        new = jnp.maximum(sigma_t**2 - left**2, 0)
        std = self.eta * sigma / sigma_t * jnp.sqrt(new)
        # sigma_s^2 - eta^2 std^2, its terms put so that none is lost beside the others.
        kept = sigma * jnp.sqrt(1 - self.eta**2 + (self.eta * left / sigma_t) ** 2)
        if variance is not None and self.eta == 1:
            # At s = 0 none, whatever the power makes of it.
            ratio = jnp.where(sigma > 0, sigma / sigma_t, 1)
            std = jnp.where(sigma > 0, ratio ** ((1 - variance) / 2) * jnp.sqrt(new), 0)
        return alpha * x0 + kept * eps + std * normal(key, x.shape), memory


def Euler() -> DDIM:
    """Euler's method on the probability-flow ODE, equation (2): DDIM without noise."""
    return DDIM(eta=0.0)


def Ancestral() -> DDIM:
    """DDPM's posterior, the same as Euler-ancestral, equation (4): DDIM with all of the noise."""
    return DDIM(eta=1.0)


@dataclass(frozen=True)
class Heun:
    """Equation (6) on top of (2) (Karras et al. 2022, without churn). The last step is Euler's."""

    def init(self, x: Float[Array, "b *d"]) -> tuple[()]:
        return ()

    def step(self, predict, process, x, memory, t, s, key):
        here = predict(x, t)
        alpha, sigma = _factors(process, s)
        alpha_t, sigma_t = _factors(process, t)
        euler = alpha * here.x0 + sigma * here.eps

        def correct() -> Array:
            there = predict(euler, s)
            noisy = sigma_t > MOSTLY_NOISE * alpha_t
            # The factors are selected, not the terms: an unused infinite one would spoil gradients.
            by_eps = jnp.where(noisy, 0, alpha * sigma_t / alpha_t - sigma)
            by_x0 = jnp.where(noisy, alpha - alpha_t / sigma_t * sigma, 0)
            change = by_eps * (here.eps - there.eps) + by_x0 * (there.x0 - here.x0)
            return euler + change / 2

        # A condition and not a select: at s = 0 the network must not run at all.
        return jax.lax.cond(s > 0, correct, lambda: euler), memory


@dataclass(frozen=True)
class DPMSolverPP2M:
    """DPM-Solver++(2M), equation (7). The memory is the last x0 and the log ratio w it was at."""

    def init(self, x: Float[Array, "b *d"]) -> tuple[Array, Array]:
        return jnp.zeros_like(x), jnp.array(jnp.inf, jnp.float32)

    def step(self, predict, process, x, memory, t, s, key):
        previous, log_previous = memory
        x0 = predict(x, t).x0
        alpha, sigma = _factors(process, s)
        alpha_t, sigma_t = _factors(process, t)
        log_t = jnp.log(alpha_t / sigma_t)
        h = jnp.log(alpha / sigma) - log_t
        h_previous = log_t - log_previous
        second_order = jnp.isfinite(h) & jnp.isfinite(h_previous)
        slope = jnp.where(second_order, h / (2 * h_previous), 0.0)
        ahead = x0 + slope * (x0 - previous)
        return sigma / sigma_t * x - alpha * jnp.expm1(-h) * ahead, (x0, log_t)


SAMPLERS: dict[str, Callable[[], Sampler]] = {
    "ddim": DDIM,
    "ancestral": Ancestral,
    "euler": Euler,
    "heun": Heun,
    "dpmpp_2m": DPMSolverPP2M,
}


def sampler_named(name: str) -> Sampler:
    """A sampler with its usual settings, for configs and the command line."""
    if name not in SAMPLERS:
        raise UserError(f'there is no sampler "{name}": choose {", ".join(SAMPLERS)}')
    return SAMPLERS[name]()


def _factors(process: GaussianProcess, t: Float[Array, ""]) -> tuple[Array, Array]:
    """alpha and sigma at t; at 0 exactly 1 and 0, also where a schedule keeps a trace of noise."""
    alpha, sigma = process.schedule.alpha(t), process.schedule.sigma(t)
    return jnp.where(t > 0, alpha, 1.0), jnp.where(t > 0, sigma, 0.0)
