"""A parser of compiled HLO text: instructions, how often each one runs, and its estimated cost.

``compiled.as_text()`` is a list of computations, each a list of instructions. The entry computation
runs once, the body of a while loop once per iteration, and instructions inside a fusion run as part
of it. For loops with the condition ``i < constant`` (all that jax.lax.scan makes), i is assumed to
increase by 1 and to start at the constant that initializes it, or at 0 if none is found.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from emu_jax.parallel.collectives import closing

_HEADER = re.compile(r"(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?[\w.\-]+ = ")
_NAME = re.compile(r"%([\w.\-]+)")
_ARRAY = re.compile(r"(?P<dtype>[a-z]+(?P<bits>\d+)?\w*)\[(?P<dims>[\d,]*)\]")
_CALLS = re.compile(
    r"\b(calls|to_apply|body|condition|branch_computations|true_computation|false_computation)"
    r"=(\{[^}]*\}|%[\w.\-]+)"
)
_BRANCHES = ("branch_computations", "true_computation", "false_computation")
_FRAME_TABLES = ("FileNames", "FunctionNames", "FileLocations", "StackFrames")
# Instructions that leave an integer unchanged, between a constant and the loop that it initializes.
_FORWARDING = {"copy", "bitcast", "convert", "copy-start", "copy-done", "optimization-barrier"}

Shape = tuple[str, tuple[int, ...]]  # dtype and dimensions


@dataclass(frozen=True)
class Instruction:
    """One instruction. ``type`` is the type of its result; ``argument`` is the text in the
    parentheses; ``rest`` is the text after them.
    """

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    argument: str
    rest: str
    root: bool

    @property
    def shapes(self) -> list[Shape]:
        return shapes(self.type)

    @property
    def cycles(self) -> int:
        """The TPU compiler's estimate of its cycles; 0 if there is none."""
        return int(self._find(r'"estimated_cycles":"(\d+)"') or 0)

    @property
    def op_name(self) -> str:
        """Its origin in the jax program, e.g. ``jit(step)/transpose(jvp())/dot_general``."""
        return self._find(r'op_name="([^"]*)"')

    @property
    def frame(self) -> int:
        return int(self._find(r"stack_frame_id=(\d+)") or 0)

    @property
    def target(self) -> str:
        """The target of a custom call."""
        return self._find(r'custom_call_target="([^"]*)"')

    @cached_property
    def calls(self) -> dict[str, tuple[str, ...]]:
        """Attribute (``body``, ``calls``, ...) -> the names of the computations that it calls."""
        return {how: tuple(_NAME.findall(names)) for how, names in _CALLS.findall(self.rest)}

    def _find(self, pattern: str) -> str:
        match = re.search(pattern, self.rest)
        return match[1] if match else ""


@dataclass(frozen=True)
class Program:
    """Computations by name, and the Python call stacks of the instructions by frame number."""

    entry: str
    computations: dict[str, list[Instruction]]
    frames: dict[int, tuple[tuple[str, str], ...]] = field(default_factory=dict)

    @cached_property
    def by_name(self) -> dict[str, Instruction]:
        """Instructions by name; names are unique in a program."""
        return {i.name: i for computation in self.computations.values() for i in computation}

    def run(self) -> Iterator[tuple[Instruction, int]]:
        """Every instruction that is executed on its own, and how often it runs. A conditional runs
        its most expensive branch.
        """
        yield from self._run(self.entry, 1)

    def open_loops(self) -> int:
        """The number of loops with an unknown trip count; the body of each counts once."""
        return sum(i.opcode == "while" and self.trips(i) is None for i, _ in self.run())

    def inside(self, instruction: Instruction) -> Iterator[Instruction]:
        """The instructions of a fusion, including those of nested fusions."""
        for name in instruction.calls.get("calls", ()):
            for inner in self.computations[name]:
                yield inner
                yield from self.inside(inner)

    def trips(self, loop: Instruction) -> int | None:
        """The trip count of a while loop; None if its text does not give it."""
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest)
        if known:
            return int(known[1])
        (name,) = loop.calls["condition"]
        condition = [x for i in self.computations[name] for x in (i, *self.inside(i))]
        compares = [i for i in condition if i.opcode == "compare"]
        limits = [int(i.argument) for i in condition if _is_integer(i)]
        if len(compares) != 1 or len(limits) != 1 or "direction=LT" not in compares[0].rest:
            return None
        return limits[0] - self._start(loop, condition)

    def _start(self, loop: Instruction, condition: list[Instruction]) -> int:
        counters = [i for i in condition if i.opcode == "get-tuple-element"]
        initial = self.by_name[loop.operands[0]]
        if len(counters) != 1 or initial.opcode != "tuple":
            return 0
        index = re.search(r"index=(\d+)", counters[0].rest)
        if not index:
            return 0
        value = self.by_name[initial.operands[int(index[1])]]
        while value.opcode in _FORWARDING:
            value = self.by_name[value.operands[0]]
        return int(value.argument) if _is_integer(value) else 0

    def _run(self, name: str, times: int) -> Iterator[tuple[Instruction, int]]:
        for instruction in self.computations[name]:
            yield instruction, times
            calls = instruction.calls
            if instruction.opcode == "while":
                trips = self.trips(instruction)
                yield from self._run(calls["body"][0], times * (1 if trips is None else trips))
            elif instruction.opcode == "conditional":
                names = [name for how in _BRANCHES for name in calls.get(how, ())]
                branches = [list(self._run(branch, times)) for branch in names]
                yield from max(branches, key=lambda ran: sum(i.cycles * n for i, n in ran))
            elif instruction.opcode in ("call", "async-start"):
                for called in (*calls.get("to_apply", ()), *calls.get("calls", ())):
                    yield from self._run(called, times)


