"""The manifest beside a data set's records: row i describes record i.

It is written when the data set is built, so that selecting records, planning batches and bucketing
by size never open an image: one parquet file, or for large data sets several (manifest_shards.py).
Every manifest has the columns of `SCHEMA`; a builder may add columns of strings and numbers.

Where a builder adds no column `part`, reading adds one: `held_out` for a tenth of the images, at
most about 1,000, and `train` for the others. An image's part is a function of the hash of its
bytes, so it is the same in every run, two copies of an image are in the same part, and images that
are added later move none from `train` to `held_out`.
"""

import functools
import hashlib
import io
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from etils import epath
from jaxtyping import Bool, Float, Int

from emu_jax.errors import UserError

FILE_NAME = "manifest.parquet"
SHARDS_NAME = "manifest.json"  # of a manifest of several files
SCHEMA: dict[str, pa.DataType] = {
    "key": pa.string(),  # unique within the data set
    "width": pa.int32(),  # of the upright image, pixels
    "height": pa.int32(),
    "sha256": pa.string(),  # of the stored bytes
    "captions": pa.list_(pa.string()),  # may be empty
    "source": pa.string(),  # origin of the image
}

_SHARE, _MOST = 0.1, 1000  # of the images that are held out

_COMPARE = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
CAPTIONS_FROM = "captions_from"  # said of a manifest: the column of a user's tables
_CONDITION = re.compile(r"\s*(\w+)\s*(==|!=|<=|>=|<|>)\s*(.*?)\s*", re.DOTALL)


class Manifest:
    """An immutable table: see the module's docstring. A large one is read in shards."""

    starts: Sequence[int] = (0,)  # the first row of each shard

    def __init__(self, table: pa.Table):
        self._table = table

    @property
    def table(self) -> pa.Table:
        return self._table

    @classmethod
    def from_rows(
        cls,
        rows: Iterable[Mapping[str, Any]],
        own: Mapping[str, pa.DataType] | None = None,
        about: Mapping[str, str] | None = None,
    ) -> "Manifest":
        """From rows with the columns of SCHEMA and the builder's `own` columns; `about` is said of
        the whole table.
        """
        return cls(pa.Table.from_pylist(list(rows), schema=schema(own or {}, about or {})))

    @staticmethod
    def read(directory: epath.PathLike) -> "Manifest":
        """Of either form. Raises UserError if it is missing or damaged."""
        from emu_jax.data.manifest_shards import ShardedManifest

        path = epath.Path(directory) / FILE_NAME
        if not path.exists() and (path.parent / SHARDS_NAME).exists():
            return ShardedManifest(path.parent)
        if not path.exists():
            raise UserError(
                f"There is no {FILE_NAME} in {directory}: remove it and build the data set again."
            )
        try:
            content = path.read_bytes()
            table = open_parquet(content).read(use_threads=False)
            ranks = [] if "part" in table.column_names else rank(table["sha256"].to_pylist())
            manifest = Manifest(with_parts(table, ranks, Ranks.of(ranks)))
        except Exception as error:  # Arrow raises whatever its decoders run into
            raise UserError(
                f"{path} cannot be read ({str(error) or repr(error)}): build the data set again "
                "with --force."
            ) from error
        manifest.fingerprint = hashlib.sha256(content).hexdigest()
        return manifest

    def write(self, directory: epath.PathLike) -> None:
        (epath.Path(directory) / FILE_NAME).write_bytes(self._content())

    @property
    def about(self) -> dict[str, str]:
        """What is said of the whole table."""
        found = self.table.schema.metadata or {}
        return {key.decode(): value.decode() for key, value in found.items()}

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def columns(self) -> list[str]:
        return self.table.column_names

    def shard(self, index: int, names: Iterable[str]) -> "Manifest":
        """The rows from `starts[index]` on, with at least these columns."""
        assert index == 0
        self.require(names)
        return self

    def require(self, names: Iterable[str]) -> None:
        """Raises UserError unless there are columns of these names."""
        for name in names:
            if name not in self.columns:
                raise UserError(
                    f"The manifest has no column {name!r}; its columns are "
                    f"{', '.join(self.columns)}."
                )

    def value(self, name: str, record: int) -> Any:
        """One value of a column."""
        shard = int(np.searchsorted(self.starts, record, side="right")) - 1
        return self.shard(shard, [name]).column(name)[record - self.starts[shard]]

    def column(self, name: str) -> np.ndarray:
        """A column as an array of numbers or of objects (str; list[str] for captions)."""
        self.require([name])
        column = self.table[name]
        if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
            return column.to_numpy()
        values = np.empty(len(column), object)
        values[:] = column.to_pylist()
        return values

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of the file's content."""
        return hashlib.sha256(self._content()).hexdigest()

    def select(self, condition: str) -> Int[np.ndarray, "n"]:
        """Ascending indices of the rows that satisfy `condition`, of all rows if it is empty.

        A condition consists of comparisons joined by " and ": `part == tuned|kept and needle <
        100`. The operators are == != < <= > >=; "|" separates alternatives of == (one of) and of
        != (none of).
        """
        names = named_in(condition)
        found = [
            start + np.flatnonzero(self.shard(i, names).matches(condition))
            for i, start in enumerate(self.starts)
        ]
        return np.concatenate(found)

    def matches(self, condition: str) -> Bool[np.ndarray, "n"]:
        """Whether each row satisfies `condition`: see `select`."""
        chosen = np.ones(len(self), bool)
        for part in _parts(condition):
            chosen &= self._compare(*part)
        return chosen

    def _compare(self, name: str, symbol: str, text: str) -> Bool[np.ndarray, "n"]:
        self.require([name])
        column = self.table[name]
        if pa.types.is_list(column.type):
            raise UserError(f"{name} contains lists, which a condition cannot compare.")
        alternatives: list[Any] = [word.strip().strip("'\"") for word in text.split("|")]
        numbers = {pa.types.is_integer: (int, "integers"), pa.types.is_floating: (float, "numbers")}
        kind = next((kind for is_one, kind in numbers.items() if is_one(column.type)), None)
        if kind:
            try:
                alternatives = [kind[0](word) for word in alternatives]
            except ValueError as error:
                raise UserError(f"{name} contains {kind[1]}, and {text!r} is not one.") from error
        elif symbol not in ("==", "!="):
            raise UserError(f"{name} contains text, which only == and != can compare.")
        if symbol in ("==", "!="):
            if kind:
                values = column.to_numpy()
                found = np.isin(values, np.array(alternatives, values.dtype))
            else:
                found = _is_in(column, pa.array(alternatives, pa.string()))
            return found if symbol == "==" else ~found
        if len(alternatives) > 1:
            raise UserError(
                f"'{name} {symbol} {text}' is invalid: only == and != accept alternatives."
            )
        return _COMPARE[symbol](column.to_numpy(), alternatives[0])

    def _content(self) -> bytes:
        return parquet(self.table)


