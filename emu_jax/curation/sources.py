"""Sources of images, read shard by shard: no list of all images is ever in memory.

    kind         path                                a shard
    webdataset   a folder or pattern of .tar files   a file
    parquet      a folder or pattern of .parquet     a file
    folder       a folder of images                  up to `shard_size` images of a folder below it
    dataset      the name of a built data set        `shard_size` records

Paths are local or in a bucket (gs://). The order of the shards, and of the images in one, depends
on the source alone. All of it is untrusted data: a member of a tar is read from the stream and
never written to a disk, a path in a table stays inside the table's folder, and the size of what is
read is bounded. What cannot be read becomes an item with the reason in `damaged`.

Every source takes three keys for what it knows of an image beside its pixels: `captions`, the
columns with captions, the best ones (those by hand) first; `numbers` and `texts`, further columns
that are kept under their names.
"""

import abc
import fnmatch
import hashlib
import json
import math
import os
import re
import tarfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from emu_jax.curation.sections import CAPTIONS
from emu_jax.data.captions import FILE_COLUMN, SIDECARS, TABLES, Columns, read_rows, read_sidecar
from emu_jax.data.contents import SUFFIXES
from emu_jax.data.folder import MAX_BYTES, read_file
from emu_jax.data.manifest import SCHEMA
from emu_jax.data.places import DEFAULT_DATA_DIR
from emu_jax.data.source import Source as Built
from emu_jax.data.source import open_source
from emu_jax.errors import UserError

_TEXT_BYTES = 2**20  # of a caption or a JSON file in a tar
_ROWS = 64  # of a parquet file in memory, with their images


@dataclass
class Item:
    """An image as it is stored, and what the source says of it."""

    key: str  # unique in the source
    data: bytes = b""
    captions: list[str] = field(default_factory=list)
    columns: dict[str, Any] = field(default_factory=dict)
    damaged: str = ""  # why it cannot be read


class Source(abc.ABC):
    """See the module's docstring. ``shards`` are their names; a subclass reads them."""

    shards: Sequence[str]

    def __init__(
        self, captions: Sequence[str], numbers: Sequence[str], texts: Sequence[str]
    ) -> None:
        for name in (*numbers, *texts):
            if not name.isidentifier() or name in (*SCHEMA, "damaged", "original"):
                raise UserError(
                    f"The source's column {name!r} cannot be kept under this name: rename it to "
                    "letters, digits and _, and to no name that score tables have."
                )
        self.captions, self.numbers, self.texts = tuple(captions), tuple(numbers), tuple(texts)

    @property
    def origin(self) -> str:
        """Where images come from, for the manifest."""
        return str(getattr(self, "path", ""))

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """The types of the further columns."""
        return dict.fromkeys(self.numbers, pa.float64()) | dict.fromkeys(self.texts, pa.string())

    @property
    def identity(self) -> list[Any]:
        """What the scores of this source depend on."""
        names = hashlib.sha256(_bytes("\n".join(self.shards))).hexdigest()
        kept = [list(self.captions), list(self.numbers), list(self.texts)]
        return [type(self).__name__, names, len(self.shards), *kept]

    @abc.abstractmethod
    def read(self, shard: int, rows: Collection[int] | None = None) -> Iterator[tuple[int, Item]]:
        """(row, item) of every image of a shard in order, or of these rows only. Rows count the
        damaged ones too.
        """

    def _item(self, key: str, data: bytes, found: Mapping[str, Any], damaged: str = "") -> Item:
        """An item with what ``found``, a row of a table or a JSON object, says of it."""
        values = [found.get(name) for name in self.captions]
        flat = [t for value in values for t in (value if isinstance(value, list) else [value])]
        texts = [str(text) for text in flat if _plain(text)]
        captions = list(dict.fromkeys(" ".join(text.split()) for text in texts))
        columns: dict[str, Any] = {name: _number(found.get(name)) for name in self.numbers}
        for name in self.texts:
            value = found.get(name)
            columns[name] = value if _plain(value) else None
        return Item(_clean(key), data, captions, columns, damaged)


