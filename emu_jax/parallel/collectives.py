"""What a compiled program sends between devices, read from its text."""

import math
import re
from collections import defaultdict

_COLLECTIVE = re.compile(
    r"= (?P<type>\(.*?\)|\S+) (?P<kind>all-gather|all-reduce|reduce-scatter|all-to-all"
    r"|ragged-all-to-all|collective-permute|collective-broadcast)(?P<start>-start)?\("
)
_SHAPE = re.compile(r"(?P<dtype>[a-z]+(?P<bits>\d+)\w*|pred)\[(?P<dims>[\d,]*)\]")


def count_collectives(compiled_text: str) -> dict[str, tuple[int, int]]:
    """``jitted.lower(...).compile().as_text()`` -> {kind: (how many, bytes of their results a
    device)}.

    An asynchronous pair counts once. What is inside a loop counts once, whatever its trip count.
    """
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for match in _COLLECTIVE.finditer(compiled_text):
        sizes = [_bytes(shape) for shape in _SHAPE.finditer(match["type"])]
        if match["start"] and match["kind"] in ("all-gather", "collective-permute"):
            # The type of a start is (operands, results, contexts of 4 bytes).
            sizes = [max(sizes)]
        counts[match["kind"]][0] += 1
        counts[match["kind"]][1] += sum(sizes)
    return {kind: (number, size) for kind, (number, size) in sorted(counts.items())}


def _bytes(shape: re.Match[str]) -> int:
    elements = math.prod(int(n) for n in shape["dims"].split(",") if n)
    return elements * (1 if shape["dtype"] == "pred" else math.ceil(int(shape["bits"]) / 8))
