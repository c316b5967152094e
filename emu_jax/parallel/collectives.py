"""What a compiled program sends between devices, read from its text."""

import math
import re
from collections import defaultdict

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_COLLECTIVE = re.compile(rf"= (?P<type>\(.*?\)|\S+) (?P<opcode>(?:{'|'.join(KINDS)})(?:-start)?)\(")
_SHAPE = re.compile(r"(?P<dtype>[a-z]+(?P<bits>\d+)\w*|pred)\[(?P<dims>[\d,]*)\]")


def collective(opcode: str, result: str) -> tuple[str, int] | None:
    """(kind, bytes of its results a device) of an operation and the text of its result's type.

    Of an asynchronous pair the start counts; None for what sends nothing.
    """
    kind = opcode.removesuffix("-start")
    if kind not in KINDS:
        return None
    sizes = [_bytes(shape) for shape in _SHAPE.finditer(result)]
    if kind != opcode and kind in ("all-gather", "collective-permute"):
        # The type of a start is (operands, results, contexts of 4 bytes).
        sizes = [max(sizes)]
    return kind, sum(sizes)


def count_collectives(compiled_text: str) -> dict[str, tuple[int, int]]:
    """``jitted.lower(...).compile().as_text()`` -> {kind: (how many, bytes of their results a
    device)}.

    What is inside a loop counts once, whatever its trip count.
    """
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for match in _COLLECTIVE.finditer(compiled_text):
        found = collective(match["opcode"], match["type"])
        if found:
            counts[found[0]][0] += 1
            counts[found[0]][1] += found[1]
    return {kind: (number, size) for kind, (number, size) in sorted(counts.items())}


def result_bytes(result: str) -> int:
    """Bytes of all arrays in the text of a type."""
    return sum(_bytes(shape) for shape in _SHAPE.finditer(result))


def _bytes(shape: re.Match[str]) -> int:
    elements = math.prod(int(n) for n in shape["dims"].split(",") if n)
    return elements * (1 if shape["dtype"] == "pred" else math.ceil(int(shape["bits"]) / 8))