class WebDataset(Source):
    """Tars as img2dataset writes them: ``NAME.jpg``, ``NAME.txt`` and ``NAME.json`` in a row. The
    text is the column ``txt``.
    """

    def __init__(
        self,
        path: str,
        captions: tuple[str, ...] = CAPTIONS,
        numbers: tuple[str, ...] = (),
        texts: tuple[str, ...] = (),
    ) -> None:
        super().__init__(captions, numbers, texts)
        self.path = path
        self._files = _files(path, ".tar")
        self.shards = [_named(file) for file in self._files]

    def read(self, shard: int, rows: Collection[int] | None = None) -> Iterator[tuple[int, Item]]:
        file, row = self._files[shard], -1
        try:
            with file.open("rb") as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
                for row, (stem, members) in enumerate(_samples(tar, rows)):
                    if members is not None:
                        yield row, self._sample(f"{file.stem}/{stem}", members)
        except (tarfile.TarError, OSError, EOFError) as error:
            if isinstance(error, OSError) and row < 0 and not file.exists():
                raise
            if rows is None or row + 1 in rows:
                reason = f"the tar is damaged from here on: {error}"
                yield row + 1, self._item(f"{file.stem}/#{row + 1}", b"", {}, reason)

    def _sample(self, key: str, members: dict[str, bytes | str]) -> Item:
        found, damaged = {}, ""
        for suffix in (".json", ".txt"):
            data = members.get(suffix)
            if isinstance(data, str):
                damaged = f"{suffix[1:]}: {data}"
            elif data is not None and suffix == ".txt":
                found["txt"] = data.decode("utf-8", errors="replace")
            elif data is not None:
                try:
                    found = json.loads(data)
                except (ValueError, RecursionError) as error:
                    damaged = f"its JSON cannot be read: {error}"
                found = found if isinstance(found, dict) else {}
        image = next((data for name, data in members.items() if name in SUFFIXES), None)
        if image is None:
            damaged = f"it has no image, only {', '.join(members) or 'nothing'}"
        elif isinstance(image, str):
            image, damaged = b"", image
        return self._item(key, image or b"", found, damaged)


class Parquet(Source):
    """Tables with the images' bytes (also ``{bytes, path}``) or paths relative to the table."""

    def __init__(
        self,
        path: str,
        image: str = "image",
        key_column: str = "",
        captions: tuple[str, ...] = CAPTIONS,
        numbers: tuple[str, ...] = (),
        texts: tuple[str, ...] = (),
    ) -> None:
        super().__init__(captions, numbers, texts)
        self.path, self.image, self.key = path, image, key_column
        self._files = _files(path, ".parquet")
        self.shards = [_named(file) for file in self._files]

    @property
    def identity(self) -> list[Any]:
        return [*super().identity, self.image, self.key]

    def read(self, shard: int, rows: Collection[int] | None = None) -> Iterator[tuple[int, Item]]:
        file, row = self._files[shard], 0
        try:
            with file.open("rb") as stream:
                table = pq.ParquetFile(stream, pre_buffer=False)
                known = table.schema_arrow.names
                for name in filter(None, (self.image, self.key)):
                    if name not in known:
                        raise UserError(
                            f"{file} has no column {name!r}: its columns are {', '.join(known)}."
                        )
                wanted = (self.image, self.key, *self.captions, *self.numbers, *self.texts)
                columns = [name for name in dict.fromkeys(wanted) if name in known]
                batches = table.iter_batches(_ROWS, columns=columns, use_threads=False)
                for batch in batches:
                    if rows is None or any(i in rows for i in range(row, row + len(batch))):
                        for i, found in enumerate(batch.to_pylist(), row):
                            if rows is None or i in rows:
                                yield i, self._row(file, i, found)
                    row += len(batch)
        except (pa.ArrowException, OSError) as error:  # ArrowInvalid, and what its decoders meet
            if not file.exists():
                raise
            if rows is None or row in rows:
                reason = f"the table is damaged from here on: {str(error)[:200]}"
                yield row, self._item(f"{file.stem}/#{row}", b"", {}, reason)

    def _row(self, file: epath.Path, row: int, found: dict[str, Any]) -> Item:
        value, key = found.get(self.image), found.get(self.key) if self.key else row
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        data, damaged = b"", ""
        if isinstance(value, bytes):
            data = value
        elif isinstance(value, str) and value:
            data, damaged = _inside(file.parent, value)
        else:
            damaged = f"its column {self.image} holds no image"
        return self._item(f"{file.stem}/{key}", data, found, damaged)


