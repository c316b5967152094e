"""The shardings of arrays: rules for parameters, the batch rule, and placing a batch on devices.

Parameters are divided over ``fsdp`` by path and shape alone. So everything with the shape of a
parameter under its path (EMA, the moments of Adam) has the sharding of the parameter, and an update
needs no communication.
"""

import math
from collections.abc import Callable, Sequence
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
from emu_jax.parallel.mesh import AXES, SPACE

# Gathering an array of fewer elements costs more than replicating it.
SMALL = 2**14
# The tile of a TPU's memory, by axis counted from the end.
_TILE = {-1: 128, -2: 8}


def param_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """The PartitionSpec of the parameter at ``path``.

    It divides the largest dimension that the ``fsdp`` axis divides into whole tiles of a TPU's
    memory (128 of the last dimension, 8 of the one before), else the largest dimension that it
    divides; of equal ones the first. The compiler stores a kernel in parts of other sizes
    transposed and copies it at every use. The layer axis of a scanned stack is never divided: every
    iteration of the loop would have to gather the whole stack. Arrays with fewer than 2**14
    elements are replicated.
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
    """The NamedSharding of every leaf, by :func:`param_spec` of the leaf's path in the tree.

    ``tree``: a flat dict of arrays or ShapeDtypeStructs, or any pytree that contains such dicts (an
    optimizer state, a whole training state). The row and column vectors of Adafactor are arrays
    like any other; counters are scalars, so they are replicated.
    """

    def sharding(path: Any, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, param_spec(name, np.shape(leaf), mesh))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def abstract_params(tree: Any, mesh: Mesh) -> Any:
    """ShapeDtypeStructs of the leaves, with the shardings of :func:`shard_params`."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        tree,
        shard_params(tree, mesh),
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh, rows: int | None = None) -> NamedSharding:
    """The batch rule: the leading axis divided over all devices. ``rows`` that do not divide over a
    mesh with ``space`` are on every device.
    """
    whole = SPACE in mesh.shape and rows is not None and rows % mesh.size
    return replicated(mesh) if whole else NamedSharding(mesh, P(mesh.axis_names))


def division(shape: Sequence[int], mesh: Mesh) -> P | None:
    """How all devices divide an activation [b, ...]: by rows; on a mesh with ``space`` also rows
    and height (of tokens, their number), or height alone. None: they do not divide it.
    """
    ways = [(mesh.axis_names, ())]
    if SPACE in mesh.shape and len(shape) > 2:
        ways += [(AXES, (SPACE,)), ((), mesh.axis_names)]

    def fits(axes: Sequence[str], size: int) -> bool:
        return size % math.prod(mesh.shape[axis] for axis in axes) == 0

    for rows, height in ways:
        if fits(rows, shape[0]) and (not height or fits(height, shape[1])):
            return P(rows or None, height or None) if height else P(rows)
    return None


def constrain(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    """A function that shards an activation [b, ...] by :func:`division`, and lays tokens [b, n, c]
    out with channels as the minor axis; networks call it between blocks.

    Without it the partitioner, because weights are sharded by features, reshards activations back
    and forth between batch and features, and the TPU compiler makes a long token axis the minor
    one, which it then copies for the attention kernels.
    """

    def tokens_first(x: jax.Array) -> jax.Array:
        return with_layout_constraint(x, Layout(major_to_minor=(0, 1, 2)))

    def constrained(x: jax.Array) -> jax.Array:
        spec = division(x.shape, mesh)
        if x.ndim == 3 and spec is not None:
            # In shard_map: for the layout alone the partitioner may gather all rows everywhere.
            return jax.shard_map(tokens_first, mesh=mesh, in_specs=spec, out_specs=spec)(x)
        if mesh.size == 1:
            return x
        sharding = batch_sharding(mesh) if spec is None else NamedSharding(mesh, spec)
        return jax.lax.with_sharding_constraint(x, sharding)

    return constrained


def gather(mesh: Mesh) -> Callable[[Any], Any] | None:
    """A function that gathers weights on every device; networks call it where a layer uses its
    weights. None if every device has all weights anyway.

    Without it the partitioner multiplies all rows by the features that a device has and sends the
    results back and forth, with copies into and out of inefficient layouts.
    """
    if mesh.shape["fsdp"] == 1:
        return None
    sharding = replicated(mesh)

    def gathered(x: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, sharding)

    # The gradient is not constrained: its sum is scattered directly into the shards.
    differentiable = jax.custom_vjp(gathered)
    differentiable.defvjp(lambda x: (gathered(x), None), lambda _, dx: (dx,))
    return lambda tree: jax.tree.map(differentiable, tree)


def abstract_batch(host_batch: Any, mesh: Mesh) -> Any:
    """The result of :func:`put_batch` as ShapeDtypeStructs, from a ``host_batch`` of them."""

    def place(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        _require_division(x.shape[0], mesh)
        sharding = batch_sharding(mesh, x.shape[0])
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(place, host_batch)


def process_rows(rows: int, mesh: Mesh) -> Int[np.ndarray, "r"]:
    """The indices of the rows on this process's devices, ascending, in a batch of ``rows`` rows.

    A mesh that follows the links of a TPU need not keep the devices of a host together. Rows by
    process index would therefore get other random numbers than on one host.
    """
    _require_division(rows, mesh)
    local = batch_sharding(mesh, rows).addressable_devices_indices_map((rows,))
    return np.unique(np.concatenate([np.arange(rows)[index] for index in local.values() if index]))


def put_batch(host_batch: Any, mesh: Mesh) -> Any:
    """Numpy arrays [rows of this process, ...] as global arrays [rows of all processes, ...].

    Every process gives the same number of rows, those of :func:`process_rows`. The devices divide
    the rows of all processes.
    """

    def put(array: np.ndarray) -> jax.Array:
        _require_division(len(array) * jax.process_count(), mesh)
        sharding = batch_sharding(mesh, len(array))
        return jax.make_array_from_process_local_data(sharding, array)

    return jax.tree.map(put, host_batch)


def fetch(tree: Any) -> Any:
    """Whole global arrays in the memory of every host; all processes must call it."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def _require_division(rows: int, mesh: Mesh) -> None:
    if rows % mesh.size and SPACE not in mesh.shape:
        raise UserError(
            f"A batch of {rows} does not divide over {mesh.size} devices; use a multiple of "
            f"{mesh.size}."
        )
