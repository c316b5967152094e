"""The shapes of a training step's inputs (the batch and the frozen networks), and synthetic arrays
of these shapes for a machine without data sets or weights.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from emu_jax.data.further import is_labels
from emu_jax.data.pipeline import StreamSpec
from emu_jax.parallel.sharding import abstract_batch, abstract_params
from emu_jax.tasks.base import RowSpec, Task

Shapes = Any  # a tree of ShapeDtypeStructs


def abstract_frozen(task: Task, mesh: Mesh, without: tuple[str, ...] = ()) -> dict[str, Shapes]:
    """The task's frozen networks except those in ``without``, with their shardings on the mesh."""
    return {
        name: abstract_params(
            {path: _shape(x.shape, network.dtype) for path, x in network.shapes.items()}, mesh
        )
        for name, network in task.frozen.items()
        if name not in without
    }


def training_batch(
    task: Task,
    specs: Mapping[str, StreamSpec],
    frozen: Mapping[str, Shapes],
    mesh: Mesh,
    *,
    cached_latents: bool = False,
    cached_text: bool = False,
) -> dict[str, Shapes]:
    """A batch of every training stream in its bucket nearest to a square (no other is larger)."""
    return {
        name: abstract_batch(_rows(rows, specs[name], frozen, cached_latents, cached_text), mesh)
        for name, rows in task.streams.items()
    }


def _rows(
    rows: RowSpec,
    spec: StreamSpec,
    frozen: Mapping[str, Shapes],
    cached_latents: bool,
    cached_text: bool,
) -> dict[str, Shapes]:
    b = spec.batch_size
    height, width = min(spec.shapes(), key=lambda shape: abs(shape[0] - shape[1]))
    image = _shape((b, height, width, 3), np.uint8)
    found: dict[str, Shapes] = {"record": _shape((b,), np.int32), "sizes": _shape((b, 6), np.int32)}
    if cached_latents and rows.latents:
        found |= jax.eval_shape(rows.latents.encode, frozen, image)
    else:
        found["image"] = image
    if rows.further:
        found["further"] = {
            name: _shape((b, height, width) if is_labels(name) else image.shape, np.uint8)
            for name in rows.further
        }
    if rows.columns:
        found["columns"] = {
            name: _shape((b, vocabulary.most), np.int32)
            for name, vocabulary in rows.columns.items()
        }
    found |= _texts(rows, b, cached_text)
    if rows.captions:
        found["captions"] = {column: _texts(rows, b, cached_text) for column in rows.captions}
    if rows.vectors:
        shape = (b, len(rows.vectors.model.layers), rows.vectors.model.width)
        found["vectors"] = _shape(shape, np.float32)
    return found


def _texts(rows: RowSpec, b: int, cached: bool) -> dict[str, Shapes]:
    """Tokens, or cached outputs, of every encoder."""
    found: dict[str, Shapes] = {}
    for name, encoder in rows.encoders.items():
        if cached:
            states = {
                "states": _shape((b, encoder.length, encoder.width), encoder.dtype),
                "mask": _shape((b, encoder.length), bool),
            }
            if encoder.pooled_width:
                states["pooled"] = _shape((b, encoder.pooled_width), encoder.dtype)
            found.setdefault("text", {})[name] = states
        else:
            tokens = {
                "ids": _shape((b, encoder.length), np.int32),
                "mask": _shape((b, encoder.length), bool),
            }
            found.setdefault("tokens", {})[name] = tokens
    return found


def synthetic(shapes: Shapes, key: jax.Array, scale: float = 1.0) -> Any:
    """Arrays for a tree of ShapeDtypeStructs, created in their shardings: uniform noise for pixels,
    N(0, scale^2) for floats, True for masks, and 0 for all other numbers such as token ids.
    """
    leaves, tree = jax.tree.flatten(shapes)

    def fill(i: int, x: jax.ShapeDtypeStruct) -> jax.Array:
        # One program per shape: a single program for all arrays takes minutes to compile.
        program = jax.jit(_fill, static_argnums=(2, 3), out_shardings=x.sharding)
        return program(jax.random.fold_in(key, i), scale, x.shape, np.dtype(x.dtype))

    return jax.tree.unflatten(tree, [fill(i, x) for i, x in enumerate(leaves)])


def _fill(key: jax.Array, scale: float, shape: tuple[int, ...], dtype: np.dtype) -> jax.Array:
    if jnp.issubdtype(dtype, jnp.floating):
        return (scale * jax.random.normal(key, shape)).astype(dtype)
    if dtype == np.uint8:
        return jax.random.bits(key, shape, dtype)
    return jnp.full(shape, dtype == np.bool_, dtype)


def _shape(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)