class Folder(Source):
    """A folder of images, with captions in sidecars (``NAME.txt``) or in the table of their own
    folder: ``metadata.*``, or the one table of the top folder.
    """

    def __init__(
        self,
        path: str,
        shard_size: int = 10_000,
        captions: tuple[str, ...] = CAPTIONS,
        numbers: tuple[str, ...] = (),
        texts: tuple[str, ...] = (),
    ) -> None:
        super().__init__(captions, numbers, texts)
        self.path, self.shard_size = path, shard_size
        self._root = epath.Path(path).expanduser()
        if not self._root.is_dir():
            raise UserError(f"There is no folder {path}; name a folder of images.")
        self._parts: list[tuple[epath.Path, int]] = []
        self.shards = []
        for folder in _folders(self._root):
            names, inner = sorted(_images(folder)), folder.relative_to(self._root).as_posix()
            for part, start in enumerate(range(0, len(names), shard_size)):
                own = hashlib.sha256(_bytes("\0".join(names[start : start + shard_size])))
                self._parts.append((folder, part))
                self.shards.append(f"{inner}#{part} {own.hexdigest()[:12]}")
        if not self._parts:
            raise UserError(f"There is no image in {path}.")

    @property
    def identity(self) -> list[Any]:
        return [*super().identity, os.fspath(self._root), self.shard_size]

    def read(self, shard: int, rows: Collection[int] | None = None) -> Iterator[tuple[int, Item]]:
        folder, part = self._parts[shard]
        start = part * self.shard_size
        names = sorted(_images(folder))[start : start + self.shard_size]
        wanted = {name: row for row, name in enumerate(names) if rows is None or row in rows}
        said = self._table(folder, wanted)
        for name, row in wanted.items():
            key = (folder / name).relative_to(self._root).as_posix()
            found, data, damaged = said.get(name, {}), b"", ""
            try:
                data = read_file(folder / name)
                if name not in said:
                    stem = PurePosixPath(name).with_suffix("").as_posix()
                    sidecars = (folder / (stem + suffix) for suffix in SIDECARS)
                    texts = [text for one in sidecars if one.exists() for text in read_sidecar(one)]
                    found = {"txt": texts}
            except (UserError, OSError) as error:
                damaged = str(error)
            yield row, self._item(key, data, found, damaged)

    def _table(self, folder: epath.Path, wanted: Collection[str]) -> dict[str, dict[str, Any]]:
        """What the table of a folder says of these images."""
        top = folder == self._root
        tables = sorted(
            path
            for path in folder.iterdir()
            if path.suffix.lower() in TABLES and (top or path.stem == "metadata")
        )
        if len(tables) > 1:
            raise UserError(f"{folder} holds several tables; keep only the one with the captions.")
        columns = Columns(further=(*self.captions, *self.numbers, *self.texts))
        return {
            row[FILE_COLUMN]: row
            for table in tables
            for _, row in read_rows(table, columns)
            if row.get(FILE_COLUMN) in wanted
        }


class DataSet(Source):
    """A built data set, such as one that people have judged; columns are those of its manifest."""

    def __init__(
        self,
        name: str,
        data_dir: str = DEFAULT_DATA_DIR,
        select: str = "",
        shard_size: int = 10_000,
        captions: tuple[str, ...] = CAPTIONS,
        numbers: tuple[str, ...] = (),
        texts: tuple[str, ...] = (),
    ) -> None:
        super().__init__(captions, numbers, texts)
        self.path, self.shard_size = name, shard_size
        self._built: Built = open_source(name, data_dir)
        self._records = self._built.manifest.select(select)
        self._select = select
        count = math.ceil(len(self._records) / shard_size)
        if not count:
            raise UserError(f"No record of {name} matches {select!r}.")
        self.shards = [f"{name}#{i}" for i in range(count)]
        known = self._built.manifest.columns
        for column in (*numbers, *texts):
            if column not in known:
                raise UserError(f"{name} has no column {column!r}; it has {', '.join(known)}.")

    @property
    def identity(self) -> list[Any]:
        fingerprint = self._built.manifest.fingerprint
        return [*super().identity, fingerprint, self._select, self.shard_size]

    def read(self, shard: int, rows: Collection[int] | None = None) -> Iterator[tuple[int, Item]]:
        start = shard * self.shard_size
        records = self._records[start : start + self.shard_size]
        kept = (*self.captions, *self.numbers, *self.texts, "key")
        table = self._built.manifest.table
        table = table.select([name for name in dict.fromkeys(kept) if name in table.column_names])
        found = table.take(pa.array(records)).to_pylist()
        for row, (record, said) in enumerate(zip(records.tolist(), found, strict=True)):
            if rows is None or row in rows:
                yield row, self._item(said["key"], self._built.read(record), said)


