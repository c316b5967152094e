"""One training step compiled for one topology, and what is to be known of it."""

import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.sharding import Mesh

from emu_jax.nn.functional import Params
from emu_jax.planning.chips import GIB, Topology
from emu_jax.planning.cost import Spent, spent
from emu_jax.planning.hlo import read_program
from emu_jax.planning.traffic import Traffic, traffic
from emu_jax.tasks.base import Batch, Task
from emu_jax.training.state import TrainState
from emu_jax.training.step import jit_step

_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGT])\b")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_MOST = 0.8  # of a chip's memory: with more than that in arguments there is no room to work


@dataclass(frozen=True)
class Memory:
    """Bytes a chip, as the compiler lays them out; ``aliased`` outputs lie where arguments did."""

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
    """``memory`` is None where the step does not fit; ``advice`` then says what to change.

    ``flops`` are the model's, of the whole batch; ``terms`` what its time is made of;
    ``open_loops`` how many loops of unknown length count once in it.
    """

    topology: Topology
    mesh: Mapping[str, int]
    batch_size: int
    flops: float
    compile_seconds: float
    memory: Memory | None = None
    advice: str = ""
    terms: list[Spent] = field(default_factory=list)
    traffic: list[Traffic] = field(default_factory=list)
    open_loops: int = 0

    @property
    def chips(self) -> int:
        return len(self.topology.devices)

    @property
    def seconds(self) -> float:
        """The modelled step."""
        return sum(term.seconds for term in self.terms)

    @property
    def mfu(self) -> float:
        return self.flops / self.chips / self.seconds / self.topology.chip.peak

    @property
    def images_per_second(self) -> float:
        """A chip's share of the batch over the modelled step."""
        return self.batch_size / self.chips / self.seconds


def make_plan(
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
    """Compiles the step; ``state``, ``frozen`` and ``batch`` are abstract and lie on ``mesh``."""
    rows = jax.tree.leaves(batch)[0].shape[0]
    step = jit_step(task, state, mesh, seed=seed, accumulate=accumulate)
    lowered = step.trace(state, frozen, batch).lower()
    start = time.monotonic()
    common: dict[str, Any] = dict(
        topology=topology, mesh=dict(mesh.shape), batch_size=rows, flops=flops
    )
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        held = sum(map(_bytes_a_chip, jax.tree.leaves((state, frozen, batch))))
        advice = advise(str(error), topology, held, mesh.shape["fsdp"], rows // accumulate)
        return Plan(**common, compile_seconds=time.monotonic() - start, advice=advice)
    seconds = time.monotonic() - start
    found = compiled.memory_analysis()
    program = read_program(compiled.as_text())
    return Plan(
        **common,
        compile_seconds=seconds,
        memory=Memory(
            found.argument_size_in_bytes,
            found.output_size_in_bytes,
            found.alias_size_in_bytes,
            found.temp_size_in_bytes,
            found.generated_code_size_in_bytes,
        ),
        terms=list(spent(program, topology.chip)),
        traffic=traffic(program),
        open_loops=program.open_loops(),
    )


def advise(error: str, topology: Topology, held: int, fsdp: int, rows: int) -> str:
    """One sentence: what a step that the compiler refuses needs, and what to change.

    ``held`` are the bytes a chip of its arguments, ``rows`` the pictures that all chips work on at
    once.
    """
    chip, chips = topology.chip, len(topology.devices)
    sizes = [float(n) * _UNITS[unit] for n, unit in _SIZE.findall(error)]
    needed = next((size for size in sizes if size > chip.memory), None)
    says = f"needs {needed / GIB:.1f} of" if needed else "needs more than"
    rows_a_chip = rows // chips
    if held > _MOST * chip.memory:
        within = chips // topology.slices
        more = f"raise mesh.fsdp ({fsdp} now)" if fsdp < within else "take a larger topology"
        change = (
            f"parameters, optimiser and batch alone take {held / GIB:.1f}: {more}, so that more "
            "chips share them"
        )
    elif rows_a_chip > 1:
        change = (
            f"each chip works on {rows_a_chip} pictures at once: lower train.batch_size, raise "
            "train.accumulate, or rematerialise activations (denoiser.remat)"
        )
    else:
        change = (
            "each chip works on a single picture already: rematerialise activations "
            "(denoiser.remat), raise mesh.fsdp, or take chips with more memory"
        )
    return f"The step {says} {chip.memory / GIB:.2f} GiB a chip on {topology.name}; {change}."


def _bytes_a_chip(x: jax.ShapeDtypeStruct) -> int:
    assert x.sharding is not None
    return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
