"""The answers of a study as rows, and what they say of annotators and pairs."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
from sqlalchemy import func, select

from emu_jax.evaluation.preferences import Votes
from emu_jax.people import tables
from emu_jax.people.questions import QUESTIONS, outcome, unswapped
from emu_jax.people.store import Store


class Row(NamedTuple):
    """One live answer."""

    question: str
    role: str
    item: int
    prompt: int | None
    key: str  # of a data set's record, where it is about one
    first: str  # the models of the pair; empty for checks and training
    second: str
    annotator: int
    left_out: bool
    answer: Any  # as given
    swapped: bool
    repeated: bool
    expected: Sequence[str] | None
    seconds: float
    given: datetime

    @property
    def outcome(self) -> int:
        """Whether the second model wins, ties or loses."""
        return outcome(self.answer, self.swapped)

    @property
    def right(self) -> bool | None:
        """Of a check: whether the answer is right."""
        if self.expected is None:
            return None
        return unswapped(self.answer, self.swapped) in self.expected

    @property
    def shown(self) -> tuple[str, str]:
        """The models of A and B."""
        return (self.second, self.first) if self.swapped else (self.first, self.second)

    @property
    def counts(self) -> bool:
        """Whether the answer is a vote."""
        return self.role == "study" and not self.repeated and not self.left_out


class Conduct(NamedTuple):
    """How an annotator answers one question."""

    answers: int
    seconds: float | None  # the median
    side_a: float | None  # share of A among A and B: near one half, sides being drawn
    checks: tuple[int, int]  # right, all
    same: tuple[int, int]  # repeated pairs with the same outcome as before, all


@dataclass(frozen=True)
class Progress:
    """The work of one annotator."""

    id: int
    name: str
    stopped: bool
    left_out: bool
    seen: datetime | None  # the last answer
    done: int
    total: int
    conduct: Conduct


class ItemVotes(NamedTuple):
    """The votes of one pair, or of one image of a data set."""

    question: str
    about: str  # the prompt, or the key of the image
    models: tuple[str, str]
    votes: int
    wanted: int


def answer_rows(store: Store) -> list[Row]:
    """All live answers, in the order in which they were given."""
    answers, tasks, items, people = tables.answers, tables.tasks, tables.items, tables.annotators
    first, second = tables.images.alias(), tables.images.alias()
    a, b = tables.models.alias(), tables.models.alias()
    query = (
        select(
            items.c.question,
            items.c.role,
            items.c.id,
            items.c.prompt,
            func.coalesce(first.c.key, ""),
            func.coalesce(a.c.name, ""),
            func.coalesce(b.c.name, ""),
            people.c.id,
            people.c.left_out,
            answers.c.answer,
            tasks.c.swapped,
            tasks.c.repeated,
            items.c.expected,
            answers.c.seconds,
            answers.c.given,
        )
        .join(tasks, tasks.c.id == answers.c.task)
        .join(items, items.c.id == tasks.c.item)
        .join(people, people.c.id == tasks.c.annotator)
        .join(first, first.c.id == items.c.first)
        .outerjoin(second, second.c.id == items.c.second)
        .outerjoin(a, a.c.id == first.c.model)
        .outerjoin(b, b.c.id == second.c.model)
        .where(answers.c.live == 1)
        .order_by(answers.c.id)
    )
    with store.read() as connection:
        return [Row(*row) for row in connection.execute(query)]


def votes(rows: Iterable[Row], question: str, first: str, second: str) -> Votes:
    """The votes that count, of one question on the pairs of two models."""
    found = [
        (row.prompt, row.annotator, row.outcome)
        for row in rows
        if row.counts and (row.question, row.first, row.second) == (question, first, second)
    ]
    columns = np.array(found, np.int64).reshape(-1, 3).T
    return Votes(*columns)


def conduct(rows: Sequence[Row]) -> Conduct:
    """Of the answers of one annotator; those of the training round do not matter."""
    own = [row for row in rows if row.role != "training"]
    sides = [row.answer for row in own if row.question in QUESTIONS and row.answer in ("a", "b")]
    checks = [row.right for row in own if row.role == "gold"]
    again = {row.item: row.outcome for row in own if row.repeated}
    same = [row.outcome == again[row.item] for row in own if row.item in again and not row.repeated]
    return Conduct(
        len(own),
        statistics.median(row.seconds for row in own) if own else None,
        sides.count("a") / len(sides) if sides else None,
        (sum(map(bool, checks)), len(checks)),
        (sum(same), len(same)),
    )


def progress(store: Store, rows: Sequence[Row]) -> list[Progress]:
    """The work of every annotator."""
    of: Mapping[int, list[Row]] = defaultdict(list)
    for row in rows:
        of[row.annotator].append(row)
    people, tasks = tables.annotators, tables.tasks
    query = (
        select(people, func.count(tasks.c.id).label("total"))
        .outerjoin(tasks, tasks.c.annotator == people.c.id)
        .group_by(people.c.id)
        .order_by(people.c.id)
    )
    with store.read() as connection:
        return [
            Progress(
                row.id,
                row.name,
                row.stopped,
                row.left_out,
                max((answer.given for answer in of[row.id]), default=None),
                len(of[row.id]),
                row.total,
                conduct(of[row.id]),
            )
            for row in connection.execute(query)
        ]


def item_votes(store: Store, rows: Iterable[Row]) -> list[ItemVotes]:
    """The votes of every pair, or image, so far."""
    items, first, second = tables.items, tables.images.alias(), tables.images.alias()
    a, b = tables.models.alias(), tables.models.alias()
    query = (
        select(
            items.c.id,
            items.c.question,
            func.coalesce(first.c.key, tables.prompts.c.text),
            func.coalesce(a.c.label, ""),
            func.coalesce(b.c.label, ""),
            items.c.votes,
        )
        .join(first, first.c.id == items.c.first)
        .outerjoin(second, second.c.id == items.c.second)
        .outerjoin(a, a.c.id == first.c.model)
        .outerjoin(b, b.c.id == second.c.model)
        .outerjoin(tables.prompts, tables.prompts.c.id == items.c.prompt)
        .where(items.c.role == "study")
        .order_by(items.c.id)
    )
    had = Counter(row.item for row in rows if row.counts)
    with store.read() as connection:
        return [
            ItemVotes(question, about, (one, other), had[item], wanted)
            for item, question, about, one, other, wanted in connection.execute(query)
        ]


def coverage(found: Iterable[ItemVotes]) -> dict[str, dict[int, int]]:
    """Of every question: how many pairs, or images, have 0, 1, 2, ... votes."""
    of: dict[str, Counter[int]] = defaultdict(Counter)
    for one in found:
        of[one.question][one.votes] += 1
    return {question: dict(sorted(counts.items())) for question, counts in of.items()}


def missing_votes(found: Iterable[ItemVotes]) -> dict[str, int]:
    """Of every question: how many votes are still missing."""
    missing: Counter[str] = Counter()
    for one in found:
        missing[one.question] += max(0, one.wanted - one.votes)
    return dict(missing)


def names(store: Store) -> dict[str, str]:
    """The labels of the models by name, in their order."""
    with store.read() as connection:
        rows: Iterable[Any] = connection.execute(select(tables.models).order_by(tables.models.c.id))
        return {row.name: row.label for row in rows}