def read_program(text: str) -> Program:
    """Parses ``compiled.as_text()``."""
    computations: dict[str, list[Instruction]] = {}
    tables: dict[str, dict[int, str]] = {}
    entry, current, table = "", None, None
    for line in _joined(text):
        if current is not None:
            if line == "}":
                current = None
            else:
                current.append(_instruction(line))
        elif line in _FRAME_TABLES:
            table = tables.setdefault(line, {})
        elif header := _HEADER.match(line):
            current = computations.setdefault(header["name"], [])
            entry = header["name"] if header["entry"] else entry
            table = None
        elif table is not None and line[:1].isdigit():
            number, _, entry_text = line.partition(" ")
            table[int(number)] = entry_text
    return Program(entry, computations, _frames(tables))


def _joined(text: str) -> Iterator[str]:
    """The lines, with the lines of one instruction joined: a kernel's attributes span several."""
    pending = ""
    for line in text.splitlines():
        if pending and not _INSTRUCTION.match(line) and line != "}":
            pending += line
            continue
        if pending:
            yield pending
        pending = line if _INSTRUCTION.match(line) else ""
        if not pending:
            yield line


def shapes(text: str) -> list[Shape]:
    """The arrays in the text of a type; a tuple type gives all its arrays in order."""
    return [
        (match["dtype"], tuple(int(n) for n in match["dims"].split(",") if n))
        for match in _ARRAY.finditer(text)
    ]


def _instruction(line: str) -> Instruction:
    left, _, right = line.strip().partition(" = ")
    end = closing(right, 0) if right.startswith("(") else right.index(" ")
    kind, right = right[:end], right[end:].lstrip()
    opcode, _, _ = right.partition("(")
    end = closing(right, len(opcode))
    argument = right[len(opcode) + 1 : end - 1]
    return Instruction(
        name=left.removeprefix("ROOT ").lstrip("%"),
        type=kind,
        opcode=opcode,
        operands=tuple(_NAME.findall(argument)),
        argument=argument,
        rest=right[end:],
        root=left.startswith("ROOT "),
    )


def _is_integer(instruction: Instruction) -> bool:
    return instruction.opcode == "constant" and instruction.argument.lstrip("-").isdigit()


def _frames(tables: dict[str, dict[int, str]]) -> dict[int, tuple[tuple[str, str], ...]]:
    """Frame -> its call stack as (file, function), outermost first."""
    if len(tables) < len(_FRAME_TABLES):
        return {}
    files, functions, locations, frames = (tables[name] for name in _FRAME_TABLES)

    def numbers(text: str) -> dict[str, int]:
        return {key: int(n) for key, n in re.findall(r"(\w+)=(\d+)", text)}

    origins = {}
    for number, text in locations.items():
        found = numbers(text)
        file, function = files[found["file_name_id"]], functions[found["function_name_id"]]
        origins[number] = (file.strip('"'), function.strip('"'))
    stacks: dict[int, tuple[tuple[str, str], ...]] = {}
    for number, text in sorted(frames.items()):
        found = numbers(text)
        # Frames are numbered from 1. A parent is printed as its number + 1, so that 1 means none.
        outer = stacks.get(found.get("parent_frame_id", 1) - 1, ())
        stacks[number] = (*outer, origins[found["file_location_id"]])
    return stacks
