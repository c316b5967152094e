"""Samplers of the Gaussian process: one step from time t to an earlier time s.

A sampler is a pure pair. ``init(x)`` makes its memory; ``step(predict, process, x, memory, t, s,
key)`` returns x at s and the new memory, where ``predict(x, t)`` evaluates the network and returns
a ``Prediction``. The sampler of tokens is in ``emu_jax.process.decoding``; the loop around all of
them is in ``emu_jax.process.sampling``.

Without new noise, x follows the probability-flow ODE. Divide x = alpha x0 + sigma eps by alpha or
by sigma: with the noise-to-signal ratio r = sigma/alpha and w = 1/r, two forms of the same ODE are

    d(x/alpha) = eps dr      and      d(x/sigma) = x0 dw                                   (1)

Euler's step on either form, from t to s, is

    x_s = alpha_s x0 + sigma_s eps                                                         (2)

which is also the step of DDIM, and for a flow it is x_t + (s - t) u. So ``Euler`` is
``DDIM(eta=0)``.

Ancestral sampling samples the posterior q(x_s | x_t, x0) of the forward process instead. With
(alpha_t/alpha_s)^2 sigma_s^2 the part of sigma_t^2 that is already present at s,

    std^2 = (sigma_s/sigma_t)^2 (sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2)                (3)
    x_s = alpha_s x0 + sqrt(sigma_s^2 - eta^2 std^2) eps + eta std z                       (4)

eta = 1 is the posterior of DDPM and also Euler-ancestral (whose sigma_up and sigma_down are std and
sqrt(sigma_s^2 - std^2), divided by alpha_s). So ``Ancestral`` is ``DDIM(eta=1)``.

(3) is the least possible variance between t and s, for a known x0; the most, for an unknown x0, is
its second factor. A network that predicts a variance v, -1 to 1, interpolates between the logs of
the two (Nichol & Dhariwal 2021, equation 15). In (4) z is then multiplied not by std but by std_v,

    std_v^2 = (sigma_s/sigma_t)^(1 - v) (sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2)        (5)

``Heun`` (2nd order, two evaluations) steps by (2) to s, evaluates again there, and uses the mean
slope. The term that this adds to (2) is, for the two forms of (1),

    (alpha_s r_t - sigma_s) (eps_t - eps_s) / 2     or
    (alpha_s - w_t sigma_s) (x0_s - x0_t) / 2                                              (6)

The first is that of EDM and of the k-diffusion family. It grows without bound with r_t, so one step
from (nearly) pure noise, as the cosine, zero-terminal and flow schedules begin, would ruin the
sample. There, r_t > 100, the second is used, which is bounded.

``DPMSolverPP2M`` (2nd order, one evaluation; Lu et al. 2022) solves the second form exactly for an
x0 that is linear in l = log w, with the slope from the previous step. With h = l_s - l_t and h' the
h of the previous step,

    x_s = sigma_s/sigma_t x_t + alpha_s (1 - exp(-h)) (x0_t + h/(2h') (x0_t - x0_previous))
                                                                                           (7)

with x0_t alone in the first step, and wherever h or h' is infinite.

At s = 0 every sampler uses alpha = 1 and sigma = 0, and so returns x0.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from emu_jax.process.gaussian import GaussianProcess, Prediction
from emu_jax.process.noise import Keys, normal
from emu_jax.process.protocol import Sampler

MOSTLY_NOISE = 100.0

Predict = Callable[[Float[Array, "b *d"], Float[Array, ""]], Prediction]


@dataclass(frozen=True)
class DDIM(Sampler):
    """Equation (4) (Song et al. 2020). eta = 0 is deterministic; eta = 1 is the posterior of DDPM,
    with the noise of (5) if the network predicts a variance.
    """

    eta: float = 0.0

    def init(self, x: Float[Array, "b *d"]) -> tuple[()]:
        return ()

    def step(
        self,
        predict: Predict,
        process: GaussianProcess,
        x: Float[Array, "b *d"],
        memory: tuple[()],
        t: Float[Array, ""],
        s: Float[Array, ""],
        key: Keys,
    ) -> tuple[Float[Array, "b *d"], tuple[()]]:
        x0, eps, variance = predict(x, t)
        alpha, sigma = _factors(process, s)
        if not self.eta:
            return alpha * x0 + sigma * eps, memory
        alpha_t, sigma_t = _factors(process, t)
        left = alpha_t / alpha * sigma
        new = jnp.maximum(sigma_t**2 - left**2, 0)
        std = self.eta * sigma / sigma_t * jnp.sqrt(new)
        # sigma_s^2 - eta^2 std^2, with its terms in an order that avoids cancellation.
        kept = sigma * jnp.sqrt(1 - self.eta**2 + (self.eta * left / sigma_t) ** 2)
        if variance is not None and self.eta == 1:
            # No noise at s = 0, whatever the value of the power.
            ratio = jnp.where(sigma > 0, sigma / sigma_t, 1)
            std = jnp.where(sigma > 0, ratio ** ((1 - variance) / 2) * jnp.sqrt(new), 0)
        return alpha * x0 + kept * eps + std * normal(key, x.shape), memory


def Euler() -> DDIM:
    """Euler's method on the probability-flow ODE, equation (2): DDIM without noise."""
    return DDIM(eta=0.0)


def Ancestral() -> DDIM:
    """The posterior of DDPM, equal to Euler-ancestral, equation (4): DDIM with all of the noise."""
    return DDIM(eta=1.0)


@dataclass(frozen=True)
class Heun(Sampler):
    """Equation (6) added to (2) (Karras et al. 2022, without churn). The last step is Euler's."""

    def calls(self, steps: int) -> int:
        """Two evaluations in every step but the last."""
        return 2 * steps - 1

    def init(self, x: Float[Array, "b *d"]) -> tuple[()]:
        return ()

    def step(
        self,
        predict: Predict,
        process: GaussianProcess,
        x: Float[Array, "b *d"],
        memory: tuple[()],
        t: Float[Array, ""],
        s: Float[Array, ""],
        key: Keys,
    ) -> tuple[Float[Array, "b *d"], tuple[()]]:
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

        # A cond and not a select: at s = 0 the network must not be evaluated at all.
        return jax.lax.cond(s > 0, correct, lambda: euler), memory


@dataclass(frozen=True)
class DPMSolverPP2M(Sampler):
    """DPM-Solver++(2M), equation (7). The memory is the last x0 and its l."""

    def init(self, x: Float[Array, "b *d"]) -> tuple[Float[Array, "b *d"], Float[Array, ""]]:
        return jnp.zeros_like(x), jnp.array(jnp.inf, jnp.float32)

    def step(
        self,
        predict: Predict,
        process: GaussianProcess,
        x: Float[Array, "b *d"],
        memory: tuple[Float[Array, "b *d"], Float[Array, ""]],
        t: Float[Array, ""],
        s: Float[Array, ""],
        key: Keys,
    ) -> tuple[Float[Array, "b *d"], tuple[Float[Array, "b *d"], Float[Array, ""]]]:
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


def _factors(
    process: GaussianProcess, t: Float[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """alpha and sigma at t; at 0 exactly 1 and 0, also if the schedule leaves some noise there."""
    alpha, sigma = process.schedule.alpha(t), process.schedule.sigma(t)
    return jnp.where(t > 0, alpha, 1.0), jnp.where(t > 0, sigma, 0.0)
