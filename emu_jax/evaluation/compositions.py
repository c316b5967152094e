"""What a prompt asks for, and whether an image shows it.

A prompt table describes its prompts in the columns of the data set `scenes`: ``kind``, ``things``
and ``colors`` (lists, separated by ``|``), ``count`` and ``relation``. :func:`expected` reads a row
of it. A composition answers up to four questions about the instances that a detector sees:

    count      there are exactly as many instances as asked for
    things     every thing is there and no other
    color      every thing that should have a color has that color and no other
    relation   the best instance of the first thing is placed to that of the second as asked

An image is right if the answer to all of them is yes. Count, color and relation do not depend on
other things: two blue cars in place of one have a wrong count and the right color. A thing that is
not there has neither a color nor a place. One thing that a detector sees under two labels has the
label of the higher score (:func:`emu_jax.evaluation.instances.distinct`).

Relations are layouts, as the scenes are drawn. With x, y, w, h the centers and extents of the two
boxes (y points down), 1 and 2 for the first and second thing,

    dx = 2 (x2 - x1) / (w1 + w2),    dy = 2 (y2 - y1) / (h1 + h2)                          (1)
    s = max(w2, h2) / max(w1, h1)                                                          (2)

so that |dx| = 1 or |dy| = 1 for boxes that touch. A relation is a range of each (:data:`LAYOUTS`).
The ranges are wide, because a detector may miss thin parts, such as an umbrella's handle, but no
layout of a scene is in those of another relation. GenEval's positions
(:func:`relative_position`) are further relations: "left of", "right of", "above", "below".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from emu_jax.errors import UserError
from emu_jax.evaluation.instances import Box, Instance

COLUMNS = ("kind", "things", "colors", "count", "relation")
QUESTIONS = ("count", "things", "color", "relation")
UNREADABLE = "person"  # a kind without things that a detector knows
_OWN_COLORS = ("single", "count", "action")  # kinds of scenes whose prompts ask for no color
_POSITION_MARGIN = 0.1  # of GenEval

Range = tuple[float, float]
INFINITY = float("inf")


class Layout(NamedTuple):
    """Ranges of (1) and (2)."""

    dx: Range
    dy: Range
    size: Range


_MIDDLE = (-0.5, 0.5)
LAYOUTS = {
    "rides": Layout(_MIDDLE, (0.2, 1.25), (0.9, INFINITY)),
    "carries": Layout(_MIDDLE, (-1.25, -0.75), (0.0, 0.85)),
    "chases": Layout((-INFINITY, -0.9), (-0.6, 0.6), (0.75, INFINITY)),
    "kicks": Layout((-1.25, -0.6), (-0.2, 0.8), (0.0, 0.75)),
    "holds": Layout(_MIDDLE, (-0.5, 0.65), (0.0, 0.75)),
    "hides under": Layout(_MIDDLE, (-1.5, -0.3), (0.85, INFINITY)),
}
POSITIONS = ("left of", "right of", "above", "below")


@dataclass(frozen=True)
class Composition:
    """``things`` has one entry for each instance; ``colors[i]`` is that of ``things[i]``, empty if
    none is asked for. ``relation`` is of the first thing to the second.
    """

    kind: str
    things: tuple[str, ...]
    colors: tuple[str, ...]
    relation: str = ""

    @property
    def count(self) -> int:
        return len(self.things)

    def answers(self, seen: Sequence[Instance]) -> dict[str, bool]:
        """The answer to each question that the composition asks; ``seen`` are best first."""
        found = {
            "count": len(seen) == self.count,
            "things": {one.label for one in seen} == set(self.things),
        }
        if any(self.colors):
            found["color"] = all(
                self._colored(thing, {one.color for one in seen if one.label == thing})
                for thing in set(self.things)
            )
        if self.relation:
            found["relation"] = self._related(seen)
        return found

    def _colored(self, thing: str, seen: set[str]) -> bool:
        """Whether the instances of a thing have the colors asked for, of which ``seen`` are all."""
        pairs = zip(self.things, self.colors, strict=True)
        wanted = {color for name, color in pairs if name == thing}
        if "" not in wanted:
            return seen == wanted
        return wanted - {""} <= seen

    def _related(self, seen: Sequence[Instance]) -> bool:
        first, second = self.things[:2]
        ones = [one for one in seen if one.label == first]
        others = [one for one in seen if one.label == second]
        if first == second:  # Either of the two may be the first.
            pairs = [ones[:2], ones[1::-1]] if len(ones) > 1 else []
        else:
            pairs = [(ones[0], others[0])] if ones and others else []
        return any(related(self.relation, one.box, other.box) for one, other in pairs)


def expected(row: Mapping[str, str]) -> Composition | None:
    """What a row of a prompt table asks for; None if it names no things.

    Raises:
      UserError: a cell cannot be read.
    """
    kind = row.get("kind") or "other"
    things = tuple(row["things"].split("|")) if row.get("things") else ()
    if kind == UNREADABLE or not things:
        return None
    count = row.get("count") or str(len(things))
    if not count.isdecimal() or (len(things) > 1 and int(count) != len(things)) or count == "0":
        raise UserError(f"count is {count!r} for the things {'|'.join(things)}; give one for each.")
    colors = tuple((row.get("colors") or "").split("|"))
    if kind in _OWN_COLORS or not any(colors):
        colors = ("",) * len(things)
    if len(colors) != len(things):
        raise UserError(
            f"The things {'|'.join(things)} have the colors {'|'.join(colors)}: give one for each, "
            "separated by |; it may be empty."
        )
    if len(things) == 1:
        things, colors = things * int(count), colors * int(count)
    relation = row.get("relation", "")
    if relation and (relation not in (*LAYOUTS, *POSITIONS) or len(things) < 2):
        known = ", ".join((*LAYOUTS, *POSITIONS))
        raise UserError(
            f"The relation {relation!r} of {'|'.join(things)} cannot be read: use one of {known}, "
            "and two things."
        )
    return Composition(kind, things, colors, relation)


def related(relation: str, first: Box, second: Box) -> bool:
    """Whether two boxes stand in a relation."""
    if relation in POSITIONS:
        return relation in relative_position(first, second)
    (x1, y1), (x2, y2) = first.center, second.center
    dx = 2 * (x2 - x1) / (first.width + second.width)
    dy = 2 * (y2 - y1) / (first.height + second.height)
    size = max(second.width, second.height) / max(first.width, first.height)
    values = zip((dx, dy, size), LAYOUTS[relation], strict=True)
    return all(low <= value <= high for value, (low, high) in values)


def relative_position(one: Box, other: Box) -> set[str]:
    """GenEval's positions of one box relative to another, none, one or two.

    The offset of the centers, less a tenth of the summed extents along each axis, is divided by the
    distance of the centers; a component above one half is a position.
    """
    offset = np.subtract(one.center, other.center)
    margin = _POSITION_MARGIN * np.add((one.width, one.height), (other.width, other.height))
    rest = np.sign(offset) * np.maximum(np.abs(offset) - margin, 0)
    if np.all(np.abs(rest) < 1e-3):
        return set()
    dx, dy = rest / np.linalg.norm(offset)
    found = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}
    return {name for name, component in found.items() if component > 0.5}
