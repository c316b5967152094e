"""The manifest beside a data set's records: row i describes record i.

It is one parquet file, written when the data set is built, so that selecting records, planning
batches and bucketing by size never open an image. Every manifest has the columns of `SCHEMA`; a
builder may add columns of strings and integers.

Where a builder adds no column `part`, reading adds one: `held_out` for a tenth of the images, at
most about 1,000, and `train` for the others. An image's part is a function of the hash of its
bytes, so it is the same in every run, two copies of an image are in the same part, and images that
are added later move none from `train` to `held_out`.
"""

import dataclasses
import functools
import hashlib
import io
import operator
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath
from jaxtyping import Bool, Int

from emu_jax.errors import UserError

FILE_NAME = "manifest.parquet"
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


@dataclasses.dataclass(frozen=True)
class Manifest:
    """An immutable table: see the module's docstring."""

    table: pa.Table

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
        schema = pa.schema(SCHEMA | dict(own or {}), metadata=dict(about) if about else None)
        return cls(pa.Table.from_pylist(list(rows), schema=schema))

    @classmethod
    def read(cls, directory: epath.PathLike) -> "Manifest":
        path = epath.Path(directory) / FILE_NAME
        if not path.exists():
            raise UserError(
                f"There is no {FILE_NAME} in {directory}: remove it and build the data set again."
            )
        try:
            content = path.read_bytes()
            manifest = cls(_with_parts(open_parquet(content).read(use_threads=False)))
        except Exception as error:  # Arrow raises whatever its decoders run into
            raise UserError(
                f"{path} cannot be read ({str(error) or repr(error)}): build the data set again "
                "with --force."
            ) from error
        manifest.__dict__["fingerprint"] = hashlib.sha256(content).hexdigest()
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

    def column(self, name: str) -> np.ndarray:
        """A column as an array of int32 or of objects (str; list[str] for captions)."""
        if name not in self.columns:
            raise UserError(
                f"The manifest has no column {name!r}; its columns are {', '.join(self.columns)}."
            )
        column = self.table[name]
        if pa.types.is_integer(column.type):
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
        chosen = np.ones(len(self), bool)
        if condition.strip():
            for part in re.split(r"\s+and\s+", condition.strip()):
                chosen &= self._compare(part)
        return np.flatnonzero(chosen)

    def _compare(self, part: str) -> Bool[np.ndarray, "n"]:
        match = _CONDITION.fullmatch(part)
        if match is None or not match[3]:
            raise UserError(
                f"The condition {part!r} is invalid: write it as `part == tuned|kept`, with one of "
                f"{' '.join(_COMPARE)}."
            )
        name, symbol, text = match.groups()
        values = self.column(name)
        alternatives = [word.strip().strip("'\"") for word in text.split("|")]
        if pa.types.is_list(self.table[name].type):
            raise UserError(f"{name} contains lists, which a condition cannot compare.")
        if values.dtype != object:
            try:
                alternatives = [int(word) for word in alternatives]
            except ValueError as error:
                raise UserError(f"{name} contains integers, and {text!r} is not one.") from error
        elif symbol not in ("==", "!="):
            raise UserError(f"{name} contains text, which only == and != can compare.")
        if symbol in ("==", "!="):
            found = np.isin(values, np.array(alternatives, values.dtype))
            return found if symbol == "==" else ~found
        if len(alternatives) > 1:
            raise UserError(f"{part!r} is invalid: only == and != accept alternatives.")
        return _COMPARE[symbol](values, alternatives[0])

    def _content(self) -> bytes:
        buffer = io.BytesIO()
        pq.write_table(self.table, buffer, compression="zstd")
        return buffer.getvalue()


def _with_parts(table: pa.Table) -> pa.Table:
    """The table with its column `part`: see the module's docstring."""
    if "part" in table.column_names:
        return table
    hashes = [hashlib.sha256(text.encode()).digest()[:8] for text in table["sha256"].to_pylist()]
    rank = np.array([int.from_bytes(digest) for digest in hashes], np.uint64) / 2.0**64
    held_out = rank < min(_SHARE, _MOST / max(len(rank), 1))
    if len(rank) and not held_out.any():
        least = rank == rank.min()
        held_out = least & ~least.all()  # one image, or copies of one, stay in the training part
    return table.append_column("part", pa.array(np.where(held_out, "held_out", "train").tolist()))


def open_parquet(content: bytes) -> pq.ParquetFile:
    """A parquet file in memory, for `read(..., use_threads=False)`.

    On this thread alone: a thread pool that releases Python's bytes while the interpreter exits
    would abort the process.
    """
    return pq.ParquetFile(pa.BufferReader(content), pre_buffer=False)
