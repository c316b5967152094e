"""The mesh of devices: ``data`` x ``fsdp``, and in sampling also ``space``.

``data`` and ``fsdp`` divide the batch. ``fsdp`` also divides parameters and optimizer state, so its
traffic (gathering weights, scattering gradients) should stay on the fast links inside a slice;
``data`` crosses slices, between which only the sum of gradients is sent. ``space`` divides the
images themselves, where fewer are drawn at once than there are devices.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from emu_jax.errors import UserError

AXES = ("data", "fsdp")
SPACE = "space"


def make_mesh(
    data: int = -1, fsdp: int = 1, slices: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh over ``devices``, by default all devices of all processes. A size of -1 for one of the
    axes means all remaining devices.

    With ``slices`` > 1 the devices form that many groups with slow links between them (TPU slices;
    on other devices, processes), and ``data`` extends across the groups.

    Raises:
      UserError: sizes that are not positive, or do not fit the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    wanted = f"data={data}, fsdp={fsdp}, slices={slices}"
    if min(data, fsdp) < -1 or 0 in (data, fsdp) or data == fsdp == -1 or slices < 1:
        raise UserError(f"Invalid mesh {wanted}: sizes must be positive and only one may be -1.")
    if data == -1:
        data = count // fsdp
    elif fsdp == -1:
        fsdp = count // data
    if data * fsdp != count:
        raise UserError(
            f"The mesh {wanted} does not fit {count} devices: data x fsdp must be {count}; use "
            f"data=-1 for all remaining devices, with an fsdp that divides {count}."
        )
    if data % slices:
        raise UserError(
            f"Invalid mesh {wanted} on {count} devices: slices={slices} must divide data={data}."
        )
    if slices > 1:
        grid = _across(devices, slices, data, fsdp)
    else:
        grid = mesh_utils.create_device_mesh((data, fsdp), devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def sampling_mesh(images: int, devices: Sequence[Any]) -> Mesh:
    """A mesh to draw ``images`` at once: every device has all parameters and some of the images.

    Of fewer images than devices each is divided too, by height. Classifier-free guidance evaluates
    two rows per image, so ``data`` is the largest number of devices that divides these rows.
    """
    count = len(devices)
    if images >= count:
        return make_mesh(devices=devices)
    data = math.gcd(2 * images, count)
    shape = (data, 1, count // data)
    grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, (*AXES, SPACE), axis_types=(AxisType.Auto,) * len(shape))


def images_at_once(images: int, mesh: Mesh) -> int:
    """``images``, rounded up to a multiple of the devices unless these divide each image."""
    return images if SPACE in mesh.shape else -(-images // mesh.size) * mesh.size


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
            f"slices={slices} does not fit the {groups} of this machine ({error}); use slices=1."
        ) from error
