"""The loop that every sampler shares, and the times that it visits.

``sample`` starts at x and visits ``times``, highest first, in one ``lax.scan``, so the network is
compiled once whatever the number of steps:

    from noise           x = process.prior(key, shape),            times = time_grid(process, n)
    from a picture       x = process.diffuse(key, x0, times[k]),   times = times[k:]
    part of a picture    known=x0, known_mask=mask: before every step the known part is replaced by
                         x0 as the process shows it at that step's time (noised; tokens as they
                         are), and at the end by x0 itself

``advance`` is the same loop for any run of steps, its state in and out. Feedback learning takes k
steps and one more with a gradient:

    state = advance(denoise, process, sampler, times, key, start(sampler, x), jnp.arange(k))
    state = advance(..., jax.lax.stop_gradient(state), jnp.array([k]))

Step i draws its noise from fold_in(key, i), so a run cut in two equals the whole run, bit for bit.
``key`` may be one key, or one for each row (``emu_jax.process.noise``).
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from emu_jax.errors import UserError
from emu_jax.process.gaussian import GaussianProcess
from emu_jax.process.guidance import Denoise
from emu_jax.process.noise import fold_in
from emu_jax.process.protocol import Data, Process, Transform, as_data
from emu_jax.process.samplers import Sampler

KARRAS_RHO = 7.0
KARRAS_RATIOS = (0.002, 80.0)


class State(NamedTuple):
    """A sample under way."""

    x: Data
    memory: Any


def start(sampler: Sampler, x: Data) -> State:
    """The state before the first step."""
    x = as_data(x)
    return State(x, sampler.init(x))


def sample(
    denoise: Denoise,
    process: Process,
    sampler: Sampler,
    times: Float[Array, " n_plus_1"],
    key: jax.Array,
    x: Data,
    *,
    known: Data | None = None,
    known_mask: Bool[Array, "b *m"] | None = None,
    transform: Transform | None = None,
) -> Data:
    """x0 (fp32, or tokens) from x at times[0], by way of ``times`` (the last is 0).

    ``denoise(x, t)`` gives the network's output for x and t [b], guidance included.
    ``known_mask`` is true where ``known`` is to be kept, and broadcasts to x. ``transform`` acts on
    every predicted x0 (``guidance.static_clip``, ``dynamic_threshold``).
    """
    state = advance(
        denoise,
        process,
        sampler,
        times,
        key,
        start(sampler, x),
        jnp.arange(len(times) - 1),
        known=known,
        known_mask=known_mask,
        transform=transform,
    )
    if known is None or known_mask is None:
        return state.x
    return jnp.where(known_mask, as_data(known), state.x)


def advance(
    denoise: Denoise,
    process: Process,
    sampler: Sampler,
    times: Float[Array, " n_plus_1"],
    key: jax.Array,
    state: State,
    steps: Int[Array, " k"],
    *,
    known: Data | None = None,
    known_mask: Bool[Array, "b *m"] | None = None,
    transform: Transform | None = None,
) -> State:
    """The state after ``steps``, consecutive numbers i of steps from times[i] to times[i + 1].

    Times and steps may be traced values, and the result can be differentiated. Arguments otherwise
    as in ``sample``.
    """
    if (known is None) != (known_mask is None):
        raise UserError("known and known_mask come together: give both, or neither")
    times = jnp.asarray(times, jnp.float32)

    def predict(x: Array, t: Array):
        t = jnp.broadcast_to(t, x.shape[:1])
        return process.predict(denoise(x, t), x, t, transform)

    def body(state: State, i: Array) -> tuple[State, None]:
        x, memory = state
        key_i = fold_in(key, i)
        if known is not None and known_mask is not None:
            shown = process.shown(fold_in(key_i, 1), as_data(known), times[i])
            x = jnp.where(known_mask, shown, x)
        key_step = fold_in(key_i, 0)
        x, memory = sampler.step(predict, process, x, memory, times[i], times[i + 1], key_step)
        return State(x, memory), None

    return jax.lax.scan(body, state, jnp.asarray(steps))[0]


def time_grid(
    process: Process,
    n: int,
    spacing: Literal["trailing", "uniform", "leading", "karras"] = "trailing",
) -> Float[Array, " n_plus_1"]:
    """n steps within the process's bounds: n + 1 falling times, the last of them 0.

    "trailing": equal steps from the upper bound to 0. Diffusers' "trailing" (which rounds to whole
        steps where T is no multiple of n); what few steps need (Lin et al. 2023).
    "uniform": equal steps from the upper bound to the lower, then 0. Diffusers' "linspace", with
        the bounds (1/T, 1).
    "leading": every (T // n)-th of a discrete schedule's steps, the first of them the last one
        visited, then 0. Diffusers' "leading", as DeepFloyd IF is drawn with: it starts below t = 1,
        on noise that still holds signal in training but none in sampling.
    "karras": the noise-to-signal ratio's 7th root falls evenly between the bounds, or between EDM's
        80 and 0.002 where the bounds reach further, but from the upper bound itself; then 0
        (Karras et al. 2022). Diffusers' ``use_karras_sigmas`` with "linspace".
    """
    if n < 1:
        raise UserError(f"sampling takes at least one step, not {n}")
    low, high = process.bounds
    match spacing:
        case "trailing":
            return jnp.asarray(np.linspace(high, 0, n + 1), jnp.float32)
        case "uniform":
            return jnp.asarray([*np.linspace(high, low, n), 0], jnp.float32)
        case "leading":
            total = process.schedule.steps if isinstance(process, GaussianProcess) else None
            if total is None or n > total:
                raise UserError(
                    f'spacing="leading" takes {n} of the whole steps of a discrete schedule, which '
                    f"has {total or 'none'} here: choose trailing"
                )
            index = np.arange(n)[::-1] * (total // n)
            return jnp.asarray([*((index + 1) / total), 0], jnp.float32)
        case "karras":
            if not isinstance(process, GaussianProcess):
                raise UserError('spacing="karras" is of noise: choose trailing for tokens')
            schedule = process.schedule
            log_snr = schedule.log_snr(jnp.array([high, low], jnp.float32))
            ends = jnp.clip(jnp.exp(-log_snr / 2), *KARRAS_RATIOS) ** (1 / KARRAS_RHO)
            ratios = jnp.linspace(ends[0], ends[1], n) ** KARRAS_RHO
            # A start at 80 would take the prior for what it is only at the upper bound.
            times = schedule.at_log_snr(-2 * jnp.log(ratios)).at[0].set(high)
            return jnp.append(times, 0)
    raise UserError(
        f'spacing="{spacing}" is not known: choose trailing, uniform, leading or karras'
    )
