"""Where a program's time goes on a GPU: a roofline of its kernels, from the optimized text.

    roofline of a kernel = max(FLOPs / peak of their dtype, bytes / memory bandwidth)
    roofline of a collective = bytes that a GPU sends / bandwidth of the link                    (1)
    modeled time = rest x sum of roofline x factor of its kind x iterations of its loops         (2)

The factors are measured (:mod:`emu_jax.planning.gpus`); without a measurement they are 1, and the
modeled time is a lower bound. FLOPs are those of matrix products, convolutions and attention. They
are read from the instructions: of the calls of cuBLAS and cuDNN, which the compiler does not see
into, from the shapes of operands and results. Bytes are those of operands and results, with two
exceptions inside a fusion: of an operand that is only sliced, the slices are read, and an update in
place (dynamic-update-slice) reads nothing but its update and writes no more.

Not in the model: waiting, overlap of collectives with kernels, launches, and what a library's call
does beside its product (changes of layout, splitting a sum).
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from emu_jax.parallel.collectives import collective, group_of, result_bytes
from emu_jax.planning.cost import LAYOUT, Spent, located
from emu_jax.planning.gpus import Gpu
from emu_jax.planning.hlo import Instruction, Program, shapes

ATTENTION, CONVOLUTION, PRODUCT = "attention", "convolution", "matrix product"
COPY, ELEMENTWISE, KERNEL, COLLECTIVE = "copy", "elementwise", "kernel", "collective"
# Instructions that launch nothing.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota", "after-all"),
    *("while", "conditional", "call", "async-start", "async-update", "async-done", "copy-done"),
    *("partition-id", "replica-id", "opt-barrier", "optimization-barrier", "domain"),
}
_SLICES = {"slice", "dynamic-slice", "gather"}
_UPDATE = "dynamic-update-slice"
# Instructions through which an array passes unchanged inside a fusion.
_SAME = {"bitcast", "reshape", "copy"}
# Instructions that read of an operand more or less than one element for each of their results.
_UNEVEN = {"reduce", "reduce-window", "dot", "convolution", "pad", "concatenate", "scatter", "sort"}
# The workspace of a library is the last result of its call, or bytes of no use to the program.
_WORKSPACE = re.compile(r"\b[su]8\[\d+\]")
_BITS = re.compile(r"\d+")


@dataclass(frozen=True)
class Kernel:
    """One kernel: how often it runs, its kind, and the FLOPs and bytes of one run. ``dtype`` is
    that of the operands of its products. For a collective ``bytes`` are those that a GPU sends, and
    ``host`` says whether they stay inside a host.
    """

    instruction: Instruction
    times: int
    sort: str
    flops: float
    bytes: float
    dtype: str = "bf16"
    host: bool = True

    def seconds(self, gpu: Gpu) -> float:
        """The roofline of one run: equation (1)."""
        if self.sort == COLLECTIVE:
            link = gpu.nvlink if self.host else gpu.network
            return self.bytes / link if link else 0.0
        bits = _BITS.search(self.dtype)
        peak = gpu.peak * min(2.0, 16 / int(bits[0])) if bits else gpu.peak
        return max(self.flops / peak, self.bytes / gpu.bandwidth)


def roofline(program: Program, gpu: Gpu, hosts: Sequence[int]) -> Iterator[tuple[Kernel, Spent]]:
    """Every kernel of a program, and its terms of equation (2). ``hosts`` are those of the devices
    by logical number.
    """
    for kernel in kernels(program, hosts):
        factor = gpu.factors.rest * gpu.factors.kinds.get(kernel.sort, 1.0)
        seconds = factor * kernel.times * kernel.seconds(gpu)
        part, module = located(program, kernel.instruction)
        yield kernel, Spent(part, kernel.sort, module, seconds)


def kernels(program: Program, hosts: Sequence[int] = (0,)) -> Iterator[Kernel]:
    """Every kernel of a program that runs on one device of ``hosts``."""
    for instruction, times in program.run():
        if instruction.opcode in _FREE:
            continue
        found = collective(instruction.opcode, instruction.type)
        if found:
            sent, host = _sent(instruction, found, hosts)
            yield Kernel(instruction, times, COLLECTIVE, 0.0, sent, host=host)
        elif instruction.opcode == "custom-call":
            yield _call(program, instruction, times)
        elif instruction.opcode == "fusion":
            yield _fusion(program, instruction, times)
        elif not instruction.opcode.endswith("-done"):
            yield _single(program, instruction, times)


def _sent(
    instruction: Instruction, found: tuple[str, int], hosts: Sequence[int]
) -> tuple[float, bool]:
    """(Bytes that a GPU sends to others, whether all are on one host), in a ring."""
    kind, size = found
    group = group_of(instruction.rest, len(hosts))
    n = len(group)
    share = {"all-reduce": 2 * (n - 1) / n, "reduce-scatter": n - 1, "collective-permute": 1.0}
    return size * share.get(kind, (n - 1) / n), len({hosts[i] for i in group}) == 1


def _call(program: Program, call: Instruction, times: int) -> Kernel:
    target, types = call.target, [program.by_name[name].type for name in call.operands]
    operands = [shape for kind in types for shape in shapes(kind)]
    results = shapes(_WORKSPACE.sub("", call.type))
    moved = sum(map(result_bytes, types)) + result_bytes(_WORKSPACE.sub("", call.type))
    dtype = operands[0][0] if operands else "bf16"
    dims = [size for _, size in operands]
    if "cublas" in target or "gemm" in target:
        contracted = re.search(r'"lhs_contracting_dimensions":\s*\[([^\]]*)\]', call.rest)
        axes = [int(n) for n in _BITS.findall(contracted[1])] if contracted else []
        flops = 2.0 * math.prod(results[0][1]) * math.prod(dims[0][axis] for axis in axes)
        return Kernel(call, times, PRODUCT, flops, moved, dtype)
    if "fmha" in target:
        (b, n, h, d), m = dims[0], dims[1][1]
        products = 5 if "Backward" in target else 2  # the weights are recomputed
        return Kernel(call, times, ATTENTION, 2.0 * products * b * h * n * m * d, moved, dtype)
    if "cudnn" in target and "conv" in target.lower():
        flops = _convolution(call, dims[0], dims[1], results[0][1])
        return Kernel(call, times, CONVOLUTION, flops, moved, dtype)
    return Kernel(call, times, KERNEL, 0.0, moved, dtype)


def _convolution(
    call: Instruction, first: tuple[int, ...], second: tuple[int, ...], result: tuple[int, ...]
) -> float:
    """The FLOPs of cuDNN's convolution, or of its gradient: a pair (position of the output, filter
    tap) costs one product of input and output channels, whichever of the three is computed.
    """
    labels = re.search(r"dim_labels=\w+_(\w+)->", call.rest)
    assert labels, f"a convolution without dim_labels: {call.rest[:200]}"
    if "BackwardFilter" in call.target:
        output, kernel = second, result
    elif "BackwardInput" in call.target:
        output, kernel = first, second
    else:
        output, kernel = result, second
    taps = [size for size, label in zip(kernel, labels[1], strict=True) if label != "o"]
    return 2.0 * math.prod(output) * math.prod(taps)


def _fusion(program: Program, fusion: Instruction, times: int) -> Kernel:
    inside = list(program.inside(fusion))
    moved = _read(program, fusion) + _written(program, fusion)
    products = [i for i in inside if i.opcode in ("dot", "convolution")]
    if products:
        flops = sum(_dot(program, i) for i in products if i.opcode == "dot")
        convolutions = [i for i in products if i.opcode == "convolution"]
        for i in convolutions:
            first, second = (_dims(program, name) for name in i.operands[:2])
            flops += _convolution(i, first, second, i.shapes[0][1])
        sort = CONVOLUTION if convolutions else PRODUCT
        dtype = shapes(program.by_name[products[0].operands[0]].type)[0][0]
        return Kernel(fusion, times, sort, flops, moved, dtype)
    sort = COPY if all(i.opcode in LAYOUT for i in inside) else ELEMENTWISE
    return Kernel(fusion, times, sort, 0.0, moved)


def _read(program: Program, fusion: Instruction) -> float:
    """Bytes that a fusion reads of its operands."""
    (name,) = fusion.calls["calls"]
    users: dict[str, list[tuple[Instruction, int]]] = defaultdict(list)
    for user in program.computations[name]:
        for place, operand in enumerate(user.operands):
            users[operand].append((user, place))

    @cache
    def share(name: str) -> float:
        """The share of an array's elements that the fusion computes or reads."""
        sliced, whole, elements = 0.0, 0.0, _elements(program.by_name[name])
        for user, place in users[name]:
            if place == 0 and user.opcode == _UPDATE:
                continue
            if place == 0 and user.opcode in _SLICES:
                sliced += share(user.name) * _elements(user) / max(elements, 1)
            elif user.opcode not in _UNEVEN and _elements(user) == elements:
                whole = max(whole, share(user.name))
            else:
                return 1.0
        return 1.0 if program.by_name[name].root else min(sliced + whole, 1.0)

    parameters = [i for i in program.computations[name] if i.opcode == "parameter"]
    return sum(share(i.name) * result_bytes(i.type) for i in parameters)


