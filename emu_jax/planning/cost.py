"""Where a step's time goes, by the TPU compiler's own model of it.

    modelled step = sum of estimated cycles x turns of their loops / clock
                  + for each kernel max(FLOPs / (peak x min(1, head width / 128)),
                                        bytes / bandwidth)                                   (1)
    MFU = model FLOPs / chips / modelled step / peak                                         (2)

A model, not a timing: it knows nothing of waiting for other chips, collectives have no cycles in
it, and the compiler is rather hard on its own matrix products. It is of use to compare two versions
of a step, and to see what a step spends its cycles on.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from emu_jax.parallel.collectives import collective, result_bytes
from emu_jax.planning.chips import Chip
from emu_jax.planning.hlo import Instruction, Program, shapes
from emu_jax.planning.kernels import work_of
from emu_jax.training.step import EMA, OPTIMIZER

KERNEL = "tpu_custom_call"  # the target of a Pallas kernel's call
REST = "rest"  # norms to log, keeping the old state where a number is not finite
_MATRIX_UNIT = 128
# What moves or casts numbers and computes none.
_LAYOUT = {
    *("copy", "copy-start", "copy-done", "bitcast", "convert", "transpose", "reshape", "reverse"),
    *("slice", "dynamic-slice", "dynamic-update-slice", "gather", "concatenate", "pad"),
    *("broadcast", "iota", "constant", "parameter", "tuple", "get-tuple-element", "fusion"),
}


@dataclass(frozen=True)
class Spent:
    """Seconds of one or several instructions, all of one part of the step, sort and module."""

    part: str
    sort: str
    module: str
    seconds: float


def spent(program: Program, chip: Chip) -> Iterator[Spent]:
    """Eq. (1), term by term."""
    for instruction, times in program.run():
        if instruction.opcode == "custom-call" and instruction.target == KERNEL:
            seconds = times * _kernel_seconds(program, instruction, chip)
        else:
            seconds = times * instruction.cycles / chip.clock
        if seconds:
            source = _source(program, instruction)
            yield Spent(
                _part(program, source, instruction),
                sort_of(program, instruction),
                module_of(program.frames.get(source.frame, ())),
                seconds,
            )


def totals(terms: Sequence[Spent], key: str) -> dict[str, float]:
    """Seconds by ``part``, ``sort`` or ``module``, the most first."""
    sums: dict[str, float] = defaultdict(float)
    for term in terms:
        sums[getattr(term, key)] += term.seconds
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def part_of(op_name: str) -> str:
    """The part of the step that an operation belongs to, by the name that jax gave it."""
    path = op_name.split("/")
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
    """Matrix product, convolution, kernel, collective, copy or elementwise.

    A fusion is what is dearest in it, in this order.
    """
    parts = [instruction, *program.inside(instruction)]
    # On TPUs both are convolutions.
    products = [i for i in parts if i.opcode in ("convolution", "dot")]
    if any("conv_general_dilated" in i.op_name for i in products):
        return "convolution"
    if products:
        return "matrix product"
    if instruction.target == KERNEL:
        return "kernel"
    if any(collective(i.opcode, i.type) for i in parts):
        return "collective"
    return "copy" if all(i.opcode in _LAYOUT for i in parts) else "elementwise"


def module_of(stack: tuple[tuple[str, str], ...]) -> str:
    """The two innermost networks of a call stack, e.g. ``Attention/Linear``; else the function."""
    networks: list[str] = []
    function = ""
    for file, name in stack:
        name = name.split(".<locals>")[0]
        if "/emu_jax/" in file:
            function = name
        # Flax's own layers as well as ours; a helper counts for the class it is of.
        owner, _, method = name.rpartition(".")
        if ("/emu_jax/nn/" in file or "/flax/nnx/" in file) and method and owner:
            networks += [owner] if networks[-1:] != [owner] else []
    networks = [name for name in networks if name != "Network"]
    return "/".join(networks[-2:]) or function or "without a name"


def _part(program: Program, source: Instruction, instruction: Instruction) -> str:
    """Of its name; of a fusion that ends in the rest, what most of it comes from."""
    part = part_of(source.op_name)
    if part != REST:
        return part
    inside = [part_of(i.op_name) for i in program.inside(instruction) if i.op_name]
    counts = Counter(part for part in inside if part != REST)
    return counts.most_common(1)[0][0] if counts else REST


def _source(program: Program, instruction: Instruction) -> Instruction:
    """The instruction itself, or the last inside it that says where it came from."""
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
