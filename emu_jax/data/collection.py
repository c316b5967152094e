"""The images of a folder or of a built data set by name, with a text of each.

An image of a folder is named by its path inside the folder, one of a data set by its key. A text
comes from a column of the data set, from the captions beside the images of a folder, or from a
table (.jsonl, .csv or .parquet) with the column ``file_name`` and the text.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from etils import epath

from emu_jax.data.captions import (
    CAPTION_COLUMNS,
    FILE_COLUMN,
    TABLES,
    Columns,
    clean_text,
    read_rows,
)
from emu_jax.data.contents import read_contents
from emu_jax.data.folder import read_file
from emu_jax.data.source import open_source
from emu_jax.errors import UserError

PROMPT_COLUMNS = ("prompt", *CAPTION_COLUMNS)
# Which of an image's several texts is taken.
Choice = Callable[[list[str]], str]


class Collection:
    """``names`` are in a fixed order: of paths, or of the data set's records."""

    def __init__(self, place: str, data_dir: str, select: str = ""):
        root = epath.Path(place).expanduser()
        self.place = place
        self._root = root if root.is_dir() else None
        if root.is_dir():
            if select:
                raise UserError(
                    f"--select={select} is for data sets, and {place} is a folder of images; build "
                    "a data set from it first, or leave --select out."
                )
            self._captions: dict[str, list[str]] = read_contents(root).captions
            self._read: Callable[[str], bytes] = lambda name: read_file(root / name)
            self._manifest = None
        else:
            if "/" not in place or place[0] in "./~":
                raise UserError(
                    f"There is no folder {place}; name a folder of images or a data set."
                )
            source = open_source(place, data_dir)
            self._manifest, self._records = source.manifest, source.manifest.select(select)
            keys = self._manifest.column("key")[self._records].tolist()
            records = dict(zip(keys, self._records.tolist(), strict=True))
            self._captions = {key: [] for key in keys}
            self._read = lambda name: source.read(records[name])
        self.names = list(self._captions)
        if not self.names:
            raise UserError(f"There is no image in {place}{f' with {select}' if select else ''}.")

    def refuse_inside(self, out: epath.PathLike) -> None:
        """Raises UserError if ``out`` lies in the folder of the images: what is written there would
        be read as their captions."""
        here = Path(out).expanduser().resolve()
        if self._root is not None and here.is_relative_to(Path(self._root).resolve()):
            raise UserError(f"--out={out} lies in {self.place}, the images' folder; use another.")

    def read(self, name: str) -> bytes:
        """The encoded bytes of an image."""
        return self._read(name)

    def texts(
        self, where: str, choose: Choice, columns: tuple[str, ...] = CAPTION_COLUMNS
    ) -> dict[str, str]:
        """A text by image: from the column ``where`` of a data set, or from the table of that path
        (the first of ``columns`` that it has); for a folder "captions" are those beside its images.
        Images without a text are left out.

        Raises:
          UserError: there is no such column or file, or the file cannot be read.
        """
        if PurePosixPath(where).suffix.lower() in TABLES:
            found = read_texts(where, columns)
        elif self._manifest is not None:
            values = self._manifest.column(where)[self._records]
            found = dict(zip(self.names, map(_listed, values), strict=True))
        elif where == "captions":
            found = self._captions
        else:
            raise UserError(
                f"{self.place} is a folder, which has no column {where!r}; name a table "
                f"({', '.join(TABLES)}), or captions, the texts beside its images."
            )
        return {name: choose(found[name]) for name in self.names if found.get(name)}


def read_texts(
    path: epath.PathLike, columns: tuple[str, ...] = CAPTION_COLUMNS
) -> dict[str, list[str]]:
    """The texts in a table by ``file_name``, of the first of ``columns`` that it has. A file that
    several shards have written is named as if it were one: NAME.jsonl for NAME.1-of-2.jsonl and
    NAME.2-of-2.jsonl.
    """
    found: dict[str, list[str]] = {}
    for file in files_of(epath.Path(path).expanduser()):
        for place, row in read_rows(file, Columns(further=columns)):
            column = next((name for name in columns if name in row), None)
            if not isinstance(row.get(FILE_COLUMN), str) or column is None:
                raise UserError(
                    f"{file}, {place}: a row needs {FILE_COLUMN}, a text, and one of "
                    f"{', '.join(columns)}."
                )
            value = row[column]
            values = value if isinstance(value, list) else [value]
            texts = (clean_text(text, f"{file}, {place}") for text in values)
            own = found.setdefault(row[FILE_COLUMN], [])
            own.extend(text for text in texts if text and text not in own)
    return found


def shard_file(path: epath.Path, shard: tuple[int, int]) -> epath.Path:
    """The file of the shard (i - 1, n) of ``path``; one shard has ``path`` itself."""
    index, count = shard
    if count == 1:
        return path
    return path.parent / f"{path.stem}.{index + 1}-of-{count}{path.suffix}"


def files_of(path: epath.Path) -> list[epath.Path]:
    """``path``, or the files of its shards.

    Raises:
      UserError: there is neither, or a shard is missing.
    """
    if path.exists():
        return [path]
    pattern = re.compile(rf"{re.escape(path.stem)}\.(\d+)-of-(\d+){re.escape(path.suffix)}")
    siblings = path.parent.iterdir() if path.parent.is_dir() else ()
    matches = [match for file in siblings if (match := pattern.fullmatch(file.name))]
    counts = {int(match[2]) for match in matches}
    if not counts:
        raise UserError(f"There is no file {path}, and there are no shards of it.")
    if len(counts) > 1:
        raise UserError(f"{path} has shards of several numbers; keep the files of one of them.")
    (count,) = counts
    files = [shard_file(path, (i, count)) for i in range(count)]
    for file in files:
        if not file.exists():
            raise UserError(f"{file} is missing; write it, or remove the other shards.")
    return files


def _listed(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str) and text]


def first(texts: list[str]) -> str:
    return texts[0]


def longest(texts: list[str]) -> str:
    return max(texts, key=len)


def both(
    prompts: Mapping[str, str], captions: Mapping[str, str], names: list[str]
) -> tuple[list[str], dict[str, str]]:
    """(the names that have both texts, the reason of every other one)."""
    reasons = {
        name: "it has no complex prompt" if name not in prompts else "it has no simple caption"
        for name in names
        if name not in prompts or name not in captions
    }
    return [name for name in names if name not in reasons], reasons
