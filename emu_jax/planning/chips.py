"""TPU chips, and the devices of a topology for compilation without the hardware. GPUs are in
:mod:`emu_jax.planning.gpus`.

Peak FLOP/s and bandwidth are Google Cloud's published numbers per chip
(cloud.google.com/tpu/docs/v4 and similar pages). The memory is what the compiler lets a program
use, as its error message states it when a program does not fit: a little less than the chip has.
The compiler counts in cycles, so the clock is the published peak / the FLOPs per cycle of all
matrix units of a chip (2 x 8 units of 128 x 128 on v4 and v5p, 4 of them on v5e, 4 of 256 x 256 on
v6e; each cell does one addition and one multiplication).
"""

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import jax
from jax.experimental import topologies

from emu_jax.errors import UserError

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """``peak`` in bf16 FLOP/s, ``memory`` in bytes, memory ``bandwidth`` in bytes/s, ``clock`` in
    Hz. ``options`` are compiler options that make one device of a chip with several cores.
    """

    name: str
    peak: float
    memory: float
    bandwidth: float
    clock: float
    options: tuple[tuple[str, str], ...] = ()


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 275e12, 30.75 * GIB, 1.2e12, 1.05e9, (("chip_config_name", "megacore"),)),
        Chip("v5e", 197e12, 15.75 * GIB, 0.819e12, 1.5e9),
        Chip("v5p", 459e12, 95.74 * GIB, 2.765e12, 1.75e9),
        Chip("v6e", 918e12, 31.25 * GIB, 1.64e12, 1.75e9),
    )
}


# Pattern of a device's ``device_kind`` -> dense bf16 FLOP/s: the chips above, and GPUs by NVIDIA's
# data sheets.
PEAKS = {
    r"TPU v4": CHIPS["v4"].peak,
    r"TPU v5( lite|e)": CHIPS["v5e"].peak,
    r"TPU v5p?": CHIPS["v5p"].peak,
    r"TPU v6( lite|e)": CHIPS["v6e"].peak,
    r"NVIDIA A100.*": 312e12,
    r"NVIDIA H100 PCIe": 756e12,
    r"NVIDIA (H100 80GB HBM3|H200)": 989e12,
    r"NVIDIA B200": 2250e12,
}


def peak_of(kind: str) -> float | None:
    """The peak FLOP/s of a device by its ``device_kind``; None if it is unknown (CPUs)."""
    return next((peak for name, peak in PEAKS.items() if re.fullmatch(name, kind)), None)


@dataclass(frozen=True)
class Topology:
    """All ``devices`` of ``slices`` slices, with one kind of chip.

    A program for them is traced and lowered inside ``lowering()`` and compiled with
    ``compiler_options``.
    """

    name: str
    chip: Chip
    slices: int
    devices: Sequence[Any]
    compiler_options: Mapping[str, Any] = field(default_factory=dict)
    lowering: Callable[[], AbstractContextManager] = nullcontext


def open_topology(name: str, slices: int = 1) -> Topology:
    """The topology named e.g. ``v5e:16x16`` or ``v5p:4x4x8``, for compiling but not for running.

    Raises:
      UserError: there is no such topology, or the compiler is not installed.
    """
    match = re.fullmatch(r"(\w+):([1-9]\d*(?:x[1-9]\d*){1,2})", name)
    if not match or match[1] not in CHIPS:
        raise UserError(
            f"There is no topology {name!r}; use a name such as v5e:16x16 or v5p:4x4x8, with one "
            f"of the chips {', '.join(CHIPS)}."
        )
    chip = CHIPS[match[1]]
    _prepare()
    options: dict[str, object] = dict(chip.options)
    if slices > 1:
        options["num_slices"] = slices
    if math.prod(int(n) for n in match[2].split("x")) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)  # a host has four chips by default
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0].removeprefix("INVALID_ARGUMENT: ").rstrip(".")
        raise UserError(f"The TPU compiler rejects the topology {name}: {reason}.") from error
    return Topology(name, chip, slices, found.devices)


def _prepare() -> None:
    """Settings before libtpu is loaded, so that it neither searches for a chip nor locks one."""
    if find_spec("libtpu") is None:
        raise UserError('The TPU compiler is not installed; run pip install "emu_jax[plan]".')
    # Compiling needs no chip: run nothing on a TPU and leave it to other processes.
    jax.config.update("jax_platforms", "cpu")
    for variable, value in {
        "TPU_SKIP_MDS_QUERY": "1",  # no query of the metadata server: this may be no cloud machine
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        # If these are not set, libtpu logs errors.
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_STDERR_LOG_LEVEL": "3",
        "TPU_MIN_LOG_LEVEL": "3",
    }.items():
        os.environ.setdefault(variable, value)
