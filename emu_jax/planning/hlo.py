"""A compiled program read from its text: instructions, how often each runs, what it costs.

``compiled.as_text()`` is a list of computations, each a list of instructions. The entry runs once;
the body of a while loop runs as often as the loop turns; what is inside a fusion runs as part of
it. Of loops whose condition is ``i < constant`` (all that jax.lax.scan makes), i is taken to start
at the constant it is initialised with, else at 0, and to go up by 1.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

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
# What passes an integer on as it is, on the way from a constant to the loop it starts.
_PASSES_ON = {"copy", "bitcast", "convert", "copy-start", "copy-done", "optimization-barrier"}

Shape = tuple[str, tuple[int, ...]]  # dtype and dimensions


@dataclass(frozen=True)
class Instruction:
    """``type`` is that of its result; ``rest`` what follows the operands."""

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
        """What the TPU compiler expects it to take; 0 where it does not say."""
        return int(self._find(r'"estimated_cycles":"(\d+)"') or 0)

    @property
    def op_name(self) -> str:
        """Where it came from, e.g. ``jit(step)/transpose(jvp())/dot_general``."""
        return self._find(r'op_name="([^"]*)"')

    @property
    def frame(self) -> int:
        return int(self._find(r"stack_frame_id=(\d+)") or 0)

    @property
    def target(self) -> str:
        """Of a custom call."""
        return self._find(r'custom_call_target="([^"]*)"')

    @cached_property
    def calls(self) -> dict[str, tuple[str, ...]]:
        """How (``body``, ``calls``, ...) -> the names of the computations that it calls."""
        return {how: tuple(_NAME.findall(names)) for how, names in _CALLS.findall(self.rest)}

    def _find(self, pattern: str) -> str:
        match = re.search(pattern, self.rest)
        return match[1] if match else ""


@dataclass(frozen=True)
class Program:
    """Computations by name, and the call stacks that instructions came from."""

    entry: str
    computations: dict[str, list[Instruction]]
    frames: dict[int, tuple[tuple[str, str], ...]] = field(default_factory=dict)

    @cached_property
    def by_name(self) -> dict[str, Instruction]:
        """Names of instructions are unique in a program."""
        return {i.name: i for computation in self.computations.values() for i in computation}

    def run(self) -> Iterator[tuple[Instruction, int]]:
        """Every instruction that is executed on its own, and how often; of a conditional, the
        branch that costs most."""
        yield from self._run(self.entry, 1)

    def open_loops(self) -> int:
        """Loops of unknown length among what runs: they count once."""
        return sum(i.opcode == "while" and self.trips(i) is None for i, _ in self.run())

    def inside(self, instruction: Instruction) -> Iterator[Instruction]:
        """What a fusion is made of, fusions within it included."""
        for name in instruction.calls.get("calls", ()):
            for inner in self.computations[name]:
                yield inner
                yield from self.inside(inner)

    def trips(self, loop: Instruction) -> int | None:
        """How often a while loop turns; None: its text does not say."""
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
        while value.opcode in _PASSES_ON:
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
    """The program in ``compiled.as_text()``."""
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
    """Lines, those put together that are one instruction: a kernel's attributes have breaks."""
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
    """The arrays in the text of a type, a tuple's one after the other."""
    return [
        (match["dtype"], tuple(int(n) for n in match["dims"].split(",") if n))
        for match in _ARRAY.finditer(text)
    ]


def _instruction(line: str) -> Instruction:
    left, _, right = line.strip().partition(" = ")
    end = _closing(right, 0) if right.startswith("(") else right.index(" ")
    kind, right = right[:end], right[end:].lstrip()
    opcode, _, _ = right.partition("(")
    end = _closing(right, len(opcode))
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


def _closing(text: str, start: int) -> int:
    """The index behind the bracket that closes the one at ``start``."""
    depth = 0
    for i in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if not depth:
            return i + 1
    return len(text)


def _is_integer(instruction: Instruction) -> bool:
    return instruction.opcode == "constant" and instruction.argument.lstrip("-").isdigit()


def _frames(tables: dict[str, dict[int, str]]) -> dict[int, tuple[tuple[str, str], ...]]:
    """Frame -> its call stack as (file, function), outermost first."""
    if len(tables) < len(_FRAME_TABLES):
        return {}
    files, functions, locations, frames = (tables[name] for name in _FRAME_TABLES)

    def numbers(text: str) -> dict[str, int]:
        return {key: int(n) for key, n in re.findall(r"(\w+)=(\d+)", text)}

    places = {}
    for number, text in locations.items():
        found = numbers(text)
        file, function = files[found["file_name_id"]], functions[found["function_name_id"]]
        places[number] = (file.strip('"'), function.strip('"'))
    stacks: dict[int, tuple[tuple[str, str], ...]] = {}
    for number, text in sorted(frames.items()):
        found = numbers(text)
        # Parents are counted from 0 = none, frames from 1, and both are printed from 1.
        above = stacks.get(found.get("parent_frame_id", 1) - 1, ())
        stacks[number] = (*above, places[found["file_location_id"]])
    return stacks
