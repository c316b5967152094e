"""Feedback: the clean data that a generator predicts in the midst of sampling, with a gradient.

From noise, or from noised data, k steps are sampled without gradient. One more call of the network
predicts the clean data, and a loss on them has a gradient through this call alone:

    x_(j+1) = step(x_j),  j = first, ..., k - 1              without gradient              (1)
    x0' = the prediction of x0 from the output at x_k        with gradient                 (2)

This is the step of ReFL (Xu et al. 2023, algorithm 1) and of both losses of UniFL (Zhang et al.
2024, arXiv 2404.05595, algorithm 1 and equation 5). There k is drawn anew for every batch: it may
be traced here, and the network is not called more often than k + 1 times.

Its relatives send the gradient through more calls. In DRaFT-K (Clark et al. 2024, arXiv 2309.17400)
and AlignProp (Prabhudesai et al. 2023, arXiv 2310.03739) these are the last K of sampling; K is
fixed in the one and drawn anew for every batch in the other. DRaFT-LV samples to the end without
gradient, adds noise to the result several times, and predicts each of these.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from emu_jax.process.gaussian import GaussianProcess, Prediction
from emu_jax.process.guidance import Denoise
from emu_jax.process.noise import Keys
from emu_jax.process.protocol import Sampler, Transform
from emu_jax.process.sampling import State, advance, advance_to, start


def sample_to(
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
    through: tuple[int, int | Int[Array, ""]] = (1, 1),
    transform: Transform | None = None,
) -> Float[Array, "b *d"]:
    """x at times[last], after the steps from ``first`` to ``last`` - 1 of (1) from x at
    times[first].

    ``make_denoise(params)`` is the guided network. With ``last`` = ``first`` no step is sampled.
    ``key`` gives the noise of samplers that add some: that of step i comes from fold_in(key, i).
    ``transform`` is applied to every predicted x0. ``through`` = (most, n): with the call of (2)
    that follows, the gradient passes the last n calls, n <= most; n may be traced. So with n = 1
    the result has no gradient. ``last`` - ``first`` is ``most`` - 1 or more. The activations of
    these calls are computed again in the backward pass.
    """
    most, n = through
    still = make_denoise(jax.lax.stop_gradient(params))
    state, begin = start(sampler, jax.lax.stop_gradient(x)), last - (most - 1)
    rest = (process, sampler, times, key)
    state = advance_to(still, *rest, state, first, begin, transform=transform)
    state = jax.lax.stop_gradient(state)
    if most == 1:
        return state.x
    denoise = make_denoise(params)

    @jax.checkpoint
    def step(state: State, i: Int[Array, ""]) -> tuple[State, None]:
        after = advance(denoise, *rest, state, i[None], transform=transform)
        passes = i > last - n
        return jax.tree.map(lambda x: jnp.where(passes, x, jax.lax.stop_gradient(x)), after), None

    return jax.lax.scan(step, state, begin + jnp.arange(most - 1))[0].x


def predict_at(
    denoise: Denoise,
    process: GaussianProcess,
    times: Float[Array, " n_plus_1"],
    x: Float[Array, "b *d"],
    last: int | Int[Array, ""],
    *,
    transform: Transform | None = None,
) -> Prediction:
    """(2) of x at times[last]."""
    t = jnp.broadcast_to(jnp.asarray(times, jnp.float32)[last], x.shape[:1])
    return process.predict(denoise(x, t), x, t, transform)


def step_at_log_snr(
    process: GaussianProcess, times: Float[Array, " n_plus_1"], log_snr: float
) -> Int[Array, ""]:
    """The step of a grid whose log-SNR is nearest: the same noise level under another schedule.

    UniFL noises images to t = 0.5 of Stable Diffusion's schedule, a log-SNR of -0.96. On the cosine
    schedule that is t = 0.65.
    """
    apart = jnp.abs(process.schedule.log_snr(jnp.asarray(times[:-1])) - log_snr)
    return jnp.argmin(apart)
