"""Where a step's time goes, by the cost model of the TPU compiler.

    modeled step = sum of estimated cycles x iterations of their loops / clock
                 + for each kernel max(FLOPs / (peak x min(1, head width / 128)),
                                       bytes / bandwidth)                                    (1)
    MFU = model FLOPs / chips / modeled step / peak                                          (2)

This is a model, not a measurement. It contains no waiting for other chips, collectives have no
cycles in it, and the compiler overestimates the cost of its own matrix products. Use it to compare
two versions of a step and to see where a step spends its cycles.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from emu_jax.parallel.collectives import collective, result_bytes
from emu_jax.planning.chips import Chip
from emu_jax.planning.hlo import Instruction, Program, shapes
from emu_jax.planning.kernels import work_of
from emu_jax.planning.sampler import DECODER, STEPS, TEXT
from emu_jax.training.step import EMA, OPTIMIZER

KERNEL = "tpu_custom_call"  # the custom-call target of a Pallas kernel
REST = "rest"  # norms for the log, and the selection of the old state if a number is not finite
_SAMPLER = {"text encoders": TEXT, "steps": STEPS, "decoder": DECODER}
_MATRIX_UNIT = 128
# Operations that move or cast numbers but compute none.
LAYOUT = {
    *("copy", "copy-start", "copy-done", "bitcast", "convert", "transpose", "reshape", "reverse"),
    *("slice", "dynamic-slice", "dynamic-update-slice", "gather", "concatenate", "pad"),
    *("broadcast", "iota", "constant", "parameter", "tuple", "get-tuple-element", "fusion"),
}


@dataclass(frozen=True)
class Spent:
    """The seconds of one instruction, with its phase of the step, kind of operation and module."""

    part: str
    sort: str
    module: str
    seconds: float


def spent(program: Program, chip: Chip) -> Iterator[Spent]:
    """The terms of equation (1)."""
    for instruction, times in program.run():
        if instruction.opcode == "custom-call" and instruction.target == KERNEL:
            seconds = times * _kernel_seconds(program, instruction, chip)
        else:
            seconds = times * instruction.cycles / chip.clock
        if seconds:
            part, module = located(program, instruction)
            yield Spent(part, sort_of(program, instruction), module, seconds)


def located(program: Program, instruction: Instruction) -> tuple[str, str]:
    """The phase and the module of an instruction."""
    source = _source(program, instruction)
    return _part(program, source, instruction), module_of(program.frames.get(source.frame, ()))


def totals(terms: Sequence[Spent], key: str) -> dict[str, float]:
    """Seconds by ``part``, ``sort`` or ``module``, in descending order."""
    sums: dict[str, float] = defaultdict(float)
    for term in terms:
        sums[getattr(term, key)] += term.seconds
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def part_of(op_name: str) -> str:
    """The phase of the step that an operation belongs to, from the name that jax gave it."""
    path = op_name.split("/")
    for part, scope in _SAMPLER.items():
        if scope in path:
            return part
    if OPTIMIZER in path:
        return "optimiser"
    if EMA in path:
        return "average"
    if "rematted_computation" in path:
        return "recomputed"
    if "transpose(" in op_name:
        return "backward"
    if "jvp(" in op_name:
        return "forward"
    return REST


def sort_of(program: Program, instruction: Instruction) -> str:
    """The kind of operation: matrix product, convolution, kernel, collective, copy or elementwise.

    A fusion counts as its most expensive operation.
    """
    parts = [instruction, *program.inside(instruction)]
    # On TPUs the compiler also writes matrix products as convolutions.
    products = [i for i in parts if i.opcode in ("convolution", "dot")]
    if any("conv_general_dilated" in i.op_name for i in products):
        return "convolution"
    if products:
        return "matrix product"
    if instruction.target == KERNEL:
        return "kernel"
    if any(collective(i.opcode, i.type) for i in parts):
        return "collective"
    return "copy" if all(i.opcode in LAYOUT for i in parts) else "elementwise"


def module_of(stack: tuple[tuple[str, str], ...]) -> str:
    """The two innermost modules of a call stack, e.g. ``Attention/Linear``; without any, the
    innermost function of emu_jax.
    """
    networks: list[str] = []
    function = ""
    for file, name in stack:
        name = name.split(".<locals>")[0]
        if "/emu_jax/" in file:
            function = name
        # Flax's own layers count as well as ours; a helper method counts for its class.
        owner, _, method = name.rpartition(".")
        if ("/emu_jax/nn/" in file or "/flax/nnx/" in file) and method and owner:
            networks += [owner] if networks[-1:] != [owner] else []
    networks = [name for name in networks if name != "Network"]
    return "/".join(networks[-2:]) or function or "without a name"


def _part(program: Program, source: Instruction, instruction: Instruction) -> str:
    """The phase by the instruction's name. A fusion whose name gives no phase has the most common
    phase of its instructions.
    """
    part = part_of(source.op_name)
    if part != REST:
        return part
    inside = [part_of(i.op_name) for i in program.inside(instruction) if i.op_name]
    counts = Counter(part for part in inside if part != REST)
    return counts.most_common(1)[0][0] if counts else REST


def _source(program: Program, instruction: Instruction) -> Instruction:
    """The instruction itself if it has an op_name, else the last one inside it that has."""
    if instruction.op_name:
        return instruction
    named = [i for i in program.inside(instruction) if i.op_name]
    return named[-1] if named else instruction


def _kernel_seconds(program: Program, call: Instruction, chip: Chip) -> float:
    types = [program.by_name[name].type for name in call.operands]
    work = work_of(call.op_name, [shape for kind in types for shape in shapes(kind)])
    moved = sum(map(result_bytes, types)) + result_bytes(call.type)
    peak = chip.peak * min(1.0, work.head_width / _MATRIX_UNIT)
    return max(work.flops / peak, moved / chip.bandwidth)
