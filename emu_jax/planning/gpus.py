"""NVIDIA GPUs, and the GPUs of some hosts for compilation without the hardware.

XLA's GPU compiler needs no GPU, only a description of one. ``gpus.json`` has the facts of some:
number of cores, sizes and memory bandwidth as the driver reports them (in bytes and bytes/s), the
dense bf16 peak of the data sheet in FLOP/s, the NVLink bandwidth of a GPU in one direction, and its
share of a host's network in NVIDIA's own systems, in bytes/s. A description of any other GPU comes
from a file in the format of XLA's repository (``xla/backends/gpu/target_config/specs``).

``gpu_factors.json`` has, for the GPUs on which a step was measured, the factors between roofline
and measurement (:mod:`emu_jax.planning.roofline`), and the run that they come from.

Kernels cannot be timed without the hardware, so nothing is autotuned. Triton's matrix products are
switched off, because without autotuning the compiler ends in an error where none of its tiles fits:
matrix products are then calls of cuBLAS and convolutions calls of cuDNN.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax._src.cudnn.fused_attention_stablehlo as fused_attention
from etils import epath
from jax.experimental import topologies

from emu_jax.errors import UserError
from emu_jax.planning.chips import Chip, Topology, peak_of

COMPILER_OPTIONS = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
CUDNN = (9, 10, 0)
_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
_NAME = re.compile(r"(?P<gpu>.+):(?P<sizes>[1-9]\d*(?:x[1-9]\d*)?)")
_FILE = (".txtpb", ".pbtxt", ".textproto")
_BF16 = 16  # of XLA's enumeration of types, by which a description lists its rates
_TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {shared_memory_per_block}
  shared_memory_per_core: {shared_memory_per_core}
  core_count: {cores}
  fpus_per_core: {fpus_per_core}
  clock_rate_ghz: {clock_ghz}
  l2_cache_size: {l2}
  device_memory_size: {memory}
  memory_bandwidth: {bandwidth}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: {cudnn[0]} minor: {cudnn[1]} patch: {cudnn[2]} }}
runtime_version {{ major: 12 minor: 9 patch: 0 }}
device_description_str: "{kind}"
"""


@dataclass(frozen=True)
class Factors:
    """Measured time / roofline by kind of operation (1 if a kind is missing); ``rest`` is the same
    for the sum, for kernels that were not measured one by one. ``source`` is their origin.
    """

    kinds: Mapping[str, float] = field(default_factory=dict)
    rest: float = 1.0
    source: str = ""


@dataclass(frozen=True)
class Gpu(Chip):
    """``nvlink`` and ``network`` in bytes/s, ``capability`` the compute capability, ``target`` the
    description for the compiler.
    """

    capability: str = ""
    nvlink: float = 0.0
    network: float = 0.0
    target: str = ""
    factors: Factors = Factors()


@cache
def gpu_facts() -> dict[str, dict[str, Any]]:
    """The facts of ``gpus.json`` by name."""
    return json.loads(Path(__file__).with_name("gpus.json").read_text())


def is_gpu(name: str) -> bool:
    """Whether the name of a topology is that of GPUs."""
    return name.partition(":")[0] in gpu_facts() or name.rpartition(":")[0].endswith(_FILE)


def open_gpus(name: str, slices: int = 1) -> Topology:
    """The topology named e.g. ``h100:8`` (GPUs of one host), ``a100:4x8`` (hosts x GPUs) or
    ``FILE.txtpb:8``, for compiling but not for running.

    Raises:
      UserError: there is no such topology, or the compiler is not installed.
    """
    match = _NAME.fullmatch(name)
    if not match:
        raise UserError(
            f"There is no topology {name!r}; use a name such as h100:8 (GPUs of one host), "
            f"a100:4x8 (hosts x GPUs) or FILE.txtpb:8, with one of the GPUs "
            f"{', '.join(gpu_facts())} or a file that describes another."
        )
    *more, gpus = (int(n) for n in match["sizes"].split("x"))
    hosts = more[0] if more else 1
    gpu = _from_file(match["gpu"]) if match["gpu"].endswith(_FILE) else known_gpu(match["gpu"])
    if not any(find_spec(plugin) for plugin in _PLUGINS):
        raise UserError(
            'The GPU compiler is not installed; run pip install "emu_jax[plan-gpu]", best in an '
            "environment of its own."
        )
    jax.config.update("jax_platforms", "cpu")  # Compiling needs no GPU: run nothing on one.
    try:
        found = topologies.get_topology_desc(
            platform="cuda", target_config=gpu.target, topology=f"1x{hosts}x{gpus}"
        )
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0].removeprefix("INVALID_ARGUMENT: ").rstrip(".")
        raise UserError(f"The GPU compiler rejects the topology {name}: {reason}.") from error
    return Topology(
        f"{gpu.name}:{match['sizes']}",
        gpu,
        slices,
        found.devices,
        COMPILER_OPTIONS,
        lambda: cudnn_of(gpu),
    )


