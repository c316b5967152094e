"""A new study of preference: its images, the pairs that people compare, and attention checks.

An interrupted call continues: an image that is in the database is not made again.
"""

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from sqlalchemy import func, insert, select, update

from emu_jax.errors import UserError
from emu_jax.evaluation.comparison import pairs_of
from emu_jax.evaluation.prompt_sets import PromptSet
from emu_jax.people import tables
from emu_jax.people.images import Pixels, decode, fitted, noise, save, spoiled
from emu_jax.people.questions import APPEAL, COMPARE, QUESTIONS
from emu_jax.people.store import Store

_CHECKS = 12  # different gold pairs of a question

Make = Callable[[Sequence[int]], Iterator[Pixels]]  # rows of the prompts -> their images


@dataclass(frozen=True)
class Settings:
    """How a study of preference is run."""

    votes: Mapping[str, int] = field(
        default_factory=lambda: {name: one.votes for name, one in QUESTIONS.items()}
    )  # of each question; a question without votes is not asked
    repeated: float = 0.05  # share of an annotator's pairs that return, for self-agreement
    gold: float = 0.05  # share of attention checks
    training: bool = True  # whether a training round comes first
    seed: int = 0

    @property
    def questions(self) -> list[str]:
        return [name for name in QUESTIONS if self.votes.get(name)]


@dataclass(frozen=True)
class Contender:
    """A model, or another system, and how its images are made."""

    name: str
    label: str
    make: Make


