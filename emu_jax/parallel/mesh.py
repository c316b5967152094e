"""The mesh of devices: ``data`` x ``fsdp``.

Both axes divide the batch. ``fsdp`` also divides parameters and optimiser state, so its traffic
(gathering weights, scattering gradients) should stay on the fast links inside a slice; ``data``
crosses slices, where only the gradients' sum travels.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from emu_jax.errors import UserError

AXES = ("data", "fsdp")


def make_mesh(
    data: int = -1, fsdp: int = 1, slices: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh over ``devices``, by default all of all processes; -1 for one of the axes takes what
    is left.

    With ``slices`` > 1 the devices come in that many groups with slow links between them (TPU
    slices; elsewhere, processes), and ``data`` runs across the groups.

    Raises:
      UserError: the numbers do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    wanted = f"data={data}, fsdp={fsdp}, slices={slices}"
    if min(data, fsdp) < -1 or 0 in (data, fsdp) or data == fsdp == -1 or slices < 1:
        raise UserError(f"A mesh of {wanted} is none: sizes are positive, and at most one is -1.")
    if data == -1:
        data = count // fsdp
    elif fsdp == -1:
        fsdp = count // data
    if data * fsdp != count:
        raise UserError(
            f"A mesh of {wanted} does not fit {count} devices: data x fsdp must be {count}; "
            "set data=-1 to take what fsdp leaves, or an fsdp that divides it."
        )
    if data % slices:
        raise UserError(f"A mesh of {wanted} on {count} devices: {slices} must divide data={data}.")
    if slices > 1:
        grid = _across(devices, slices, data, fsdp)
    else:
        grid = mesh_utils.create_device_mesh((data, fsdp), devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _across(devices: Sequence[Any], slices: int, data: int, fsdp: int) -> np.ndarray:
    by_process = len({getattr(device, "slice_index", 0) for device in devices}) == 1
    try:
        return mesh_utils.create_hybrid_device_mesh(
            (data // slices, fsdp),
            (slices, 1),
            devices,
            process_is_granule=by_process,
            allow_split_physical_axes=True,
        )
    except ValueError as error:
        groups = "processes" if by_process else "slices"
        raise UserError(
            f"slices={slices} does not fit this machine's {groups}: {error}; leave slices=1."
        ) from error
