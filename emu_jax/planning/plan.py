"""A training step or a sampler compiled for one topology: its memory, modeled time and traffic."""

import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.sharding import Mesh

from emu_jax.nn.functional import Params
from emu_jax.parallel.sharding import batch_sharding
from emu_jax.planning.chips import GIB, Topology
from emu_jax.planning.cost import Spent, spent
from emu_jax.planning.flops import count_flops
from emu_jax.planning.gpus import Gpu
from emu_jax.planning.hlo import read_program
from emu_jax.planning.roofline import roofline
from emu_jax.planning.sampler import make_sampler
from emu_jax.planning.traffic import Traffic, traffic
from emu_jax.tasks.base import Batch, Task, images_in
from emu_jax.training.state import TrainState
from emu_jax.training.step import jit_step

STEP, SAMPLER = "step", "sampler"
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGT])\b")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# The share of a chip's memory above which the arguments leave too little for activations.
_MAX_ARGUMENTS = 0.8


@dataclass(frozen=True)
class Memory:
    """Bytes per chip in the compiler's layout; ``aliased`` outputs reuse memory of arguments."""

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int

    @property
    def peak(self) -> int:
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


@dataclass(frozen=True)
class Plan:
    """A compiled step or sampler (``what``). ``memory`` is None if it does not fit; ``advice`` then
    says what to change.

    ``flops`` are the model FLOPs of the whole batch. ``terms`` are the terms of the modeled time,
    in which the body of each of the ``open_loops`` loops of unknown trip count counts once.
    ``kernels`` is the number of kernels that a GPU launches.
    """

    topology: Topology
    mesh: Mapping[str, int]
    batch_size: int
    flops: float
    compile_seconds: float
    what: str = STEP
    memory: Memory | None = None
    advice: str = ""
    terms: list[Spent] = field(default_factory=list)
    traffic: list[Traffic] = field(default_factory=list)
    open_loops: int = 0
    kernels: int | None = None

    @property
    def chips(self) -> int:
        return len(self.topology.devices)

    @property
    def seconds(self) -> float:
        """The modeled time of one call."""
        return sum(term.seconds for term in self.terms)

    @property
    def mfu(self) -> float:
        return self.flops / self.chips / self.seconds / self.topology.chip.peak

    @property
    def images_per_second(self) -> float:
        """Images per second per chip, by the modeled time."""
        return self.batch_size / self.chips / self.seconds


def plan_step(
    task: Task,
    topology: Topology,
    mesh: Mesh,
    state: TrainState,
    frozen: Mapping[str, Params],
    batch: Batch,
    flops: float,
    *,
    seed: int = 0,
    accumulate: int = 1,
) -> Plan:
    """Compiles the step. ``state``, ``frozen`` and ``batch`` are abstract, with shardings on
    ``mesh``.
    """
    step = jit_step(task, state, mesh, seed=seed, accumulate=accumulate)
    rows = images_in(batch)
    return _make_plan(
        *(STEP, step, (state, frozen, batch), topology, mesh, rows, flops),
        at_once=rows // accumulate,
    )


def plan_sampler(
    task: Task,
    topology: Topology,
    mesh: Mesh,
    params: Params,
    frozen: Mapping[str, Params],
    side: int,
    images: int,
    from_states: bool,
) -> Plan:
    """Compiles :func:`emu_jax.planning.sampler.make_sampler`. ``params`` (those of the task) and
    ``frozen`` are abstract, with shardings on ``mesh``.
    """
    draw, names, rows, images = make_sampler(task, mesh, side, images, from_states)
    args = params, {name: frozen[name] for name in names if name in frozen}, rows
    flops = count_flops(draw, *args)
    draw = jax.jit(draw, out_shardings=batch_sharding(mesh, images))
    return _make_plan(SAMPLER, draw, args, topology, mesh, images, flops, at_once=images)


