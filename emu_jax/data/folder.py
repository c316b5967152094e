"""The TFDS builder `folder`: a directory of the user's own pictures, under a name of his choice.

    emu-jax data build folder/mine --path=PICTURES

Pictures of any size are found in the directory and below it and stored as the bytes they are; a
picture's key is its path inside the directory. Captions come from one of

    a table      the one file *.jsonl, *.csv or *.parquet in the directory, with the column
                 `file_name` and one of `captions`, `caption`, `text` (a string, or a list of
                 strings); several rows may caption the same picture
    sidecars     cat.txt beside cat.jpg, one caption a line

A picture that is truncated, too large or none at all is left out: the summary counts it, and
`damaged.jsonl` beside the manifest names it with the reason. A picture without a caption stays,
with an empty list of them; `uncaptioned.jsonl` names those.
"""

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any, ClassVar

import pyarrow as pa
import tensorflow_datasets as tfds
from etils import epath
from tqdm import tqdm

from emu_jax.data.builder import PictureBuilder, in_order
from emu_jax.data.decode import open_image, upright_size
from emu_jax.data.manifest import read_parquet
from emu_jax.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
TABLES = (".jsonl", ".csv", ".parquet")
FILE_COLUMN = "file_name"
CAPTION_COLUMNS = ("captions", "caption", "text")

Captions = dict[str, list[str]]


class Folder(PictureBuilder):
    """See the module's docstring. `path` is the directory of pictures."""

    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "The directory as it was when built"}

    @classmethod
    def named(cls, config: str, *, path: epath.PathLike | None, **kwargs: Any) -> "Folder":
        root = None if path is None else epath.Path(path).expanduser()
        if root is None or not root.is_dir():
            raise UserError(
                f"folder/{config} is made of a directory of pictures: give one by --path=DIR"
                + ("" if root is None else f" ({path} is none)")
            )
        # Found out before anything is written, so that what is amiss is said at once.
        names = find_pictures(root)
        captions = read_captions(root, names)
        names = sorted({*names, *captions})
        if not names:
            raise UserError(
                f"there is no picture in {path}: it is searched for {' '.join(SUFFIXES)}"
            )
        builder = cls(config=tfds.core.BuilderConfig(name=config), path=root, **kwargs)
        builder._names, builder._captions = names, captions
        return builder

    def _info(self) -> tfds.core.DatasetInfo:
        return self._dataset_info(
            description=f"The pictures of {self.path}.",
            license="The pictures' own.",
        )

    def _rows(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        self._damaged: list[dict[str, str]] = []
        self._uncaptioned: list[dict[str, str]] = []

        root = epath.Path(self.path)

        def picture(name: str) -> tuple[bytes, tuple[int, int] | str]:
            data = (root / name).read_bytes()
            try:
                return data, upright_size(open_image(data))
            except UserError as error:
                return b"", str(error)

        pictures = in_order(picture, self._names, total=len(self._names), label=self.info.full_name)
        for name, (data, size) in zip(self._names, pictures, strict=True):
            if isinstance(size, str):
                self._damaged.append({FILE_COLUMN: name, "reason": size})
                continue
            captions = self._captions.get(name, [])
            if not captions:
                self._uncaptioned.append({FILE_COLUMN: name})
            yield (
                data,
                {
                    "key": name,
                    "width": size[0],
                    "height": size[1],
                    "captions": captions,
                    "source": str(root),
                },
            )
        if len(self._damaged) == len(self._names):
            first = self._damaged[0]
            raise UserError(
                f"none of the {len(self._names)} pictures in {self.path} can be read; "
                f"{first[FILE_COLUMN]}: {first['reason']}"
            )

    def _finish(self) -> None:
        _report(self.data_path / "damaged.jsonl", self._damaged, "cannot be read and are left out")
        _report(self.data_path / "uncaptioned.jsonl", self._uncaptioned, "have no caption")


def find_pictures(root: epath.Path) -> list[str]:
    """Paths inside `root` of the files named like pictures, sorted; nothing hidden."""
    found, directories = [], [root]
    while directories:
        directory = directories.pop()
        for path in directory.iterdir():
            if path.name.startswith("."):
                continue
            if path.suffix.lower() in SUFFIXES:
                found.append(path.relative_to(root).as_posix())
            elif path.is_dir():
                directories.append(path)
    return sorted(found)


def read_captions(root: epath.Path, names: Iterable[str]) -> Captions:
    """Captions by picture, from the directory's table or from sidecar files."""
    tables = sorted(p for p in root.iterdir() if p.suffix.lower() in TABLES)
    if len(tables) > 1:
        raise UserError(
            f"{root} holds several tables ({', '.join(p.name for p in tables)}): leave the one "
            "with the captions"
        )
    return _from_table(root, tables[0]) if tables else _from_sidecars(root, names)


def _from_sidecars(root: epath.Path, names: Iterable[str]) -> Captions:
    captions = {}
    for name in names:
        sidecar = (root / name).with_suffix(".txt")
        if sidecar.exists():
            captions[name] = _clean(_text(sidecar).splitlines())
    return captions


def _from_table(root: epath.Path, table: epath.Path) -> Captions:
    captions: Captions = {}
    for number, row in enumerate(_read_table(table), start=1):
        column = next((name for name in CAPTION_COLUMNS if name in row), None)
        if FILE_COLUMN not in row or column is None:
            missing = "captions" if FILE_COLUMN in row else FILE_COLUMN
            raise UserError(
                f"{table}: row {number} has no column {missing!r}; it has "
                f"{', '.join(map(str, row)) or 'none'}, and {FILE_COLUMN} and one of "
                f"{', '.join(CAPTION_COLUMNS)} are wanted"
            )
        name = PurePosixPath(str(row[FILE_COLUMN]))
        if name.is_absolute() or ".." in name.parts or not (root / name).is_file():
            raise UserError(f"{table}: row {number} names {name}, which is not a file in {root}")
        said = row[column] if isinstance(row[column], list) else [row[column]]
        captions.setdefault(str(name), []).extend(_clean(s for s in said if s is not None))
    return {name: list(dict.fromkeys(said)) for name, said in captions.items()}


def _read_table(table: epath.Path) -> Iterator[dict[str, Any]]:
    suffix = table.suffix.lower()
    try:
        if suffix == ".parquet":
            yield from read_parquet(table.read_bytes()).to_pylist()
        elif suffix == ".csv":
            yield from csv.DictReader(io.StringIO(_text(table), newline=""))
        else:
            for line in filter(str.strip, _text(table).splitlines()):
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"{line[:40]!r} is no object")
                yield row
    except (ValueError, csv.Error, pa.ArrowException) as error:
        raise UserError(f"{table} cannot be read as {suffix[1:]}: {error}") from error


def _text(path: epath.Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}): save it as UTF-8") from error


def _clean(captions: Iterable[Any]) -> list[str]:
    """Non-empty, distinct, without spare white space."""
    return list(dict.fromkeys(filter(None, (" ".join(str(c).split()) for c in captions))))


def _report(path: epath.Path, rows: list[dict[str, str]], what: str) -> None:
    if rows:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        names = ", ".join(row[FILE_COLUMN] for row in rows[:5]) + ", ..." * (len(rows) > 5)
        tqdm.write(f"{len(rows):,} pictures {what}: {names}; all in {path.name}", file=sys.stderr)
