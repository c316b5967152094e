"""Who answers what, in which order, and on which sides.

Every item needs a number of votes by different annotators. The votes that are missing are dealt to
the annotators who work, so that all have equally much left to do; each gets the items in an order
of their own, with sides swapped by a draw of their own. Among them are attention checks, and items
that return later with their sides exchanged.

Dealing again, after annotators were added, stopped or left out, takes back the tasks that nobody
has answered, except the next few of each annotator, which a browser may have loaded already.
"""

import random
import secrets
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select

from emu_jax.people import tables
from emu_jax.people.answering import AHEAD, WALL
from emu_jax.people.questions import RECALL
from emu_jax.people.store import Store

LOADED = AHEAD + 1  # tasks that a browser may have loaded
_APART = 8  # tasks, at least, between an item and its return


def deal(store: Store) -> int:
    """Deals the missing votes. Returns how many of them no annotator is left for."""
    with store.write() as connection:
        return _deal(connection)


def _deal(connection: Connection) -> int:
    study = connection.execute(select(tables.study)).one()
    settings = study.settings
    working = list(
        connection.scalars(
            select(tables.annotators.c.id)
            .where(~tables.annotators.c.stopped, ~tables.annotators.c.left_out)
            .order_by(tables.annotators.c.id)
        )
    )
    _take_back(connection, working, 2 * WALL if study.kind == RECALL else LOADED)
    items = connection.execute(select(tables.items).order_by(tables.items.c.id)).all()
    questions = list(dict.fromkeys(item.question for item in items))
    held = _held(connection)
    undealt = 0
    rows: list[dict[str, Any]] = []
    for block, question in enumerate(questions):
        own = [item for item in items if item.question == question]
        new, missing = _share_out(own, held, working, f"{settings['seed']} {question} {len(held)}")
        undealt += missing
        for annotator in working:
            rows += _row_up(annotator, block, own, new[annotator], held, settings)
    if rows:
        connection.execute(insert(tables.tasks), rows)
    return undealt


def _take_back(connection: Connection, working: Sequence[int], loaded: int) -> None:
    """Deletes the tasks that nobody has answered, except the next few of those who work."""
    tasks, answers = tables.tasks, tables.answers
    order = (tasks.c.block, tasks.c.position)
    place = func.row_number().over(partition_by=tasks.c.annotator, order_by=order)
    untouched = (
        select(tasks.c.id, tasks.c.annotator, place.label("place"))
        .where(~select(answers.c.id).where(answers.c.task == tasks.c.id).exists())
        .subquery()
    )
    kept = (untouched.c.annotator.in_(working)) & (untouched.c.place <= loaded)
    taken = list(connection.scalars(select(untouched.c.id).where(~kept)))
    for start in range(0, len(taken), 500):
        connection.execute(delete(tasks).where(tasks.c.id.in_(taken[start : start + 500])))


def _held(connection: Connection) -> list[Any]:
    """The tasks that exist, with what is known of their items and annotators."""
    tasks, items, answers = tables.tasks, tables.items, tables.answers
    live = select(answers.c.id).where(answers.c.task == tasks.c.id, answers.c.live == 1).exists()
    query = (
        select(tasks, items.c.role, live.label("answered"), tables.annotators.c.left_out)
        .join(items, items.c.id == tasks.c.item)
        .join(tables.annotators, tables.annotators.c.id == tasks.c.annotator)
    )
    return list(connection.execute(query))


def _share_out(
    items: Sequence[Any], held: Sequence[Any], working: Sequence[int], seed: str
) -> tuple[Mapping[int, list[int]], int]:
    """The new items of each annotator, and the number of votes that nobody is left for."""
    wanted = {item.id: item.votes for item in items if item.role == "study"}
    had: dict[int, set[int]] = defaultdict(set)
    load = Counter(dict.fromkeys(working, 0))
    for task in held:
        if task.item not in wanted:
            continue
        had[task.annotator].add(task.item)
        counts = not task.repeated and not task.left_out
        if counts and (task.answered or task.annotator in load):
            wanted[task.item] -= 1
        if task.annotator in load and not task.answered:
            load[task.annotator] += 1
    generator = random.Random(seed)
    new: dict[int, list[int]] = {annotator: [] for annotator in working}
    order, undealt = list(wanted), 0
    generator.shuffle(order)
    for item in order:
        free = [annotator for annotator in working if item not in had[annotator]]
        generator.shuffle(free)
        chosen = sorted(free, key=load.__getitem__)[: max(0, wanted[item])]
        undealt += max(0, wanted[item]) - len(chosen)
        for annotator in chosen:
            new[annotator].append(item)
            load[annotator] += 1
    return new, undealt


def _row_up(
    annotator: int,
    block: int,
    items: Sequence[Any],
    new: Sequence[int],
    held: Sequence[Any],
    settings: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """The rows of an annotator's new tasks of one question, in their order."""
    mine = [task for task in held if task.annotator == annotator and task.block == block]
    if not new and not mine:
        return []
    last = max((task.position for task in mine), default=-1)
    generator = random.Random(f"{settings['seed']} {annotator} {block} {last}")
    queue = [(item, _swapped(settings["seed"], annotator, item), False) for item in new]
    generator.shuffle(queue)
    total = len(new) + sum(task.role == "study" and not task.repeated for task in mine)

    def more(share: str, there: int) -> int:
        return max(0, round(settings.get(share, 0) * total) - there) if new else 0

    again = more("repeated", sum(task.repeated for task in mine))
    sources = generator.sample(range(len(queue)), min(again, len(queue)))
    for item, swapped, _ in [queue[i] for i in sources]:
        place = queue.index((item, swapped, False))
        at = generator.randint(min(place + _APART, len(queue)), len(queue))
        queue.insert(at, (item, not swapped, True))
    checks = [item.id for item in items if item.role == "gold"]
    seen = Counter(task.item for task in mine if task.role == "gold")
    generator.shuffle(checks)
    checks.sort(key=seen.__getitem__)
    for i in range(more("gold", seen.total()) if checks else 0):
        check = (checks[i % len(checks)], generator.random() < 0.5, False)
        queue.insert(generator.randint(0, len(queue)), check)
    if not mine:
        lessons = [item.id for item in items if item.role == "training"]
        queue = [(item, generator.random() < 0.5, False) for item in lessons] + queue
    return [
        {
            "public": secrets.token_hex(16),
            "annotator": annotator,
            "item": item,
            "block": block,
            "position": last + 1 + i,
            "swapped": swapped,
            "repeated": repeated,
        }
        for i, (item, swapped, repeated) in enumerate(queue)
    ]


def _swapped(seed: int, annotator: int, item: int) -> bool:
    """The side of an item's first image for an annotator."""
    return random.Random(f"sides {seed} {annotator} {item}").random() < 0.5
