"""The measured time of a program's kernels on a GPU, by kind, beside their roofline.

The factors of ``gpu_factors.json`` come from here: of each kind of operation measured time /
roofline, and of the whole call its time / the sum of its kernels (waiting, launches).
"""

import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.profiler import ProfileData

from emu_jax.errors import UserError
from emu_jax.planning.gpus import Gpu, gpu_facts, known_gpu
from emu_jax.planning.hlo import read_program
from emu_jax.planning.roofline import kernels

CALLS = 3
_OTHER = "other"  # kernels that belong to no instruction, such as those of CUDA graphs


def gpu_of(kind: str) -> Gpu:
    """The GPU of :mod:`emu_jax.planning.gpus` with this ``device_kind``.

    Raises:
      UserError: there is none.
    """
    name = next((name for name, facts in gpu_facts().items() if facts["kind"] == kind), "")
    if not name:
        raise UserError(
            f"--profile compares kernels with the roofline of a known NVIDIA GPU, and {kind} is "
            "none of emu_jax/planning/gpus.json; leave it out."
        )
    return known_gpu(name)


def profiled(call: Callable[[], Any], text: str, gpu: Gpu, seconds: float) -> dict[str, Any]:
    """:func:`compared` for a profile of some calls. ``text`` is the optimized program, ``seconds``
    the time of a call that was not profiled.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(CALLS):
                jax.block_until_ready(call())
        files = sorted(Path(folder).rglob("*.xplane.pb"))
        measured: dict[str, float] = defaultdict(float)
        for file in files:
            for name, spent in kernel_seconds(ProfileData.from_file(str(file))).items():
                measured[name] += spent / CALLS
    return compared(text, gpu, measured, seconds)


def kernel_seconds(profile: Any) -> dict[str, float]:
    """HLO instruction -> seconds of its kernels on the first GPU of a ``ProfileData``."""
    found: dict[str, float] = defaultdict(float)
    planes = sorted((p for p in profile.planes if "/device:GPU" in p.name), key=lambda p: p.name)
    for plane in planes[:1]:
        for line in plane.lines:
            if not line.name.startswith("Stream"):
                continue
            for event in line.events:
                stats = dict(event.stats)
                found[str(stats.get("hlo_op", _OTHER))] += event.duration_ns / 1e9
    return dict(found)


def compared(text: str, gpu: Gpu, measured: Mapping[str, float], seconds: float) -> dict[str, Any]:
    """Measured seconds and roofline by kind, and the factors between them.

    ``measured``: HLO instruction -> seconds in one call, which took ``seconds``.
    """
    kinds, roof = {}, defaultdict(float)
    launched = 0
    for kernel in kernels(read_program(text)):
        kinds[kernel.instruction.name] = kernel.sort
        roof[kernel.sort] += kernel.times * kernel.seconds(gpu)
        launched += kernel.times
    sums: dict[str, float] = defaultdict(float)
    for name, spent in measured.items():
        sums[kinds.get(name, _OTHER)] += spent
    total = sum(sums.values())
    return {
        "seconds": dict(sums),
        "roofline_seconds": dict(roof),
        "launched": launched,
        "factors": {
            "kinds": {sort: sums[sort] / roof[sort] for sort in roof if sums[sort] and roof[sort]},
            "rest": seconds / total if total else 1.0,
        },
    }
