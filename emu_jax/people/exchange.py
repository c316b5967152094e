"""Answers as files: export as CSV and parquet, import of CSV and of Label Studio's JSON.

One row is one answer, as it was given:

    question    appeal or faithfulness; of curation: the stage
    annotator   a name
    prompt      its text
    model_a     the model of image A, as the annotator saw it; model_b likewise
    answer      a, b, tie, both or neither; of curation: good or bad, or JSON
    key         of curation: the key of the image in the data set
    winner      the model that was preferred, or "tie"
    role        study, or gold (an attention check, without models); training is not exported
    repeated    whether the annotator had had the pair before
    left_out    whether the lab has left the annotator out
    seconds     from the moment at which both images were visible
    given       UTC, ISO 8601

Import reads the first six of them, and seconds and given where they are there.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath
from sqlalchemy import insert, select

from emu_jax.data.textfile import read_text
from emu_jax.errors import UserError
from emu_jax.people import tables
from emu_jax.people.access import digest, new_token
from emu_jax.people.questions import QUESTIONS
from emu_jax.people.results import Row, answer_rows
from emu_jax.people.store import Store

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")
NEEDED = ("question", "annotator", "prompt", "model_a", "model_b", "answer")


def export_rows(store: Store) -> list[dict[str, Any]]:
    """The rows of an export."""
    with store.read() as connection:
        people = dict(
            connection.execute(select(tables.annotators.c.id, tables.annotators.c.name)).all()
        )
        prompts = dict(connection.execute(select(tables.prompts.c.id, tables.prompts.c.text)).all())
    return [
        {
            "question": row.question,
            "annotator": people[row.annotator],
            "prompt": prompts.get(row.prompt, ""),
            "key": row.key,
            "model_a": row.shown[0],
            "model_b": row.shown[1],
            "answer": row.answer if isinstance(row.answer, str) else json.dumps(row.answer),
            "winner": _winner(row),
            "role": row.role,
            "repeated": row.repeated,
            "left_out": row.left_out,
            "seconds": round(row.seconds, 3),
            "given": _utc(row.given).isoformat(timespec="seconds"),
        }
        for row in answer_rows(store)
        if row.role != "training"
    ]


def as_csv(store: Store) -> bytes:
    rows = export_rows(store)
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, _schema().names)
    writer.writeheader()
    writer.writerows({name: _guarded(value) for name, value in row.items()} for row in rows)
    return stream.getvalue().encode()


def _guarded(value: Any) -> Any:
    """Text that a spreadsheet would take for a formula gets an apostrophe in front."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _plain(value: Any) -> Any:
    """The inverse of :func:`_guarded`."""
    guarded = isinstance(value, str) and value[:1] == "'" and value[1:].startswith(_FORMULA)
    return value[1:] if guarded else value


def as_parquet(store: Store) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(export_rows(store), schema=_schema()), stream)
    return stream.getvalue()


def import_answers(store: Store, path: epath.PathLike) -> int:
    """Adds the answers of a file to the study; its annotators become annotators of the study who
    are stopped. Returns the number of answers. Nothing is added if a row cannot be used.

    Raises:
      UserError: the file cannot be read, or a row is not of this study.
    """
    file = epath.Path(path)
    if not file.is_file():
        raise UserError(f"There is no file {path}.")
    rows = _label_studio(file) if file.suffix == ".json" else _csv(file)
    return _insert(store, rows)


def _insert(store: Store, rows: Iterator[tuple[str, Mapping[str, Any]]]) -> int:
    first, second = tables.images.alias(), tables.images.alias()
    items, models = tables.items, tables.models
    with store.write() as connection:
        named = {}
        for row in connection.execute(select(models)):
            named[row.label] = named[row.name] = row.id
        found = {
            (row.question, row.text, row.a, row.b): row.id
            for row in connection.execute(
                select(
                    items.c.question,
                    tables.prompts.c.text,
                    first.c.model.label("a"),
                    second.c.model.label("b"),
                    items.c.id,
                )
                .join(tables.prompts, tables.prompts.c.id == items.c.prompt)
                .join(first, first.c.id == items.c.first)
                .join(second, second.c.id == items.c.second)
                .where(items.c.role == "study")
            )
        }
        questions = list(QUESTIONS)
        people: dict[str, int] = {}
        given: set[tuple[int, int]] = set()
        for where, row in rows:
            question, name = str(row["question"]), str(row["annotator"]).strip()
            if question not in QUESTIONS or row["answer"] not in QUESTIONS[question].answers:
                raise UserError(
                    f"{where}: {row['answer']!r} is no answer to the question {question!r}; the "
                    f"questions are {', '.join(QUESTIONS)}."
                )
            a, b = named.get(row["model_a"]), named.get(row["model_b"])
            text = str(row["prompt"])
            swapped = (question, text, a, b) not in found
            item = found.get((question, text, b, a) if swapped else (question, text, a, b))
            if item is None or not name:
                raise UserError(
                    f"{where}: the study has no pair of {row['model_a']!r} and {row['model_b']!r} "
                    f"for the prompt {text[:60]!r} in the question {question!r}."
                )
            annotator = people.get(name)
            if annotator is None:
                annotator = people[name] = _imported(connection, name)
            if (annotator, item) in given:
                raise UserError(f"{where}: {name!r} has answered this pair in an earlier row.")
            given.add((annotator, item))
            public = new_token()
            task = connection.scalar(
                insert(tables.tasks)
                .values(
                    public=public,
                    annotator=annotator,
                    item=item,
                    block=questions.index(question),
                    position=len(given),
                    swapped=swapped,
                    repeated=False,
                )
                .returning(tables.tasks.c.id)
            )
            connection.execute(
                insert(tables.answers).values(
                    task=task,
                    live=1,
                    key=public,
                    answer=row["answer"],
                    seconds=_number(row.get("seconds"), where),
                    given=_date(row.get("given"), where),
                )
            )
    return len(given)


