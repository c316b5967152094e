"""Feedback: the clean data that a generator predicts in the midst of sampling, with a gradient.

From noise, or from noised data, k steps are sampled without gradient. One more call of the network
predicts the clean data, and a loss on them has a gradient through this call alone:

    x_(j+1) = step(x_j),  j = first, ..., k - 1              without gradient              (1)
    x0' = the prediction of x0 from the output at x_k        with gradient                 (2)

This is the step of ReFL (Xu et al. 2023, algorithm 1) and of both losses of UniFL (Zhang et al.
2024, arXiv 2404.05595, algorithm 1 and equation 5). There k is drawn anew for every batch: it may
be traced here, and the network is not called more often than k + 1 times.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from emu_jax.process.gaussian import GaussianProcess, Prediction
from emu_jax.process.guidance import Denoise
from emu_jax.process.noise import Keys
from emu_jax.process.protocol import Sampler, Transform
from emu_jax.process.sampling import advance_to, start


def predict_after(
    make_denoise: Callable[[PyTree[Array]], Denoise],
    params: PyTree[Array],
    process: GaussianProcess,
    sampler: Sampler,
    times: Float[Array, " n_plus_1"],
    key: Keys,
    x: Float[Array, "b *d"],
    first: int | Int[Array, ""],
    last: int | Int[Array, ""],
    *,
    transform: Transform | None = None,
) -> Prediction:
    """(2) at times[last], after the steps from ``first`` to ``last`` - 1 of (1) from x at
    times[first]; differentiable in ``params`` by the last call, and in nothing else.

    ``make_denoise(params)`` is the guided network. With ``last`` = ``first`` no step is sampled.
    ``key`` gives the noise of samplers that add some: that of step i comes from fold_in(key, i).
    ``transform`` is applied to every predicted x0.
    """
    still = make_denoise(jax.lax.stop_gradient(params))
    state = start(sampler, jax.lax.stop_gradient(x))
    state = advance_to(still, process, sampler, times, key, state, first, last, transform=transform)
    x = jax.lax.stop_gradient(state.x)
    t = jnp.broadcast_to(jnp.asarray(times, jnp.float32)[last], x.shape[:1])
    return process.predict(make_denoise(params)(x, t), x, t, transform)


def step_at_log_snr(
    process: GaussianProcess, times: Float[Array, " n_plus_1"], log_snr: float
) -> Int[Array, ""]:
    """The step of a grid whose log-SNR is nearest: the same noise level under another schedule.

    UniFL noises images to t = 0.5 of Stable Diffusion's schedule, a log-SNR of -0.96. On the cosine
    schedule that is t = 0.65.
    """
    apart = jnp.abs(process.schedule.log_snr(jnp.asarray(times[:-1])) - log_snr)
    return jnp.argmin(apart)