# Files -------------------------------------------------------------------------------------------


def _files(path: str, suffix: str) -> list[epath.Path]:
    """The files of a folder or of a pattern in a folder's names, sorted."""
    place, pattern = epath.Path(path).expanduser(), f"*{suffix}"
    if not place.is_dir():
        place, pattern = place.parent, place.name
    found = sorted(
        file
        for file in (place.iterdir() if place.is_dir() else ())
        if fnmatch.fnmatchcase(file.name, pattern) and not file.name.startswith(".")
    )
    if not found:
        raise UserError(f"There is no file {place / pattern}; name a folder of {suffix} files.")
    return found


def _named(file: epath.Path) -> str:
    """The name of a shard: of another size it is another one."""
    return f"{file.name} {file.stat().length}"


def _folders(root: epath.Path) -> Iterator[epath.Path]:
    """The folder and those below it, sorted; links to folders are not followed."""
    yield root
    for path in sorted(root.iterdir()):
        if path.is_dir() and not path.name.startswith(".") and not os.path.islink(path):
            yield from _folders(path)


def _images(folder: epath.Path) -> Iterator[str]:
    for path in folder.iterdir():
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            yield path.name


def _inside(folder: epath.Path, name: str) -> tuple[bytes, str]:
    """(content, "") of a file that a table names inside ``folder``, or (b"", why not)."""
    inner = PurePosixPath(name)
    path = folder / name
    if inner.is_absolute() or ".." in inner.parts or "://" in name:
        return b"", f"{name!r} is no path inside the table's folder"
    if "://" not in os.fspath(folder):
        root = os.path.realpath(folder)
        if os.path.commonpath([root, os.path.realpath(path)]) != root:
            return b"", f"{name!r} is a link out of the table's folder"
    try:
        return read_file(path), ""
    except (UserError, OSError, ValueError) as error:
        return b"", f"{name!r} cannot be read: {error}"


def _samples(
    tar: tarfile.TarFile, rows: Collection[int] | None
) -> Iterator[tuple[str, dict[str, bytes | str] | None]]:
    """(name without suffix, suffix -> content or why it is left out) of members in a row with one
    name; no content for samples that are not wanted.
    """
    current, members, row = "", {}, -1
    for info in tar:
        tar.members = []  # type: ignore[attr-defined]  # it would keep all headers in memory
        if not info.isreg():
            continue
        directory, _, base = info.name.rpartition("/")
        stem, dot, suffix = base.partition(".")
        name = f"{directory}/{stem}" if directory else stem
        if row < 0 or name != current:
            if row >= 0:
                yield current, members
            current, row = name, row + 1
            members = {} if rows is None or row in rows else None
        if members is not None:
            kind = (dot + suffix).lower()
            known = kind in (*SUFFIXES, ".txt", ".json")
            members[kind] = _member(tar, info, kind) if known else "it is not read"
    if row >= 0:
        yield current, members


def _member(tar: tarfile.TarFile, info: tarfile.TarInfo, suffix: str) -> bytes | str:
    most = _TEXT_BYTES if suffix in (".txt", ".json") else MAX_BYTES
    if info.size > most:
        return f"too large: {info.size:,} bytes is more than {most:,}"
    stream = tar.extractfile(info)  # reads from the stream; nothing is written
    return stream.read() if stream else "it has no content"


# Values ------------------------------------------------------------------------------------------


def _plain(value: Any) -> bool:
    """Whether a value is text with something in it that can be stored."""
    if not isinstance(value, str) or not value.strip():
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def _number(value: Any) -> float | None:
    """A number or a text of one as a float; None for anything else."""
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, str) and re.fullmatch(r"\s*-?\d+(\.\d*)?\s*", value):
        value = float(value)
    if not isinstance(value, int | float) or (isinstance(value, int) and abs(value) > 2**53):
        return None
    return float(value) if math.isfinite(value) else None


def _bytes(text: str) -> bytes:
    """Of names of files, which need not be UTF-8."""
    return text.encode(errors="surrogateescape")


def _clean(key: str) -> str:
    return key.encode(errors="replace").decode()