def _imported(connection: Any, name: str) -> int:
    people = tables.annotators
    own = f"{name} (imported)"
    if connection.execute(select(people.c.id).where(people.c.name == own)).scalar():
        raise UserError(f"Answers of {name!r} have been imported before.")
    values = {"name": own, "token": digest(new_token()), "stopped": True, "left_out": False}
    return connection.scalar(insert(people).values(values).returning(people.c.id))


def _csv(file: epath.Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    reader = csv.DictReader(io.StringIO(read_text(file), newline=""), strict=True)
    missing = [name for name in NEEDED if name not in (reader.fieldnames or ())]
    if missing:
        raise UserError(f"{file} has no column {missing[0]!r}; it needs {', '.join(NEEDED)}.")
    try:
        for row in reader:
            where = f"{file}, line {reader.line_num}"
            if row.get("role", "study") != "study" or row.get("repeated") in ("True", "true"):
                continue
            if None in row or any(row[name] is None for name in NEEDED):
                raise UserError(f"{where} has more or fewer values than the first line.")
            yield where, {name: _plain(value) for name, value in row.items()}
    except csv.Error as error:
        raise UserError(f"{file} cannot be read as CSV: {error}.") from error


def _label_studio(file: epath.Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The JSON export of a project with the tag Pairwise, whose tasks have the data ``prompt``,
    ``model_a`` and ``model_b`` (the left and the right image) and, but for appeal, ``question``. An
    annotation without a selection is a tie.
    """
    try:
        tasks = json.loads(read_text(file))
        for task in tasks:
            data = task["data"]
            for annotation in task["annotations"]:
                if annotation.get("was_cancelled"):
                    continue
                chosen = [
                    result["value"]["selected"]
                    for result in annotation["result"]
                    if result["type"] == "pairwise"
                ]
                by = annotation["completed_by"]
                answer = {"left": "a", "right": "b"}[chosen[0]] if chosen else "tie"
                yield (
                    f"{file}, task {task['id']}",
                    {
                        "question": data.get("question", "appeal"),
                        "annotator": str(
                            by.get("email") or by["id"] if isinstance(by, dict) else by
                        ),
                        "prompt": data["prompt"],
                        "model_a": data["model_a"],
                        "model_b": data["model_b"],
                        "answer": answer,
                        "seconds": annotation.get("lead_time"),
                        "given": annotation.get("created_at"),
                    },
                )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{file} is not Label Studio's JSON export of pairs with prompt, model_a and model_b "
            f"({type(error).__name__}: {error})."
        ) from error


def _number(value: Any, where: str) -> float:
    try:
        number = float(value or 0)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number < 1e9:
        raise UserError(f"{where}: {value!r} is no number of seconds.")
    return number


def _date(value: Any, where: str) -> datetime:
    try:
        return _utc(datetime.fromisoformat(value)) if value else datetime.now(UTC)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {value!r} is no date in the form of ISO 8601.") from error


def _utc(date: datetime) -> datetime:
    return date.replace(tzinfo=UTC) if date.tzinfo is None else date.astimezone(UTC)


def _winner(row: Row) -> str:
    if row.role != "study" or row.question not in QUESTIONS:
        return ""
    return {1: row.second, -1: row.first, 0: "tie"}[row.outcome]


def _schema() -> pa.Schema:
    flags = {"repeated": pa.bool_(), "left_out": pa.bool_(), "seconds": pa.float64()}
    names = (*NEEDED, "key", "winner", "role", "repeated", "left_out", "seconds", "given")
    return pa.schema([(name, flags.get(name, pa.string())) for name in names])
