"""The loop that all samplers share, and its time grids.

``sample`` starts at x and visits ``times``, in decreasing order, in one ``lax.scan``, so the
network is compiled once for any number of steps:

    from noise          x = process.prior(key, shape),  times = time_grid(process, n)
    from an image       x = process.sample_forward(key, x0, times[k]),  times = times[k:]
    part of an image    known=x0, known_mask=mask: before every step the known part is replaced by
                        x0 as the process gives it at the time of that step (with noise; tokens
                        unmasked), and at the end by x0 itself. A mask of shares between 0 and 1
                        has soft edges: ``Process.held_at`` says until when a share is held

``advance`` is the same loop for any consecutive steps, and takes and returns its state.
``advance_to`` takes a number of steps that is known when the program runs, without gradient.

The noise of step i comes from fold_in(key, i), so two halves of a run equal the whole run, bit for
bit. ``key`` may be one key, or one per row (``emu_jax.process.noise``).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from emu_jax.errors import UserError
from emu_jax.process.gaussian import GaussianProcess
from emu_jax.process.guidance import Denoise
from emu_jax.process.noise import Keys, fold_in
from emu_jax.process.protocol import Data, Process, Sampler, Transform, as_data
from emu_jax.process.registry import SPACINGS, Spacing

KARRAS_RHO = 7.0
KARRAS_RATIOS = (0.002, 80.0)


Mask = Bool[Array, "..."] | Float[Array, "..."]
"""What of the known data stays: all or nothing, or a share."""


class State(NamedTuple):
    """An unfinished sample."""

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
    key: Keys,
    x: Data,
    *,
    known: Data | None = None,
    known_mask: Mask | None = None,
    transform: Transform | None = None,
) -> Data:
    """x0 (fp32, or tokens) from x at times[0], through ``times`` (the last is 0).

    ``denoise(x, t)`` returns the network's output for x and t [b], guidance included.
    ``known_mask`` is true, or 1, where ``known`` is kept, and broadcasts to x. ``transform`` is
    applied to every predicted x0 (``guidance.static_clip``, ``dynamic_threshold``).
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
    return jnp.where(known_mask >= 1, as_data(known), state.x)


def advance(
    denoise: Denoise,
    process: Process,
    sampler: Sampler,
    times: Float[Array, " n_plus_1"],
    key: Keys,
    state: State,
    steps: Int[Array, " k"],
    *,
    known: Data | None = None,
    known_mask: Mask | None = None,
    transform: Transform | None = None,
) -> State:
    """The state after ``steps``: consecutive numbers i, each a step from times[i] to times[i + 1].

    Times and steps may be traced values, and the result can be differentiated. The other arguments
    are as in ``sample``.
    """
    if (known is None) != (known_mask is None):
        raise ValueError("known and known_mask are given together or not at all")
    step = _step(denoise, process, sampler, times, key, known, known_mask, transform)
    return jax.lax.scan(lambda state, i: (step(state, i), None), state, jnp.asarray(steps))[0]


def advance_to(
    denoise: Denoise,
    process: Process,
    sampler: Sampler,
    times: Float[Array, " n_plus_1"],
    key: Keys,
    state: State,
    first: int | Int[Array, ""],
    last: int | Int[Array, ""],
    *,
    known: Data | None = None,
    known_mask: Mask | None = None,
    transform: Transform | None = None,
) -> State:
    """The state after steps ``first`` to ``last`` - 1, of which there may be none.

    Their number may be traced: one program for any, and no call of the network that is not needed.
    So the result cannot be differentiated, and ``denoise`` must not depend on what is
    (``jax.lax.stop_gradient``).
    """
    step = _step(denoise, process, sampler, times, key, known, known_mask, transform)
    state = jax.lax.stop_gradient(state)
    return jax.lax.fori_loop(first, last, lambda i, state: step(state, i), state)


def _step(
    denoise: Denoise,
    process: Process,
    sampler: Sampler,
    times: Float[Array, " n_plus_1"],
    key: Keys,
    known: Data | None,
    known_mask: Mask | None,
    transform: Transform | None,
) -> Callable[[State, Int[Array, ""]], State]:
    """One step of the loop, from times[i] to times[i + 1]."""
    times = jnp.asarray(times, jnp.float32)

    def predict(x: Array, t: Array):
        t = jnp.broadcast_to(t, x.shape[:1])
        return process.predict(denoise(x, t), x, t, transform)

    def step(state: State, i: Array) -> State:
        x, memory = state
        key_i = fold_in(key, i)
        if known is not None and known_mask is not None:
            known_x = process.known_at(fold_in(key_i, 1), as_data(known), times[i])
            x = jnp.where(_held(process, known_mask, times[i]), known_x, x)
        key_step = fold_in(key_i, 0)
        x, memory = sampler.step(predict, process, x, memory, times[i], times[i + 1], key_step)
        return State(x, memory)

    return step


def _held(process: Process, mask: Mask, t: Float[Array, ""]) -> Bool[Array, "..."]:
    return mask if mask.dtype == bool else process.held_at(mask, t)


def time_grid(process: Process, n: int, spacing: Spacing = "trailing") -> Float[Array, " n_plus_1"]:
    """n steps within the bounds of the process: n + 1 decreasing times, the last of them 0.

    "trailing": equal steps from the upper bound to 0. "trailing" in diffusers (which rounds to
        integer steps if n does not divide T); what few steps need (Lin et al. 2023).
    "uniform": equal steps from the upper bound to the lower, then 0. "linspace" in diffusers, with
        the bounds (1/T, 1).
    "leading": every (T // n)-th step of a discrete schedule, the last of them its first step, then
        0. "leading" in diffusers, as DeepFloyd IF is sampled: it starts below t = 1, where x has
        some signal in training but none in sampling.
    "karras": the 7th root of the noise-to-signal ratio falls in equal steps between the bounds, or
        between EDM's 80 and 0.002 where the bounds reach further, but starts at the upper bound
        itself; then 0 (Karras et al. 2022). ``use_karras_sigmas`` with "linspace" in diffusers.

    Raises:
      UserError: n < 1, or a spacing that is unknown or not defined for this process and this n.
    """
    if n < 1:
        raise UserError(f"sampling.steps is {n}; use 1 or more.")
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
                    f"sampling.spacing='leading' with {n} steps needs a discrete schedule of at "
                    f"least {n} steps, and this one has {total or 'none'}; use 'trailing'."
                )
            index = np.arange(n)[::-1] * (total // n)
            return jnp.asarray([*((index + 1) / total), 0], jnp.float32)
        case "karras":
            if not isinstance(process, GaussianProcess):
                raise UserError(
                    "sampling.spacing='karras' needs a Gaussian process; use 'trailing' for tokens."
                )
            schedule = process.schedule
            log_snr = schedule.log_snr(jnp.array([high, low], jnp.float32))
            ends = jnp.clip(jnp.exp(-log_snr / 2), *KARRAS_RATIOS) ** (1 / KARRAS_RHO)
            ratios = jnp.linspace(ends[0], ends[1], n) ** KARRAS_RHO
            # The prior is the distribution of x at the upper bound, not at a ratio of 80.
            times = schedule.at_log_snr(-2 * jnp.log(ratios)).at[0].set(high)
            return jnp.append(times, 0)
    raise UserError(f"sampling.spacing is {spacing!r}; use one of {', '.join(SPACINGS)}.")
