"""The next tasks of an annotator, and their answers.

An answer that was acknowledged is on the disk. Every attempt to send it carries the same key, so it
counts once however often a browser sends it; a task has one live answer at most, whichever tab
answers first.
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Select, bindparam, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from emu_jax.people import tables
from emu_jax.people.questions import QUESTIONS, RECALL, accepts, unswapped
from emu_jax.people.store import Store

AHEAD = 4  # tasks that a browser gets, and loads the images of
WALL = 48  # images on one page of the recall stage; a browser gets two pages
_LONGEST = 3600.0  # seconds
_PREDICT = 50  # answers whose time predicts the time that is left

# Statements are built once: that takes longer than to execute them.
_MINE = tables.tasks.c.annotator == bindparam("annotator")
_PUBLIC = tables.tasks.c.public == bindparam("public")
_LIVE = (tables.answers.c.task == tables.tasks.c.id) & (tables.answers.c.live == 1)
_TOTAL = func.count().over().label("total")  # rows without the limit
_TASK = (  # a task of the annotator, by its public name
    select(
        tables.tasks.c.id,
        tables.tasks.c.swapped,
        tables.items.c.question,
        tables.items.c.role,
        tables.items.c.expected,
    )
    .join(tables.items, tables.items.c.id == tables.tasks.c.item)
    .where(_MINE, _PUBLIC)
    # PostgreSQL: dealing cannot delete it before its answer is there. SQLite has one writer.
    .with_for_update(read=True, key_share=True, of=tables.tasks)
)
_FIRST, _SECOND = tables.images.alias(), tables.images.alias()
_FILES = (  # of the images of such a task
    select(tables.tasks.c.swapped, _FIRST.c.file.label("first"), _SECOND.c.file.label("second"))
    .join(tables.items, tables.items.c.id == tables.tasks.c.item)
    .join(_FIRST, _FIRST.c.id == tables.items.c.first)
    .outerjoin(_SECOND, _SECOND.c.id == tables.items.c.second)
    .where(_MINE, _PUBLIC)
)
_OPEN = (  # the annotator's tasks without a live answer, in their order
    select(
        tables.tasks.c.public,
        tables.items.c.question,
        tables.items.c.role,
        tables.prompts.c.text,
        tables.images.c.captions,
        _TOTAL,
    )
    .join(tables.items, tables.items.c.id == tables.tasks.c.item)
    .join(tables.images, tables.images.c.id == tables.items.c.first)
    .outerjoin(tables.prompts, tables.prompts.c.id == tables.items.c.prompt)
    .where(_MINE, ~select(tables.answers.c.id).where(_LIVE).exists())
    .order_by(tables.tasks.c.block, tables.tasks.c.position)
    .limit(bindparam("ahead"))
)
_RECENT = (  # the annotator's last answers
    select(tables.answers.c.seconds, _TOTAL)
    .join(tables.tasks, _LIVE)
    .where(_MINE)
    .order_by(tables.answers.c.id.desc())
    .limit(_PREDICT)
)
_INSERT = {  # sent before, or another tab was first: the first answer stays
    name: dialect.insert(tables.answers).on_conflict_do_nothing()
    for name, dialect in {"sqlite": sqlite, "postgresql": postgresql}.items()
}


class Refused(Exception):
    """A request that no correct browser sends; ``status`` is that of HTTP."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class Annotator:
    id: int
    name: str
    stopped: bool


def state(store: Store, annotator: Annotator) -> dict[str, Any]:
    """What a browser shows: the next tasks, the progress, and the expected time left."""
    ahead = 2 * WALL if store.kind == RECALL else AHEAD
    with store.read() as connection:
        rows = connection.execute(_OPEN, {"annotator": annotator.id, "ahead": ahead}).all()
        recent = connection.execute(_RECENT, {"annotator": annotator.id}).all()
    left = rows[0].total if rows else 0
    done = recent[0].total if recent else 0
    return {
        "tasks": [] if annotator.stopped else [_shown(row) for row in rows],
        "done": done,
        "total": done + left,
        "seconds": left * statistics.median(row.seconds for row in recent) if recent else None,
        "stopped": annotator.stopped,
    }


