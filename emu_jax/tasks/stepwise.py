"""Sampling in pieces, with an image after each: what the unfinished sample is going to be.

    unfinished       = begin(task, params, frozen, encoded, sizes, keys, shape)
    state, x0, image = proceed(task, params, frozen, unfinished, keys, first=0, last=5)
    unfinished       = unfinished._replace(state=state)

The pieces take the same steps as :meth:`Generation.generate`, in programs of their own. ``first``
and ``last`` may be traced: one program serves all pieces.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, UInt8

from emu_jax.nn.conditioner import Encoded
from emu_jax.nn.functional import Params
from emu_jax.process import sampling as loop
from emu_jax.process.protocol import Data
from emu_jax.tasks.base import to_pixels
from emu_jax.tasks.generation import Generation
from emu_jax.tasks.image_conditions import Images
from emu_jax.tasks.sampling import Conditions, Start


class Unfinished(NamedTuple):
    """Both conditions of guidance, the state of the loop, and what of its data is kept."""

    conditions: Conditions
    null: Conditions | None
    state: loop.State
    known: dict[str, Array]


def begin(
    task: Generation,
    params: Params,
    frozen: Mapping[str, Params],
    encoded: Mapping[str, Encoded],
    sizes: Int[Array, "b 6"],
    keys: Any,
    shape: tuple[int, int],
    *,
    negative: Mapping[str, Encoded] | None = None,
    low: Data | None = None,
    start: Start | None = None,
    images: Images | None = None,
) -> Unfinished:
    """The sample before its first step; the arguments are those of :meth:`Generation.generate`."""
    given: dict[str, Any] = dict(negative=negative, low=low, images=images)
    both = task.both_conditions(params, frozen, encoded, sizes, keys, **given)
    x, _, known = task.origin(keys, shape, task.sampling, start)
    return Unfinished(*both, loop.start(task.sampling.sampler, x), known)


def proceed(
    task: Generation,
    params: Params,
    frozen: Mapping[str, Params],
    unfinished: Unfinished,
    keys: Any,
    first: int | Int[Array, ""],
    last: int | Int[Array, ""],
    skip: int = 0,
) -> tuple[loop.State, Data, UInt8[Array, "b H W 3"]]:
    """The state after the steps ``first`` to ``last`` - 1, the clean data that the sample is going
    to be, and these as an image. Before the end one more call of the denoiser predicts them.

    ``skip`` is that of the ``start``: the steps of the whole grid that are left out.
    """
    conditions, null, state, known = unfinished
    process, transform = task.process, task.sampling.transform
    denoise = task.guided(params, conditions, null)
    times = task.times()[skip:]
    given = (denoise, process, task.sampling.sampler, times, keys, state, first, last)
    state = loop.advance_to(*given, transform=transform, **known)

    def predicted() -> Data:
        t = jnp.broadcast_to(times[last], state.x.shape[:1])
        prediction = process.predict(denoise(state.x, t), state.x, t, transform)
        return process.clean_data(prediction, state.x)

    x0 = jax.lax.cond(last < len(times) - 1, predicted, lambda: state.x)
    if known:
        x0 = jnp.where(known["known_mask"] >= 1, known["known"], x0)
    image = to_pixels(task.decode(frozen, x0))
    return state, x0, image
