"""The collective operations of a compiled program, read from the text of its instructions."""

import math
import re

import numpy as np

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_SHAPE = re.compile(r"(?P<dtype>[a-z]+(?P<bits>\d+)\w*|pred)\[(?P<dims>[\d,]*)\]")


def collective(opcode: str, result: str) -> tuple[str, int] | None:
    """(kind, bytes of its results per device) from an opcode and the text of its result type.

    Of an asynchronous pair only the start counts; None for any other operation.
    """
    kind = opcode.removesuffix("-start")
    if kind not in KINDS:
        return None
    if kind != opcode and result.startswith("(("):
        # The result type of a start is ((operands), results, contexts of 4 bytes).
        return kind, sum(_array_bytes(result[closing(result, 1) :].replace("u32[]", "")))
    sizes = _array_bytes(result)
    if kind != opcode and kind in ("all-gather", "collective-permute"):
        # The same for a single operand: (operand, result, contexts of 4 bytes).
        sizes = [max(sizes)]
    return kind, sum(sizes)


def group_of(rest: str, devices: int) -> tuple[int, ...]:
    """The logical numbers of the devices that take part with device 0 in a collective, from the
    text after its operands; all ``devices`` if it names no groups.

    XLA writes groups in one of three ways:

        replica_groups={{0,1},{2,3}}
        replica_groups=[2,4]<=[4,2]T(1,0)           the numbers 0, 1, ... as an array of the second
                                                    shape, transposed, as one of the first; its
                                                    rows are the groups
        replica_groups=mesh['a'=2,'b'=4],           the numbers (in the order of device_ids, if
            device_ids=([4,2]T(1,0)) {'b'}          given) as an array with named axes; a group
                                                    extends over those in braces
    """
    pairs = re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", rest)
    if pairs:
        return int(pairs[1]), int(pairs[2])
    found = re.search(r"replica_groups=\{\{([\d,]*)\}", rest)
    if found:
        return tuple(_numbers(found[1]))
    found = re.search(r"replica_groups=(\[[\d,]*\])<=(\[[\d,]*\](?:T\([\d,]*\))?)", rest)
    if found:
        return tuple(_iota(found[2]).reshape(_numbers(found[1]))[0].tolist())
    found = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^{]*)\))? ?\{([^}]*)\}", rest
    )
    if found:
        axes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
        ids = _iota(found[2]) if found[2] else np.arange(math.prod(axes.values()))
        grid = ids.reshape(list(axes.values()))
        taken = set(re.findall(r"'(\w+)'", found[3]))
        index = tuple(slice(None) if name in taken else 0 for name in axes)
        return tuple(grid[index].ravel().tolist())
    return tuple(range(devices))


def _iota(text: str) -> np.ndarray:
    """``[4,2]T(1,0)``: 0, 1, ... as an array of shape 4 x 2, transposed."""
    shape, _, order = text.partition("T")
    sizes = _numbers(shape)
    array = np.arange(math.prod(sizes)).reshape(sizes)
    return array.transpose(_numbers(order)) if order else array


def _numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def result_bytes(result: str) -> int:
    """Bytes of all arrays in the text of a type."""
    return sum(_array_bytes(result))


def closing(text: str, start: int) -> int:
    """The index after the parenthesis that closes the one at ``start``."""
    depth = 0
    for i in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if not depth:
            return i + 1
    return len(text)


def _array_bytes(result: str) -> list[int]:
    """Bytes of each array in the text of a type."""
    return [_bytes(shape) for shape in _SHAPE.finditer(result)]


def _bytes(shape: re.Match[str]) -> int:
    elements = math.prod(int(n) for n in shape["dims"].split(",") if n)
    return elements * (1 if shape["dtype"] == "pred" else math.ceil(int(shape["bits"]) / 8))