def record(store: Store, annotator: Annotator, sent: Mapping[str, Any]) -> dict[str, Any]:
    """Keeps an answer; returns the acknowledgement.

    Raises:
      Refused: the task is not the annotator's, or the answer is none of its question.
    """
    with store.write() as connection:
        return _keep(connection, annotator, sent, datetime.now(UTC))


def record_all(store: Store, annotator: Annotator, sent: list[Any]) -> dict[str, Any]:
    """Keeps several answers in one transaction; those that are refused are dropped, and the others
    are kept. Returns the acknowledgement of the last.
    """
    if len(sent) > 2 * WALL:
        raise Refused(413, "too many")
    acknowledged: dict[str, Any] = {"right": None}
    now = datetime.now(UTC)
    with store.write() as connection:
        for one in sent:
            try:
                acknowledged = _keep(
                    connection, annotator, one if isinstance(one, dict) else {}, now
                )
            except Refused as error:
                if error.status == 403:
                    raise
    return acknowledged


def undo(store: Store, annotator: Annotator) -> bool:
    """Takes the annotator's last answer back, and those of the same wall, which were sent with it;
    False if there is none.
    """
    answers, tasks, items = tables.answers, tables.tasks, tables.items
    with store.write() as connection:
        last = connection.execute(
            select(answers.c.id, answers.c.given, items.c.question)
            .join(tasks, tasks.c.id == answers.c.task)
            .join(items, items.c.id == tasks.c.item)
            .where(tasks.c.annotator == annotator.id, answers.c.live == 1)
            .order_by(answers.c.id.desc())
            .limit(1)
        ).one_or_none()
        if last is None or annotator.stopped:
            return False
        taken = answers.c.id == last.id
        if last.question == RECALL:
            mine = select(tasks.c.id).where(tasks.c.annotator == annotator.id)
            taken = (answers.c.given == last.given) & answers.c.task.in_(mine)
        connection.execute(update(answers).where(taken, answers.c.live == 1).values(live=None))
    return True


def image_of(store: Store, annotator: Annotator, public: str, side: str) -> str:
    """The file of the image on a side of one of the annotator's tasks."""
    with store.read() as connection:
        swapped, first, second = _found(connection, _FILES, annotator, public)
    return first if second is None or (side == "a") != swapped else second


def _keep(
    connection: Connection, annotator: Annotator, sent: Mapping[str, Any], now: datetime
) -> dict[str, Any]:
    public, answer, key, seconds = _read(sent)
    if annotator.stopped:
        raise Refused(403, "stopped")
    task = _found(connection, _TASK, annotator, public)
    if not accepts(task.question, answer):
        raise Refused(400, "answer")
    values = {
        "task": task.id,
        "live": 1,
        "key": key,
        "answer": answer,
        "seconds": min(seconds, _LONGEST),
        "given": now,
    }
    connection.execute(_INSERT[connection.dialect.name], values)
    return _acknowledged(task, answer)


def _read(sent: Mapping[str, Any]) -> tuple[str, Any, str, float]:
    """The task, the answer, its key and the seconds that it took."""
    match sent:
        case {"task": str(task), "answer": answer, "key": str(key), "seconds": seconds}:
            timed = isinstance(seconds, int | float) and not isinstance(seconds, bool)
            if timed and seconds >= 0 and 8 <= len(key) <= 64:  # NaN is not
                return task, answer, key, float(seconds)
    raise Refused(400, "malformed")


def _found(connection: Connection, query: Select, annotator: Annotator, public: str) -> Any:
    """The row of a task of this annotator, by its public name."""
    found = connection.execute(query, {"public": public, "annotator": annotator.id}).one_or_none()
    if found is None:
        raise Refused(404, "task")
    return found


def _shown(row: Any) -> dict[str, Any]:
    """A task as a browser gets it: nothing of models, sides or attention checks."""
    shown = {"id": row.public, "question": row.question, "training": row.role == "training"}
    if row.question in QUESTIONS:
        return {**shown, "prompt": row.text if QUESTIONS[row.question].shows_prompt else None}
    return {**shown, "captions": row.captions}


def _acknowledged(task: Any, answer: Any) -> dict[str, Any]:
    """Whether a training answer was right, and which are; nothing is said of others."""
    if task.role != "training":
        return {"right": None}
    expected = [unswapped(one, task.swapped) for one in task.expected]
    return {"right": answer in expected, "expected": expected}
