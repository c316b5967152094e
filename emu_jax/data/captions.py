"""Captions of a user's images, from tables and from sidecar files.

    table      a *.jsonl, *.csv or *.parquet file with the column `file_name` (a path relative to
               the table's directory) and one of `captions`, `caption`, `text` (a string, or a list
               of strings; null or NaN: none), or the column that the user names. Several rows may
               caption the same image. Further columns of captions are read where they are named.
    sidecar    cat.txt or cat.caption beside cat.jpg, one caption a line.

Every error is one sentence that names the file and the line.
"""

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from etils import epath

from emu_jax.data.manifest import open_parquet
from emu_jax.data.textfile import read_bytes, read_lines, read_text
from emu_jax.errors import UserError

TABLES = (".jsonl", ".csv", ".parquet")
SIDECARS = (".txt", ".caption")
FILE_COLUMN = "file_name"
CAPTION_COLUMNS = ("captions", "caption", "text")
_PARQUET_ROWS = 256  # in memory as objects at a time; they may hold images

Captions = dict[str, list[str]]  # image, as a path inside the directory -> its captions


class Columns(NamedTuple):
    """A table's column of captions, empty: the first of CAPTION_COLUMNS that it has; and further
    columns of captions.
    """

    captions: str = ""
    further: tuple[str, ...] = ()

    @property
    def read(self) -> tuple[str, ...]:
        """All that may be read of a table."""
        own = (self.captions,) if self.captions else CAPTION_COLUMNS
        return (FILE_COLUMN, *own, *self.further)


USUAL = Columns()


def read_sidecar(path: epath.Path) -> list[str]:
    """The captions of one sidecar file."""
    return _clean(read_lines(path))


def read_table(root: epath.Path, table: str, columns: Columns = USUAL) -> dict[str, Captions]:
    """The captions of a table, a path inside `root`; images are named relative to `root`.

    "" -> the captions, and each further column -> what it has.
    """
    path = root / table
    found: dict[str, Captions] = {"": {}, **{name: {} for name in columns.further}}
    for place, row in read_rows(path, columns):
        where = f"{path}, {place}"
        own = (columns.captions,) if columns.captions else CAPTION_COLUMNS
        column = next((name for name in own if name in row), None)
        missing = [name for name in (FILE_COLUMN, *columns.further) if name not in row]
        if missing or column is None:
            captions = columns.captions or f"one of {', '.join(own)}"
            needed = " and ".join([FILE_COLUMN, captions, *columns.further])
            raise UserError(
                f"{where} has no column {[*missing, own[0]][0]!r}: its columns are "
                f"{', '.join(map(str, row)) or 'none'}; {needed} are needed."
            )
        name = image_file(root, PurePosixPath(table).parent, row[FILE_COLUMN], where)
        for kind, key in [("", column), *((further, further) for further in columns.further)]:
            texts = row[key] if isinstance(row[key], list) else [row[key]]
            texts = _clean(_text(text, where) for text in texts)
            found[kind].setdefault(name, []).extend(texts)
    return {
        kind: {name: list(dict.fromkeys(texts)) for name, texts in captions.items()}
        for kind, captions in found.items()
    }


def image_file(
    root: epath.Path, directory: PurePosixPath, value: Any, where: str, column: str = FILE_COLUMN
) -> str:
    """The path inside `root` of the file that a row names in `column`."""
    name = PurePosixPath(value) if isinstance(value, str) else None
    if name is None or name.is_absolute() or ".." in name.parts:
        raise UserError(f"{where}: {column} is {value!r}; use a path inside {root / directory}.")
    path = root / directory / name
    if not path.exists() or path.is_dir():
        raise UserError(f"{where} names {value}, which is not a file in {root / directory}.")
    return (directory / name).as_posix()


def clean_text(value: Any, where: str) -> str:
    """A cell of a table without extra white space; "" for null and NaN.

    Raises UserError, with the place ``where``, for anything else that is not text.
    """
    return " ".join(_text(value, where).split())


def _text(value: Any, where: str) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if not isinstance(value, str):
        kind = type(value).__name__
        raise UserError(
            f"{where}: the caption {str(value)[:40]!r} is of type {kind}; only text is allowed."
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, from a JSON escape
        raise UserError(f"{where}: the caption {value[:40]!r} is not valid Unicode.") from error
    return value


def _clean(texts: Iterable[str]) -> list[str]:
    """Not empty, distinct, and without extra white space."""
    return list(dict.fromkeys(filter(None, (" ".join(text.split()) for text in texts))))


def read_rows(path: epath.Path, columns: Columns = USUAL) -> Iterator[tuple[str, dict[str, Any]]]:
    """("line 3", row) for every row."""
    if path.suffix.lower() == ".parquet":
        return _parquet_rows(path, columns)
    return (_json_rows if path.suffix.lower() == ".jsonl" else _csv_rows)(path)


def _json_rows(path: epath.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            reason = f"{error.msg}, column {error.colno}"
        except (ValueError, RecursionError) as error:
            reason = str(error)
        else:
            reason = None if isinstance(row, dict) else f"{line[:40]!r} is not an object"
        if reason:
            raise UserError(f"{path}, line {number} cannot be read as JSON: {reason}.")
        yield f"line {number}", row


def _csv_rows(path: epath.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    # Strict: otherwise an open quotation mark would swallow the rest of the file.
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    header: list[str] = []
    try:
        for cells in filter(None, reader):
            line = f"line {reader.line_num}"
            if not header:
                header = cells
                if len(set(header)) < len(header):
                    raise UserError(f"{path}, {line} names a column twice: {', '.join(header)}.")
                continue
            if len(cells) != len(header):
                raise UserError(
                    f"{path}, {line} has {len(cells)} value(s) for {len(header)} columns; put text "
                    "that contains commas in quotation marks."
                )
            yield line, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise UserError(
            f"{path}, line {reader.line_num} cannot be read as CSV: {error}."
        ) from error


def _parquet_rows(path: epath.Path, columns: Columns) -> Iterator[tuple[str, dict[str, Any]]]:
    content = read_bytes(path)
    try:
        file = open_parquet(content)
        names = file.schema_arrow.names
        used = [name for name in names if name in columns.read]
        batches = file.iter_batches(_PARQUET_ROWS, columns=used, use_threads=False)
        rows = (row for batch in batches for row in batch.to_pylist())
        for number, row in enumerate(rows, start=1):
            yield f"row {number}", dict.fromkeys(names) | row
    except Exception as error:  # Arrow raises whatever its decoders run into, OSError among them
        reason = (str(error) or repr(error)).splitlines()[0]
        raise UserError(f"{path} cannot be read as parquet: {reason}") from error
