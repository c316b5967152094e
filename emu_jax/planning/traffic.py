"""The traffic of a program between chips: collectives by kind and by the links that they use.

ICI are the links inside a TPU slice; DCN is the network between slices, about a hundred times
slower. On TPUs a program is compiled for one slice. Data for another slice leaves through the host,
as a ``send`` that names its collective; every other collective stays inside the slice. GPUs of a
host are connected by NVLink, hosts by a network; a collective names the devices that take part.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from emu_jax.parallel.collectives import collective, group_of, result_bytes
from emu_jax.planning.hlo import Instruction, Program

NVLINK, NETWORK = "NVLink", "network"
_CHANNEL = re.compile(r"channel_id=(\d+)")
_BETWEEN_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
# The TPU compiler writes a reduce-scatter as a fusion of an all-reduce and a slice.
_SCATTERED = "all-reduce-scatter"


@dataclass(frozen=True)
class Traffic:
    """All collectives of one kind on one kind of link; ``bytes`` is the size of their results per
    chip.
    """

    kind: str
    link: str
    count: int
    bytes: int


def traffic(program: Program, hosts: Sequence[int] = ()) -> list[Traffic]:
    """All collectives of a program, each counted as often as it runs. ``hosts``: for a program for
    GPUs, the hosts of its devices by logical number.
    """
    totals: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for kind, link, size, times in _between(program, hosts) if hosts else _collectives(program):
        totals[kind, link][0] += times
        totals[kind, link][1] += times * size
    return [Traffic(*key, *total) for key, total in sorted(totals.items())]


def _between(program: Program, hosts: Sequence[int]) -> Iterator[tuple[str, str, int, int]]:
    """(kind, link, bytes, times) of a program for GPUs."""
    for instruction, times in program.run():
        found = collective(instruction.opcode, instruction.type)
        if found:
            own = {hosts[i] for i in group_of(instruction.rest, len(hosts))}
            yield found[0], NVLINK if len(own) == 1 else NETWORK, found[1], times


def _collectives(program: Program) -> Iterator[tuple[str, str, int, int]]:
    """(kind, link, bytes, times). A collective that overlaps with several fusions is in each of
    them with the same channel, and counts once.
    """
    seen = set()
    for outer, times in program.run():
        for instruction in (outer, *program.inside(outer)):
            found = _sent(instruction)
            channel = _CHANNEL.search(instruction.rest)
            if not found or (channel and channel[1] in seen):
                continue
            if channel:
                seen.add(channel[1])
            kind, link, size = found
            if any(name.startswith(_SCATTERED) for name in outer.calls.get("calls", ())):
                kind, size = "reduce-scatter", result_bytes(outer.type)
            yield kind, link, size, times


def _sent(instruction: Instruction) -> tuple[str, str, int] | None:
    if instruction.opcode == "send":
        between = _BETWEEN_SLICES.search(instruction.rest)
        if not between:
            return None
        # The type of a send is (what is sent, context, token).
        data = instruction.type.removeprefix("(").split("{")[0]
        return between[1].lower().replace("_", "-"), "DCN", result_bytes(data)
    found = collective(instruction.opcode, instruction.type)
    return (found[0], "ICI", found[1]) if found else None
