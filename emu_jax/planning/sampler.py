"""The sampler of a generator as one program, to plan or to time: text encoders, the loop of steps
with guidance, and the decoder.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from emu_jax.nn.conditioner import Encoded
from emu_jax.nn.functional import Params
from emu_jax.parallel.mesh import images_at_once
from emu_jax.parallel.sharding import abstract_batch
from emu_jax.tasks.adapting import BASE
from emu_jax.tasks.base import Task, to_pixels

# Named scopes that identify these parts of the sampler in a profile.
TEXT, STEPS, DECODER = "text_encoders", "steps", "decoder"


class Sampler(NamedTuple):
    """``draw(params, frozen, rows)`` gives uint8 images. ``frozen`` are the names of the frozen
    networks that it reads; ``rows`` is its batch, abstract and sharded.
    """

    draw: Callable[[Params, Mapping[str, Params], Mapping[str, Any]], jax.Array]
    frozen: tuple[str, ...]
    rows: Mapping[str, Any]
    images: int


def make_sampler(
    adapted: Task, mesh: Mesh, side: int, images: int, from_states: bool = True
) -> Sampler:
    """The sampler of ``images`` images of ``side`` pixels, or of as many as the devices draw at
    once (:func:`emu_jax.parallel.mesh.images_at_once`); ``adapted`` has a generator.
    ``from_states``: the batch holds the outputs of the text encoders; otherwise tokens. A
    super-resolution stage is conditioned on blank images.
    """
    task = adapted.generator
    assert task is not None, "only a text-to-image task has a sampler"
    images = images_at_once(images, mesh)
    shape = side // task.codec.factor, side // task.codec.factor

    def draw(params: Params, frozen: Any, rows: Mapping[str, Any]) -> jax.Array:
        sizes = jnp.tile(jnp.array([side, side, 0, 0, side, side]), (images, 1))
        with jax.named_scope(TEXT):
            encoded = {
                name: Encoded(*states)
                if from_states
                else task.encoders[name].apply(frozen[name], *states)
                for name, states in rows["text"].items()
            }
        keys = jax.vmap(jax.random.key)(rows["seed"])
        low = task.low.blank(images, side) if task.low else None
        with jax.named_scope(STEPS):
            own = adapted.generator_params(params, frozen)
            x0 = task.generate(own, frozen, encoded, sizes, keys, shape, low=low, decode=False)
        with jax.named_scope(DECODER):
            return to_pixels(task.decode(frozen, x0))

    def many(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((images, *x.shape[1:]), x.dtype)

    def tokens(length: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        kinds = (np.int32, np.bool_)
        return tuple(jax.ShapeDtypeStruct((images, length), kind) for kind in kinds)

    if from_states:
        text = {name: tuple(jax.tree.map(many, null)) for name, null in task.null_outputs.items()}
    else:
        text = {name: tokens(encoder.length) for name, encoder in task.encoders.items()}
    rows = {"text": text, "seed": jax.ShapeDtypeStruct((images,), np.uint32)}
    frozen = ("codec", BASE, *(() if from_states else task.encoders))
    return Sampler(draw, frozen, abstract_batch(rows, mesh), images)
