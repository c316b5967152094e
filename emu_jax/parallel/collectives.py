"""The collective operations of a compiled program, read from the text of its instructions."""

import math
import re

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
    sizes = _array_bytes(result)
    if kind != opcode and kind in ("all-gather", "collective-permute"):
        # The result type of a start is (operands, results, contexts of 4 bytes).
        sizes = [max(sizes)]
    return kind, sum(sizes)


def result_bytes(result: str) -> int:
    """Bytes of all arrays in the text of a type."""
    return sum(_array_bytes(result))


def _array_bytes(result: str) -> list[int]:
    """Bytes of each array in the text of a type."""
    return [_bytes(shape) for shape in _SHAPE.finditer(result)]


def _bytes(shape: re.Match[str]) -> int:
    elements = math.prod(int(n) for n in shape["dims"].split(",") if n)
    return elements * (1 if shape["dtype"] == "pred" else math.ceil(int(shape["bits"]) / 8))
