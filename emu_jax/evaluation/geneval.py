"""GenEval (Ghosh et al. 2023, arXiv 2310.11513): its prompts' form and its rules.

A file has one JSON object per line: the ``prompt``, its task as ``tag`` (single_object, two_object,
counting, colors, position, color_attr), clauses to ``include`` and, for counting, to ``exclude``:

    {"tag": "position", "include": [{"class": "dog", "count": 1},
     {"class": "tv", "count": 1, "position": ["right of", 0]}], "prompt": "a tv right of a dog"}

An image is right if

    things     every class to include has at least ``count`` instances
    count      every class to exclude has fewer than ``count``
    color      of the best ``count`` instances of a class all have its ``color``
    relation   these are at the ``position`` of those of the clause that it names by its number

At most 16 instances of a class count. A detector decides itself from which score on an instance
counts: the published Mask2Former's are above 0.3, in the task counting above 0.9.
The published color of an instance is CLIP's (:mod:`emu_jax.evaluation.clip_colors`).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from emu_jax.checkpoint.foreign import parse_json
from emu_jax.errors import UserError
from emu_jax.evaluation.compositions import POSITIONS, related
from emu_jax.evaluation.instances import Instance

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
_MOST = 16  # instances of a class


@dataclass(frozen=True)
class Clause:
    """``count`` instances of a thing. ``position`` is relative to the clause of number ``other``;
    without a color or position it is empty.
    """

    thing: str
    count: int
    color: str = ""
    position: str = ""
    other: int = 0


@dataclass(frozen=True)
class GenEval:
    """What a prompt of GenEval asks for. It answers as
    :class:`emu_jax.evaluation.compositions.Composition` does.
    """

    kind: str
    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...] = ()

    @property
    def things(self) -> tuple[str, ...]:
        return tuple(clause.thing for clause in (*self.include, *self.exclude))

    @property
    def count(self) -> int:
        return sum(clause.count for clause in self.include)

    def answers(self, seen: Sequence[Instance]) -> dict[str, bool]:
        """``seen`` are best first."""
        by_thing = {
            thing: [one for one in seen if one.label == thing][:_MOST] for thing in self.things
        }
        best = [by_thing[clause.thing][: clause.count] for clause in self.include]
        there = [len(own) == clause.count for own, clause in zip(best, self.include, strict=True)]
        found = {"things": all(there)}
        if self.exclude:
            found["count"] = all(len(by_thing[one.thing]) < one.count for one in self.exclude)
        pairs = list(zip(best, there, self.include, strict=True))
        if any(clause.color for clause in self.include):
            found["color"] = all(
                enough and all(one.color == clause.color for one in own)
                for own, enough, clause in pairs
                if clause.color
            )
        if any(clause.position for clause in self.include):
            found["relation"] = all(
                enough
                and there[clause.other]
                and all(
                    related(clause.position, a.box, b.box)
                    for a, b in product(own, best[clause.other])
                )
                for own, enough, clause in pairs
                if clause.position
            )
        return found


def read_lines(lines: Iterable[str], source: str) -> tuple[list[str], dict[str, list[str]]]:
    """The prompts of a file's lines, and their columns: ``kind`` is the task, ``geneval`` the whole
    line.

    Raises:
      UserError: a line is not of this form.
    """
    prompts: list[str] = []
    columns: dict[str, list[str]] = {"kind": [], "geneval": []}
    for number, line in enumerate(lines, 1):
        if line.strip():
            entry = parse_json(line.encode(), f"{source}, line {number}")
            if not isinstance(entry.get("prompt"), str) or not entry["prompt"].strip():
                raise UserError(f"{source}, line {number} has no prompt.")
            prompts.append(entry["prompt"].strip())
            columns["geneval"].append(json.dumps(entry))
            columns["kind"].append(from_json(columns["geneval"][-1]).kind)
    if not prompts:
        raise UserError(f"The file {source} has no prompts.")
    return prompts, columns


def from_json(text: str) -> GenEval:
    """What a line asks for.

    Raises:
      UserError: the line is not of this form.
    """
    entry = parse_json(text.encode(), "a line of GenEval")
    try:
        include, exclude = (
            tuple(map(_clause, entry.get(key) or ())) for key in ("include", "exclude")
        )
        kind = entry["tag"]
        known = all(0 <= one.other < i for i, one in enumerate(include) if one.position)
        if not isinstance(kind, str) or not include or not known:
            raise ValueError("no tag, nothing to include, or a position of no earlier clause")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{text} is not a line of GenEval's form: {error}.") from error
    return GenEval(kind, include, exclude)


def _clause(entry: Mapping[str, Any]) -> Clause:
    thing, count, color = entry["class"], entry["count"], entry.get("color") or ""
    position, other = entry.get("position") or ("", 0)
    if position and position not in POSITIONS:
        raise ValueError(f"the position {position!r} is not one of {', '.join(POSITIONS)}")
    if not (isinstance(thing, str) and isinstance(color, str)):
        raise TypeError("class and color are texts")
    if not all(type(number) is int for number in (count, other)) or count < 1:
        raise TypeError("count and the number of a clause are whole numbers")
    return Clause(thing, count, color, position, other)