def _is_in(column: pa.ChunkedArray, wanted: pa.Array) -> Bool[np.ndarray, "n"]:
    """Whether each text of a column is one of those wanted."""
    if not pa.types.is_dictionary(column.type):
        return pc.is_in(column, value_set=wanted).to_numpy()
    parts = [np.zeros(0, bool)]
    for chunk in column.chunks:
        known = pc.is_in(chunk.dictionary, value_set=wanted).to_numpy(zero_copy_only=False)
        parts.append(np.append(known, False)[chunk.indices.fill_null(len(known)).to_numpy()])
    return np.concatenate(parts)


def schema(own: Mapping[str, pa.DataType], about: Mapping[str, str]) -> pa.Schema:
    """The common columns and a builder's own ones."""
    return pa.schema(SCHEMA | dict(own), metadata=dict(about) or None)


def _parts(condition: str) -> list[tuple[str, str, str]]:
    """The comparisons of a condition: column, operator, text."""
    found = []
    for part in re.split(r"\s+and\s+", condition.strip()) if condition.strip() else ():
        match = _CONDITION.fullmatch(part)
        if match is None or not match[3]:
            raise UserError(
                f"The condition {part!r} is invalid: write it as `part == tuned|kept`, with one of "
                f"{' '.join(_COMPARE)}."
            )
        found.append((match[1], match[2], match[3]))
    return found


def named_in(condition: str) -> list[str]:
    """The columns that a condition compares. Raises UserError for an invalid condition."""
    return list(dict.fromkeys(name for name, _, _ in _parts(condition)))


def exists(directory: epath.Path) -> bool:
    """Whether there is a manifest, that is, a complete data set."""
    return any((directory / name).exists() for name in (FILE_NAME, SHARDS_NAME))


class Ranks(NamedTuple):
    """What the parts of a data set's images depend on, beside the rank of each."""

    count: int
    least: float
    most: float

    @classmethod
    def of(cls, ranks: Float[np.ndarray, "n"] | list[float]) -> "Ranks":
        return cls(len(ranks), min(ranks, default=1.0), max(ranks, default=0.0))


def rank(hashes: Sequence[str]) -> Float[np.ndarray, "n"]:
    """A number in [0, 1) for each image by its sha256: the lowest ones are held out."""
    digests = [hashlib.sha256(text.encode()).digest()[:8] for text in hashes]
    return np.array([int.from_bytes(digest) for digest in digests], np.uint64) / 2.0**64


def with_parts(table: pa.Table, ranks: Float[np.ndarray, "n"] | list, all_ranks: Ranks) -> pa.Table:
    """The table with its column `part`: see the module's docstring."""
    if "part" in table.column_names:
        return table
    limit = min(_SHARE, _MOST / max(all_ranks.count, 1))
    if all_ranks.least < limit:
        held_out = np.asarray(ranks) < limit
    else:  # one image, or copies of one, stay in the training part
        held_out = (np.asarray(ranks) == all_ranks.least) & (all_ranks.least < all_ranks.most)
    return table.append_column("part", pa.array(np.where(held_out, "held_out", "train").tolist()))


def parquet(table: pa.Table) -> bytes:
    """The content of a table's file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def open_parquet(content: bytes) -> pq.ParquetFile:
    """A parquet file in memory, for `read(..., use_threads=False)`.

    On this thread alone: a thread pool that releases Python's bytes while the interpreter exits
    would abort the process.
    """
    return pq.ParquetFile(pa.BufferReader(content), pre_buffer=False)