def known_gpu(name: str) -> Gpu:
    """A GPU of ``gpus.json``."""
    facts = gpu_facts()[name]
    major, minor = facts["capability"].split(".")
    return Gpu(
        name,
        *(float(facts[key]) for key in ("peak", "memory", "bandwidth")),
        clock=facts["clock_ghz"] * 1e9,
        capability=facts["capability"],
        nvlink=facts["nvlink"],
        network=facts["network"],
        target=_TARGET.format(**facts, major=major, minor=minor, cudnn=CUDNN),
        factors=read_factors(name),
    )


def read_factors(name: str) -> Factors:
    """The factors of a GPU; those of a GPU that was never measured are 1."""
    found = json.loads(Path(__file__).with_name("gpu_factors.json").read_text())
    known = found.get(name, {})
    same = known.get("same_as", "")
    known = found[same] if same else known
    if not known:
        return Factors()
    source = f"{same or name}, {known['date']}"
    return Factors(known["kinds"], known["rest"], source)


def _from_file(path: str) -> Gpu:
    """A GPU by a description in the format of XLA's repository. Its links are unknown."""
    try:
        text = epath.Path(path).read_text()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}); it must describe a GPU.") from error

    def number(name: str, default: float | None = None) -> float:
        found = re.search(rf"\b{name}: *([\d.]+)", text)
        if found is None and default is None:
            raise UserError(f"{path} has no {name}; it must describe a GPU in XLA's format.")
        return float(found[1]) if found else float(default or 0)

    if 'platform_name: "CUDA"' not in text:
        raise UserError(f"{path} does not describe an NVIDIA GPU (platform_name is not CUDA).")
    kind = re.search(r'device_description_str: *"([^"]*)"', text)
    units = re.search(
        rf"matrix_unit_description.*?key: {_BF16}\s+value \{{\s+clock_rate_ghz: ([\d.]+)\s+"
        r"units_per_core: (\d+)\s+ops_per_clock: (\d+)",
        text,
        re.DOTALL,
    )
    cores = number("core_count")
    peak = peak_of(kind[1]) if kind else None
    if units:  # an operation is a multiplication and an addition
        peak = 2e9 * float(units[1]) * int(units[2]) * int(units[3]) * cores
    if peak is None:
        raise UserError(
            f"{path} has no rate of bf16 matrix products (matrix_unit_description), and the peak "
            f"of {kind[1] if kind else 'its GPU'} is unknown: add it to PEAKS in "
            "emu_jax/planning/chips.py."
        )
    capability = re.search(r"cuda_compute_capability *\{\s*major: (\d+)(?:\s+minor: (\d+))?", text)
    return Gpu(
        Path(path).stem,
        peak,
        number("device_memory_size"),
        number("memory_bandwidth"),
        1e9 * number("clock_rate_ghz"),
        capability=f"{capability[1]}.{capability[2] or 0}" if capability else "0.0",
        target=text,
    )


@contextlib.contextmanager
def cudnn_of(gpu: Gpu) -> Iterator[None]:
    """Inside, jax lowers cuDNN attention for ``gpu``: it asks the library and the GPU of this
    machine, before it lowers a call, which versions they have.
    """
    capability = tuple(int(n) for n in gpu.capability.split("."))

    def number(text: str) -> tuple[int, ...]:
        return tuple(int(n) for n in text.split("."))

    answers = {
        "check_cudnn_version": lambda: CUDNN[0] * 10_000 + CUDNN[1] * 100 + CUDNN[2],
        "check_compute_capability": lambda wanted: capability >= number(wanted),
        "is_cuda_compute_capability_equal": lambda wanted: capability == number(wanted),
    }
    asked = {name: getattr(fused_attention, name) for name in answers}
    for name, answer in answers.items():
        setattr(fused_attention, name, answer)
    try:
        yield
    finally:
        for name, question in asked.items():
            setattr(fused_attention, name, question)
