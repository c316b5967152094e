"""Where arrays lie on the mesh: rules for parameters, the batch rule, and placing a batch.

Parameters are divided over ``fsdp`` by path and shape alone, so everything of a parameter's shape
under its path (EMA, Adam's moments) lies as the parameter does, and an update needs no traffic.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Int

from emu_jax.errors import UserError
from emu_jax.nn.stack import is_scanned
from emu_jax.parallel.mesh import AXES

# Gathering an array this small costs more than keeping it everywhere.
SMALL = 2**14
# Of the last axes, counted from the end.
_TILE = {-1: 128, -2: 8}


def param_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """The PartitionSpec of the array called ``path``.

    Its largest dimension that the ``fsdp`` axis divides into whole tiles of a TPU's memory (128 of
    the last, 8 of the one before), else the largest that it divides; of equal ones the first. A
    kernel in parts of other sizes is stored the other way round and copied at every use. The layer
    axis of a scanned stack is never divided: each layer's step of the loop would have to fetch the
    whole of it. Arrays under 2**14 elements are replicated.
    """
    size = mesh.shape["fsdp"]
    first = 1 if is_scanned(path) else 0
    divisible = [axis for axis in range(first, len(shape)) if shape[axis] % size == 0]
    if size == 1 or not divisible or np.prod(shape) < SMALL:
        return P()

    def tiled(axis: int) -> bool:
        return shape[axis] // size % _TILE.get(axis - len(shape), 1) == 0

    chosen = max(divisible, key=lambda axis: (tiled(axis), shape[axis], -axis))
    return P(*(None,) * chosen, "fsdp")


def shard_params(tree: Any, mesh: Mesh) -> Any:
    """The NamedSharding of every leaf, by :func:`param_spec` on the leaf's path in the tree.

    ``tree``: a flat dict of arrays or ShapeDtypeStructs, or any pytree with such dicts inside (an
    optimiser's state, a whole training state). Adafactor's row and column vectors are arrays like
    any other; counters are scalars, so replicated.
    """

    def sharding(path: Any, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, param_spec(name, np.shape(leaf), mesh))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def abstract_params(tree: Any, mesh: Mesh) -> Any:
    """ShapeDtypeStructs of the leaves that carry the shardings of :func:`shard_params`."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        tree,
        shard_params(tree, mesh),
    )


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis over all devices."""
    return NamedSharding(mesh, P(AXES))


def constrain(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    """A function that holds an activation [b, ...] to the batch rule, and tokens [b, n, c] to lie
    tokens before channels; networks call it between blocks.

    Without it the partitioner, having weights divided by features, moves activations back and forth
    between batch and features, and a TPU's compiler puts many tokens last and copies what attention
    kernels read.
    """
    rows, sharding = P(AXES), batch_sharding(mesh)

    def tokens_first(x: jax.Array) -> jax.Array:
        return with_layout_constraint(x, Layout(major_to_minor=(0, 1, 2)))

    # By hand: for a layout's sake the partitioner may bring all rows together on every device.
    divided = jax.shard_map(tokens_first, mesh=mesh, in_specs=rows, out_specs=rows)

    def held(x: jax.Array) -> jax.Array:
        if x.ndim == 3 and x.shape[0] % mesh.size == 0:
            return divided(x)
        return x if mesh.size == 1 else jax.lax.with_sharding_constraint(x, sharding)

    return held


def gather(mesh: Mesh) -> Callable[[Any], Any] | None:
    """A function that brings weights together on every device; networks call it where a layer uses
    its own. None where every device has them all.

    Left to itself, the partitioner multiplies by the features that a device holds, for all rows,
    and sends results to and fro: copies in and out of layouts that no chip likes.
    """
    if mesh.shape["fsdp"] == 1:
        return None
    everywhere = replicated(mesh)

    def constrained(x: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, everywhere)

    # A gradient is not constrained likewise: its sum goes straight to the devices' shares.
    whole = jax.custom_vjp(constrained)
    whole.defvjp(lambda x: (constrained(x), None), lambda _, dx: (dx,))
    return lambda tree: jax.tree.map(whole, tree)


def abstract_batch(host_batch: Any, mesh: Mesh) -> Any:
    """What :func:`put_batch` would place, in shape alone: ``host_batch`` of ShapeDtypeStructs."""
    sharding = batch_sharding(mesh)

    def place(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        _require_division(x.shape[0], mesh)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(place, host_batch)


def process_rows(rows: int, mesh: Mesh) -> Int[np.ndarray, "r"]:
    """Which rows of a batch of so many this process's devices hold, ascending.

    A mesh laid along a TPU's links need not keep a host's devices together: to take the rows by the
    process's number would give them other random numbers than on one host.
    """
    _require_division(rows, mesh)
    held = batch_sharding(mesh).addressable_devices_indices_map((rows,))
    return np.sort(np.concatenate([np.arange(rows)[index] for index in held.values() if index]))


def put_batch(host_batch: Any, mesh: Mesh) -> Any:
    """Numpy arrays [rows of this process, ...] as global arrays [rows of all processes, ...].

    Processes hold equally many rows, those of :func:`process_rows`, and the devices divide their
    sum.
    """
    sharding = batch_sharding(mesh)

    def put(array: np.ndarray) -> jax.Array:
        _require_division(len(array) * jax.process_count(), mesh)
        return jax.make_array_from_process_local_data(sharding, array)

    return jax.tree.map(put, host_batch)


def fetch(tree: Any) -> Any:
    """Global arrays whole in the memory of every host; all processes must ask."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def _require_division(rows: int, mesh: Mesh) -> None:
    if rows % mesh.size:
        raise UserError(
            f"A batch of {rows} does not divide over {mesh.size} devices; take a multiple of "
            f"{mesh.size}."
        )