def _written(program: Program, fusion: Instruction) -> float:
    """Bytes that a fusion writes."""
    (name,) = fusion.calls["calls"]
    (root,) = (i for i in program.computations[name] if i.root)
    outputs = [program.by_name[x] for x in root.operands] if root.opcode == "tuple" else [root]
    total = 0
    for output in outputs:
        source = output
        while source.opcode in _SAME:
            source = program.by_name[source.operands[0]]
        target = source
        while target.opcode in (*_SAME, _UPDATE):
            target = program.by_name[target.operands[0]]
        in_place = source.opcode == _UPDATE and target.opcode == "parameter"
        total += result_bytes(program.by_name[source.operands[1]].type if in_place else output.type)
    return total


def _single(program: Program, instruction: Instruction, times: int) -> Kernel:
    """An instruction that is a kernel of its own."""
    size = result_bytes(instruction.type)
    if instruction.opcode in ("copy", "transpose", *_SLICES):
        return Kernel(instruction, times, COPY, 0.0, 2 * size)
    if instruction.opcode == "copy-start":  # its result is (copy, source, context)
        return Kernel(instruction, times, COPY, 0.0, size)
    if instruction.opcode == _UPDATE:
        update = result_bytes(program.by_name[instruction.operands[1]].type)
        return Kernel(instruction, times, COPY, 0.0, 2 * update)
    moved = size + sum(result_bytes(program.by_name[name].type) for name in instruction.operands)
    if instruction.opcode == "dot":
        dtype = shapes(program.by_name[instruction.operands[0]].type)[0][0]
        return Kernel(instruction, times, PRODUCT, _dot(program, instruction), moved, dtype)
    sort = COPY if instruction.opcode in LAYOUT else ELEMENTWISE
    return Kernel(instruction, times, sort, 0.0, moved)


def _dot(program: Program, dot: Instruction) -> float:
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", dot.rest)
    lhs = _dims(program, dot.operands[0])
    axes = [int(n) for n in _BITS.findall(contracted[1])] if contracted else []
    return 2.0 * math.prod(dot.shapes[0][1]) * math.prod(lhs[axis] for axis in axes)


def _elements(instruction: Instruction) -> int:
    return sum(math.prod(size) for _, size in instruction.shapes)


def _dims(program: Program, name: str) -> tuple[int, ...]:
    return shapes(program.by_name[name].type)[0][1]