def _make_plan(
    what: str,
    program: Any,
    args: tuple,
    topology: Topology,
    mesh: Mesh,
    images: int,
    flops: float,
    *,
    at_once: int,
) -> Plan:
    with topology.lowering():
        lowered = program.trace(*args).lower()
    start = time.monotonic()
    common: dict[str, Any] = dict(
        what=what, topology=topology, mesh=dict(mesh.shape), batch_size=images, flops=flops
    )
    held = sum(map(_bytes_per_chip, jax.tree.leaves(args)))
    try:
        compiled = lowered.compile(dict(topology.compiler_options) or None)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        advice = advise(str(error), topology, held, mesh.shape["fsdp"], at_once, what)
        return Plan(**common, compile_seconds=time.monotonic() - start, advice=advice)
    seconds = time.monotonic() - start
    found = compiled.memory_analysis()
    memory = Memory(
        found.argument_size_in_bytes,
        found.output_size_in_bytes,
        found.alias_size_in_bytes,
        found.temp_size_in_bytes,
        found.generated_code_size_in_bytes,
    )
    if memory.peak > topology.chip.memory:  # the compiler for GPUs does not refuse it
        used = f"Used {memory.peak / GIB:.2f}G"
        advice = advise(used, topology, held, mesh.shape["fsdp"], at_once, what)
        return Plan(**common, compile_seconds=seconds, advice=advice)
    read = read_program(compiled.as_text())
    hosts, launched = (), None
    if isinstance(topology.chip, Gpu):
        hosts = tuple(device.process_index for device in mesh.devices.flat)
        found = list(roofline(read, topology.chip, hosts))
        terms = [term for _, term in found]
        launched = sum(kernel.times for kernel, _ in found)
    else:
        terms = list(spent(read, topology.chip))
    return Plan(
        **common,
        compile_seconds=seconds,
        memory=memory,
        terms=terms,
        traffic=traffic(read, hosts),
        open_loops=read.open_loops(),
        kernels=launched,
    )


def advise(
    error: str, topology: Topology, held: int, fsdp: int, rows: int, what: str = STEP
) -> str:
    """One sentence: how much memory a program that does not fit needs, and what to change.

    ``error`` is the compiler's message. ``held`` is the size of the program's arguments in bytes
    per chip, ``rows`` the number of images that all chips process at once.
    """
    chip, chips = topology.chip, len(topology.devices)
    sizes = [float(n) * _UNITS[unit] for n, unit in _SIZE.findall(error)]
    needed = next((size for size in sizes if size > chip.memory), None)
    capacity = f"{chip.memory / GIB:.2f} GiB per chip"
    if needed:
        needs = f"{needed / GIB:.1f} GiB per chip, but {topology.name} has {capacity}"
    else:
        needs = f"more than the {capacity} of {topology.name}"
    rows_per_chip = rows // chips
    # Chips that divide images hold all parameters each.
    several = f"draw {chips} or more images at once (--pictures) and " if rows < chips else ""
    if held > _MAX_ARGUMENTS * chip.memory:
        within = chips // topology.slices
        more = "use a larger topology"
        if fsdp < within:
            more = f"{several}raise mesh.fsdp (now {fsdp})"
        kept = "parameters, optimizer state" if what == STEP else "parameters, frozen networks"
        change = (
            f"{kept} and batch alone take {held / GIB:.1f} GiB: {more}, so that more chips share "
            "them"
        )
    elif what == SAMPLER:
        fewer = "draw fewer images at once (--pictures), " if rows_per_chip > 1 else ""
        change = f"{fewer}give the text states (data.cache_text=True), or {several}raise mesh.fsdp"
    elif rows_per_chip > 1:
        change = (
            f"each chip processes {rows_per_chip} images at once: lower train.batch_size, raise "
            "train.accumulate, or rematerialize activations (denoiser.remat)"
        )
    else:
        change = (
            "each chip already processes a single image: rematerialize activations "
            "(denoiser.remat), raise mesh.fsdp, or use chips with more memory"
        )
    return f"The {what} needs {needs}; {change}."


def _bytes_per_chip(x: jax.ShapeDtypeStruct) -> int:
    assert x.sharding is not None
    return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