def make_study(
    store: Store,
    contenders: Sequence[Contender],
    prompts: PromptSet,
    settings: Settings,
    size: int | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Makes the study in ``store``; ``size`` is the longer side to which images are reduced.

    Raises:
      UserError: the store has another study, or the images of a prompt differ in size.
    """
    if len(contenders) < 2:
        raise UserError("A comparison needs 2 models or folders of images, or more.")
    if not settings.questions:
        raise UserError("A comparison needs a question: give --appeal_votes a number above 0.")
    described = {**asdict(settings), "size": size, **(about or {})}
    with store.write() as connection:
        found = connection.execute(select(tables.study)).one_or_none()
        names = [one.name for one in contenders]
        if found is None:
            connection.execute(
                insert(tables.study).values(
                    kind=COMPARE, settings=described, secret=secrets.token_hex(32), ready=False
                )
            )
            models = [{"name": one.name, "label": one.label} for one in contenders]
            connection.execute(insert(tables.models), models)
            rows = [
                {
                    "text": text,
                    "columns": {name: cells[i] for name, cells in prompts.columns.items()},
                }
                for i, text in enumerate(prompts.prompts)
            ]
            connection.execute(insert(tables.prompts), rows)
        elif found.ready:
            raise UserError(
                f"{store.folder} has a study already; serve it with emu-jax people serve "
                f"{store.folder}, or name another folder."
            )
        else:
            texts = connection.scalars(select(tables.prompts.c.text).order_by(tables.prompts.c.id))
            of = connection.scalars(select(tables.models.c.name).order_by(tables.models.c.id))
            same = found.settings == described and tuple(texts) == prompts.prompts
            if not same or list(of) != names:
                raise UserError(
                    f"{store.folder} has an incomplete study of other models, prompts or settings: "
                    "name another folder."
                )
    for model, contender in enumerate(contenders, start=1):
        _make_images(store, model, contender, len(prompts), size)
    _check_sizes(store)
    _make_items(store, settings, len(contenders))


def read_images(files: Sequence[Any]) -> Make:
    """Makes images by reading them: ``files`` has the path of every prompt's image."""

    def make(rows: Sequence[int]) -> Iterator[Pixels]:
        for row in rows:
            try:
                yield decode(files[row].read_bytes())
            except (UserError, OSError) as error:
                raise UserError(f"{files[row]} cannot be used: {error}.") from error

    return make


def _make_images(
    store: Store, model: int, contender: Contender, count: int, size: int | None
) -> None:
    images = tables.images
    with store.read() as connection:
        there = set(connection.scalars(select(images.c.prompt).where(images.c.model == model)))
    missing = [row for row in range(count) if row + 1 not in there]
    if not missing:
        return
    for row, pixels in zip(missing, contender.make(missing), strict=True):
        insert_image(store, pixels, size, model=model, prompt=row + 1)


def insert_image(store: Store, pixels: Pixels, size: int | None = None, **columns: Any) -> int:
    """Writes an image and its row; returns the number of the row."""
    pixels = np.asarray(fitted(Image.fromarray(np.ascontiguousarray(pixels)), size))
    height, width, _ = pixels.shape
    row = {"file": save(store, pixels), "width": width, "height": height, **columns}
    with store.write() as connection:
        return connection.execute(
            insert(tables.images).values(row).returning(tables.images.c.id)
        ).scalar_one()


def _check_sizes(store: Store) -> None:
    """The size of an image must not tell which model made it."""
    images = tables.images
    query = (
        select(tables.prompts.c.text, func.min(images.c.prompt))
        .join(images, images.c.prompt == tables.prompts.c.id)
        .group_by(tables.prompts.c.id, tables.prompts.c.text)
        .having(
            (func.min(images.c.width) != func.max(images.c.width))
            | (func.min(images.c.height) != func.max(images.c.height))
        )
    )
    with store.read() as connection:
        found = connection.execute(query).first()
    if found:
        raise UserError(
            f"The images of {found[0]!r} differ in size, which tells the models apart: make all of "
            "one size and shape, and use --size in a new folder."
        )


def _make_items(store: Store, settings: Settings, models: int) -> None:
    """Inserts the items of every question, and marks the study as ready."""
    generator = np.random.default_rng(settings.seed)
    images = tables.images
    with store.read() as connection:
        of = {
            (row.model, row.prompt): row.id
            for row in connection.execute(select(images).where(images.c.model.is_not(None)))
        }
    prompts = sorted({prompt for _, prompt in of})
    numbers = {str(model): model for model in range(1, models + 1)}
    pairs = [(numbers[a], numbers[b]) for a, b in pairs_of(numbers)]
    rows: list[dict[str, Any]] = []

    def add(question: str, role: str, votes: int, prompt: int, first: int, second: int, expected):
        names = ("question", "role", "votes", "prompt", "first", "second", "expected")
        values = (question, role, votes, prompt, first, second, expected)
        rows.append(dict(zip(names, values, strict=True)))

    for question in settings.questions:
        for prompt in prompts:
            for a, b in pairs:
                votes = settings.votes[question]
                add(question, "study", votes, prompt, of[a, prompt], of[b, prompt], None)
        if settings.gold:
            for prompt, first, second, expected in _checks(store, of, question, generator):
                add(question, "gold", 0, prompt, first, second, expected)
        if settings.training:
            for prompt, first, second, expected in _lessons(store, of, question, generator):
                add(question, "training", 0, prompt, first, second, expected)
    with store.write() as connection:
        connection.execute(insert(tables.items), rows)
        connection.execute(update(tables.study).values(ready=True))


def _checks(
    store: Store, of: Mapping[tuple[int, int], int], question: str, generator: np.random.Generator
) -> Iterator[tuple[int, int, int, list[str]]]:
    """(prompt, first, second, right answers) of pairs whose first image is better beyond doubt."""
    places = sorted(of, key=lambda place: (place[1], place[0]))
    for i in generator.permutation(len(places))[:_CHECKS]:
        prompt = places[i][1]
        pixels = _pixels(store, of[places[i]])
        if question == APPEAL:
            yield prompt, insert_image(store, pixels), insert_image(store, spoiled(pixels)), ["a"]
        else:  # the image of a model may be unfaithful too, but never less than noise
            worse = noise(pixels.shape[:2], generator)
            right = ["a", "neither"]
            yield prompt, insert_image(store, pixels), insert_image(store, worse), right


def _lessons(
    store: Store, of: Mapping[tuple[int, int], int], question: str, generator: np.random.Generator
) -> Iterator[tuple[int, int, int, list[str]]]:
    """The training round: each kind of answer once, where no model has to be relied on."""
    places = sorted(of, key=lambda place: (place[1], place[0]))
    (_, prompt), (_, other) = (places[i] for i in generator.integers(len(places), size=2))
    pixels = [_pixels(store, of[1, number]) for number in (prompt, other)]
    if question == APPEAL:
        pairs: Iterable = (
            (prompt, pixels[0], spoiled(pixels[0]), ["a"]),
            (other, pixels[1], pixels[1], ["tie"]),
        )
    else:
        grains = [noise(pixels[0].shape[:2], generator) for _ in range(2)]
        pairs = (
            (prompt, pixels[0], grains[0], ["a", "neither"]),
            (other, grains[0], grains[1], ["neither"]),
        )
    for number, first, second, right in pairs:
        yield number, insert_image(store, first), insert_image(store, second), right


def _pixels(store: Store, image: int) -> Pixels:
    with store.read() as connection:
        query = select(tables.images.c.file).where(tables.images.c.id == image)
        file = connection.execute(query).scalar_one()
    return decode(store.image(file).read_bytes())
