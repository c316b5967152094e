"""Score tables on disk: for every filter and every shard of the source one parquet file.

    OUT/scores/FILTER-DIGEST/00012-of-00100.parquet

Row i of a shard's tables is image i of the shard. The table ``images`` is always there: ``key``,
``sha256``, ``width``, ``height``, ``captions``, the source's further columns, and ``damaged``, the
reason why an image cannot be read (its scores are null). A digest stands for all that the scores
depend on, so that a changed filter is computed anew and no other.

A file is written under another name first: what has its name is complete.
"""

import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from etils import epath

from emu_jax.data.manifest import open_parquet
from emu_jax.errors import UserError

IMAGES = "images"
DAMAGED = "damaged"


def digest(*parts: Any) -> str:
    """12 hexadecimal digits of anything that is JSON."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def shard_name(index: int, count: int, suffix: str = ".parquet") -> str:
    return f"{index:05d}-of-{count:05d}{suffix}"


def write_table(table: pa.Table, path: epath.Path) -> None:
    """The whole file, or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_bytes(sink.getvalue().to_pybytes(), path)


def write_bytes(data: bytes, path: epath.Path) -> None:
    """The whole file, or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
    temporary.write_bytes(data)
    temporary.replace(path)


@dataclass(frozen=True)
class Scores:
    """The score tables of a source with ``count`` shards; ``tables`` are their folders by filter.
    All columns of all tables can be read by name, a shard at a time.
    """

    count: int
    tables: Mapping[str, str]

    def path(self, table: str, shard: int) -> epath.Path:
        return epath.Path(self.tables[table]) / shard_name(shard, self.count)

    @property
    def versions(self) -> dict[str, str]:
        """What the scores are, wherever they lie: the names of the tables' folders."""
        return {name: epath.Path(path).name for name, path in self.tables.items()}

    def missing(self, shard: int) -> list[str]:
        """The tables that a shard does not have yet."""
        return [name for name in self.tables if not self.path(name, shard).exists()]

    @cached_property
    def schema(self) -> dict[str, tuple[str, pa.DataType]]:
        """(table, type) of every column."""
        found: dict[str, tuple[str, pa.DataType]] = {}
        for table in self.tables:
            with self.path(table, 0).open("rb") as file:
                schema = pq.read_schema(file)
            for column in schema:
                if column.name in found:
                    raise UserError(
                        f"The filters {found[column.name][0]} and {table} both compute "
                        f"{column.name}: leave one of them out."
                    )
                found[column.name] = table, column.type
        return found

    @cached_property
    def rows(self) -> list[int]:
        """The number of images of every shard."""
        found = []
        for shard in range(self.count):
            with self.path(IMAGES, shard).open("rb") as file:
                found.append(pq.read_metadata(file).num_rows)
        return found

    @cached_property
    def starts(self) -> np.ndarray:
        """The number of the first image of every shard, and the number of all images."""
        return np.concatenate([[0], np.cumsum(self.rows, dtype=np.int64)])

    def require(self, column: str, key: str, *, number: bool = False) -> None:
        """Raises UserError unless there is this column; ``key`` is where the config names it."""
        known = {
            name: kind
            for name, (_, kind) in self.schema.items()
            if not number or pa.types.is_integer(kind) or pa.types.is_floating(kind)
        }
        if column not in known:
            what = "column of numbers" if number else "column"
            raise UserError(
                f"{key} is {column!r}, and the scores have no such {what}; they have "
                f"{', '.join(known)}."
            )

    def is_empty(self, column: str) -> bool:
        """Whether no image has a value of this column; reads no rows."""
        for shard in range(self.count):
            with self.path(self.schema[column][0], shard).open("rb") as file:
                about = pq.read_metadata(file)
            place = about.schema.names.index(column)
            for group in map(about.row_group, range(about.num_row_groups)):
                known = group.column(place).statistics
                if known is None or known.null_count < group.num_rows:
                    return False
        return True

    def read(self, shard: int, columns: Sequence[str]) -> dict[str, np.ndarray]:
        """Columns of a shard: numbers as float64 (null: nan), 64-bit ones as int64 (null: 0),
        vectors as float32 [n, d] (missing: 0), texts and lists as objects (null: None).
        """
        by_table: dict[str, list[str]] = {}
        for name in columns:
            by_table.setdefault(self.schema[name][0], []).append(name)
        found: dict[str, np.ndarray] = {}
        for table, names in by_table.items():
            content = self.path(table, shard).read_bytes()
            read = open_parquet(content).read(columns=names, use_threads=False)
            found |= {name: _array(_whole(read[name])) for name in names}
        return {name: found[name] for name in columns}

    def readable(self, shard: int) -> np.ndarray:
        """Which images of a shard can be read."""
        damaged = self._column(shard, DAMAGED)
        return pc.equal(damaged, "").to_numpy(zero_copy_only=False)

    def coded(self, shard: int, column: str) -> tuple[np.ndarray, list[str]]:
        """A column as numbers of the values that follow; -1 for null."""
        found = self._column(shard, column)
        if not pa.types.is_string(found.type):
            found = found.cast(pa.string())
        coded = found.dictionary_encode()
        numbers = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        return numbers.astype(np.int64), coded.dictionary.to_pylist()

    def _column(self, shard: int, name: str) -> pa.Array:
        content = self.path(self.schema[name][0], shard).read_bytes()
        read = open_parquet(content).read(columns=[name], use_threads=False)
        return _whole(read[name])

    def each(self, columns: Sequence[str]) -> Iterator[tuple[slice, dict[str, np.ndarray]]]:
        """(the numbers of a shard's images, their columns), shard by shard."""
        for shard in range(self.count):
            place = slice(int(self.starts[shard]), int(self.starts[shard + 1]))
            yield place, self.read(shard, columns)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.chunks else pa.array([], column.type)


def _array(column: pa.Array) -> np.ndarray:
    kind = column.type
    if pa.types.is_fixed_size_list(kind):
        values = column.flatten().to_numpy(zero_copy_only=False)
        return values.astype(np.float32).reshape(-1, kind.list_size)
    if pa.types.is_int64(kind):  # bits of a hash, which a float would not hold
        return column.fill_null(0).to_numpy(zero_copy_only=False)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    found = np.empty(len(column), object)
    found[:] = column.to_pylist()
    return found
