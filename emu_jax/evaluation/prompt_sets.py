"""Prompts with what is known about each: from files, published sets and data sets.

    FILE                 .txt: one prompt per line; .tsv or .csv: a table with a column `prompt`
    parti:FILE           PartiPrompts, the published TSV file; adds the column `stylised`
    geneval:FILE         GenEval's JSON lines; adds the columns `kind` and `geneval`
    sur                  45 prompts of the three types of the SUR-adapter (arXiv 2305.05189)
    DATASET:CONDITION    captions of a built data set's records, with their images

Every other column of a table or of a manifest is kept: a text per prompt, under its name in lower
case, with `_` for spaces. Lists in a cell are separated by `|`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Self

import numpy as np
import pyarrow as pa
from etils import epath
from jaxtyping import UInt8

from emu_jax.data.images import prepare
from emu_jax.data.manifest import Manifest
from emu_jax.data.mixture import Selection
from emu_jax.data.places import DEFAULT_DATA_DIR
from emu_jax.data.source import Source, find, open_source
from emu_jax.data.textfile import DELIMITERS, read_lines, read_table
from emu_jax.errors import UserError
from emu_jax.evaluation import geneval

FORMS = "FILE (.txt, .tsv, .csv), parti:FILE, geneval:FILE, sur, or DATASET:CONDITION"
CATEGORIES = ("category", "challenge", "kind", "type")  # the columns that usually name them
WHITE = (255, 255, 255)
MOST_CATEGORIES = 50
_PARTI = ("prompt", "category", "challenge")
_SUR = "sur_prompts.tsv"


@dataclass(frozen=True)
class RealImages:
    """A record of a data set for each prompt; its image is read when it is asked for."""

    source: Source
    records: tuple[int, ...]

    def read(
        self, size: tuple[int, int], background: tuple[int, int, int] = WHITE
    ) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        """The images in the order of the prompts, in the size (height, width)."""
        for record in self.records:
            yield prepare(self.source.read(record), size, background=background)[0]

    def rows(self, indices: Iterable[int]) -> "RealImages":
        return RealImages(self.source, tuple(self.records[i] for i in indices))


@dataclass(frozen=True)
class PromptSet:
    """Prompts, columns of texts that describe them, and real images of them where there are any.

    Of a prompt with several images there are ``repeats`` equal rows, one after the other.
    """

    prompts: tuple[str, ...]
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    real: RealImages | None = None
    repeats: int = 1

    def __post_init__(self):
        lengths = {name: len(cells) for name, cells in self.columns.items()}
        if self.real is not None:
            lengths["real"] = len(self.real.records)
        for name, length in lengths.items():
            if length != len(self.prompts):
                raise ValueError(f"{name} has {length} rows for {len(self.prompts)} prompts")

    def __len__(self) -> int:
        return len(self.prompts)

    def rows(self, indices: Iterable[int]) -> Self:
        """The prompts of these indices, in this order."""
        chosen = [int(i) for i in indices]
        columns = {name: _take(cells, chosen) for name, cells in self.columns.items()}
        real = self.real.rows(chosen) if self.real else None
        return type(self)(_take(self.prompts, chosen), columns, real)

    def repeated(self, count: int) -> Self:
        """A row for each of ``count`` images of every prompt."""
        found = self.rows(i for i in range(len(self)) for _ in range(count))
        return replace(found, repeats=self.repeats * count)

    def spread(self, count: int, by: str = "") -> Self:
        """``count`` prompts at equal steps, or of each value of the column ``by``; all of them if
        there are no more.
        """
        if count >= len(self):
            return self
        groups: dict[str, list[int]] = {}
        for i, cell in enumerate(self.column(by) if by else ("",) * len(self)):
            groups.setdefault(cell, []).append(i)
        chosen = (
            own[i * len(own) // count] if count < len(own) else own[i]
            for own in groups.values()
            for i in range(min(count, len(own)))
        )
        return self.rows(sorted(chosen))

    def select(self, condition: str) -> Self:
        """The prompts whose columns satisfy a condition of :meth:`Manifest.select`; a column of
        whole numbers can be compared by size. The prompts are the column ``prompt``.
        """
        table = pa.table({"prompt": list(self.prompts)} | dict(map(_typed, self.columns.items())))
        try:
            chosen = Manifest(table).select(condition)
        except UserError as error:
            raise UserError(f"Prompts cannot be selected by {condition!r}: {error}") from error
        if not len(chosen):
            raise UserError(f"No prompt matches {condition!r}.")
        return self.rows(chosen)

    def column(self, name: str) -> tuple[str, ...]:
        """The text of every prompt in a column."""
        if name not in self.columns:
            known = ", ".join(self.columns) or "none"
            raise UserError(f"The prompts have no column {name!r}; their columns are {known}.")
        return self.columns[name]

    def lists(self, name: str) -> list[list[str]]:
        """A column of lists: the items of every prompt."""
        return [cell.split("|") if cell else [] for cell in self.column(name)]

    def categories(self, by: str = "") -> str:
        """The column by which figures are broken down: ``by``, or the first of CATEGORIES that
        divides the prompts; empty if none does.

        Raises:
          UserError: there is no column ``by``, or it has more than MOST_CATEGORIES values.
        """
        by = _named(by)
        if by and self._distinct(by) > MOST_CATEGORIES:
            raise UserError(
                f"The column {by!r} has more than {MOST_CATEGORIES} values: break figures down by "
                "another."
            )
        known = (name for name in CATEGORIES if name in self.columns)
        return by or next((n for n in known if 1 < self._distinct(n) <= MOST_CATEGORIES), "")

    def _distinct(self, column: str) -> int:
        return len({item for cell in self.column(column) for item in cell.split("|")})

    def __add__(self, other: Self) -> Self:
        """Both, one after the other; a prompt has no text in the other's columns."""
        empty = [("",) * len(self), ("",) * len(other)]
        names = dict.fromkeys((*self.columns, *other.columns))
        columns = {
            name: self.columns.get(name, empty[0]) + other.columns.get(name, empty[1])
            for name in names
        }
        real = None if len(self) and len(other) else self.real or other.real
        return type(self)(self.prompts + other.prompts, columns, real)


def open_prompts(
    text: str, column: str = "", select: str = "", data_dir: epath.PathLike = DEFAULT_DATA_DIR
) -> PromptSet:
    """The prompts that ``text`` names, in one of the forms of this module's docstring.

    ``column`` is that of the prompts, by default ``prompt`` in a table and ``captions`` in a data
    set. ``select`` is a condition on the columns (:meth:`PromptSet.select`).

    Raises:
      UserError: there is no such file or data set, it cannot be read, or no prompt is left.
    """
    found = _open(text, _named(column), data_dir)
    return found.select(select) if select else found


def read_prompts(path: str, column: str = "") -> PromptSet:
    """The prompts of a file: lines that are not empty, or a table whose first row names columns.

    Raises:
      UserError: no such file, not UTF-8, no such column, or no prompt.
    """
    file = epath.Path(path).expanduser()
    if not file.exists() or file.is_dir():
        raise UserError(f"There is no file of prompts {path}; --prompts takes {FORMS}.")
    if file.suffix.lower() in DELIMITERS:
        return _from_table(file, column)
    if column:
        raise UserError(
            f"A column of prompts can be named for tables (.tsv, .csv) and data sets; {path} is "
            "neither: leave --prompt_column out."
        )
    prompts = tuple(filter(None, (line.strip() for line in read_lines(file))))
    if not prompts:
        raise UserError(f"The file {path} has no prompts: write one prompt per line.")
    return PromptSet(prompts)


def _phrase(captions: Sequence[str]) -> str:
    """The caption of an image that suits as a prompt: a natural phrase ("a fox") rather than a bare
    name; empty if it has none.
    """
    natural = (text for text in captions if text.startswith(("a ", "an ", "some ")))
    return next(natural, captions[0] if len(captions) else "")


def data_prompts(selection: Selection) -> PromptSet:
    """A prompt for every selected record that has a caption, with its image and its columns."""
    manifest, texts = selection.source.manifest, selection.texts()
    records = [int(i) for i in selection.records() if _phrase(texts[i]).strip()]
    if not records:
        raise UserError(
            f"The records of {selection.source.name} have no text in their column "
            f"{selection.captions!r}: name another with --prompt_column, or a file of prompts."
        )
    values = {name: manifest.column(name)[records] for name in manifest.columns}
    columns = {name: tuple(map(_cell, cells)) for name, cells in values.items()}
    prompts = tuple(_phrase(texts[i]).strip() for i in records)
    return PromptSet(prompts, columns, RealImages(selection.source, tuple(records)))


def _open(text: str, column: str, data_dir: epath.PathLike) -> PromptSet:
    form, _, rest = text.partition(":")
    if text == "sur":
        with resources.as_file(resources.files("emu_jax.evaluation") / _SUR) as file:
            return _from_table(epath.Path(file))
    if form == "parti":
        return _parti(rest)
    if form == "geneval":
        return _geneval(rest)
    is_file = "://" in text or epath.Path(text).expanduser().is_file()
    if (
        is_file
        or not re.fullmatch(r"[^/:]+/[^/:]+", form)
        or _suffix(form) in (".txt", *DELIMITERS)
    ):
        return read_prompts(text, column)
    if not rest and find(form, data_dir) is None:
        raise UserError(
            f"{text} is neither a file of prompts nor a data set in {data_dir}; --prompts takes "
            f"{FORMS}."
        )
    source = open_source(form, data_dir)
    return data_prompts(Selection(source, select=rest, captions=column or "captions"))


def _geneval(path: str) -> PromptSet:
    file = _published(path, "geneval")
    prompts, columns = geneval.read_lines(read_lines(file), str(file))
    return PromptSet(tuple(prompts), {name: tuple(cells) for name, cells in columns.items()})


def _published(path: str, form: str) -> epath.Path:
    file = epath.Path(path).expanduser()
    if not path or not file.exists() or file.is_dir():
        raise UserError(f"There is no file {path or f'behind {form}:'}; use --prompts={form}:FILE.")
    return file


def _parti(path: str) -> PromptSet:
    """PartiPrompts. Its stylised prompts are those of one challenge and of two categories."""
    file = _published(path, "parti")
    found = _from_table(file, delimiter="\t", needed=_PARTI)
    stylised = (
        challenge == "Style & Format" or category in ("Illustrations", "Arts")
        for category, challenge in zip(
            found.columns["category"], found.columns["challenge"], strict=True
        )
    )
    cells = tuple("yes" if one else "no" for one in stylised)
    return PromptSet(found.prompts, {**found.columns, "stylised": cells})


def _from_table(
    file: epath.Path, column: str = "", delimiter: str = "", needed: Sequence[str] = ()
) -> PromptSet:
    """The rows of a table that have a prompt; a row may end before its last columns."""
    header, rows = read_table(file, delimiter)
    wanted = column or "prompt"
    names = [_named(name) for name in header]
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise UserError(f"{file} has two columns {twice[0]!r}: rename one.")
    missing = [name for name in needed or [wanted] if name not in names]
    if missing:
        hint = (
            "name one with --prompt_column." if not needed else f"{', '.join(needed)} are needed."
        )
        raise UserError(
            f"{file} has no column {missing[0]!r}; its columns are {', '.join(names) or 'none'}: "
            f"{hint}"
        )
    index = names.index(wanted)
    rows = [row for row in rows if row[index].strip()]
    if not rows:
        raise UserError(f"The column {wanted!r} of {file} has no prompts.")
    columns = {
        name: tuple(row[i].strip() for row in rows) for i, name in enumerate(names) if i != index
    }
    return PromptSet(tuple(row[index].strip() for row in rows), columns)


def _named(name: str) -> str:
    """The name of a column, so that a condition can use it."""
    return "_".join(name.lower().split())


def _suffix(name: str) -> str:
    return epath.Path(name).suffix.lower()


def _cell(value: object) -> str:
    """A cell of a manifest as text."""
    return "|".join(map(str, value)) if isinstance(value, list) else str(value)


def _take(cells: Sequence[str], indices: Sequence[int]) -> tuple[str, ...]:
    return tuple(cells[i] for i in indices)


def _typed(column: tuple[str, tuple[str, ...]]) -> tuple[str, pa.Array]:
    """A column for conditions: integers if all of its cells are, lists if one of them has ``|``."""
    name, cells = column
    if any("|" in cell for cell in cells):
        return name, pa.array([cell.split("|") for cell in cells])
    whole = all(re.fullmatch(r"-?\d{1,9}", cell) for cell in cells)
    return name, pa.array([int(cell) for cell in cells] if whole else list(cells))
