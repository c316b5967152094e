"""The manifest beside a data set's records: row i describes record i.

It is one parquet file, written when the data set is built, so that choosing records, planning
batches and bucketing by size never open a picture. Every manifest has the columns of `SCHEMA`; a
builder may add strings and whole numbers of its own.
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
    "key": pa.string(),  # the record's name, unique within the data set
    "width": pa.int32(),  # of the upright picture, pixels
    "height": pa.int32(),
    "sha256": pa.string(),  # of the stored bytes
    "captions": pa.list_(pa.string()),  # may be empty
    "source": pa.string(),  # where the picture comes from
}

_COMPARE = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_CONDITION = re.compile(r"\s*(\w+)\s*(==|!=|<=|>=|<|>)\s*(.*?)\s*", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """An immutable table; see the module's docstring."""

    table: pa.Table

    @classmethod
    def from_rows(
        cls, rows: Iterable[Mapping[str, Any]], own: Mapping[str, pa.DataType] | None = None
    ) -> "Manifest":
        """Rows with the columns of SCHEMA and the builder's `own`."""
        return cls(pa.Table.from_pylist(list(rows), schema=pa.schema(SCHEMA | dict(own or {}))))

    @classmethod
    def read(cls, directory: epath.PathLike) -> "Manifest":
        path = epath.Path(directory) / FILE_NAME
        if not path.exists():
            raise UserError(
                f"there is no {FILE_NAME} in {directory}: remove it and build the data set anew"
            )
        try:
            content = path.read_bytes()
            manifest = cls(open_parquet(content).read(use_threads=False))
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(
                f"{path} cannot be read ({error}): remove its directory and build the data set anew"
            ) from error
        manifest.__dict__["fingerprint"] = hashlib.sha256(content).hexdigest()
        return manifest

    def write(self, directory: epath.PathLike) -> None:
        (epath.Path(directory) / FILE_NAME).write_bytes(self._content())

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def columns(self) -> list[str]:
        return self.table.column_names

    def column(self, name: str) -> np.ndarray:
        """A column as an array: int32, or objects (str; list[str] for captions)."""
        if name not in self.columns:
            raise UserError(
                f"the manifest has no column {name!r}; its columns are {', '.join(self.columns)}"
            )
        column = self.table[name]
        if pa.types.is_integer(column.type):
            return column.to_numpy()
        values = np.empty(len(column), object)
        values[:] = column.to_pylist()
        return values

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 over the file's content."""
        return hashlib.sha256(self._content()).hexdigest()

    def select(self, condition: str) -> Int[np.ndarray, "n"]:
        """Ascending indices of the rows where `condition` holds, all of them where it is empty.

        A condition is comparisons joined by " and ": `part == tuned|kept and needle < 100`.
        The operators are == != < <= > >=; "|" separates alternatives of == (one of) and of !=
        (none of).
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
                f"cannot read the condition {part!r}: write it as `part == tuned|kept`, with one "
                f"of {' '.join(_COMPARE)}"
            )
        name, symbol, text = match.groups()
        values = self.column(name)
        alternatives = [word.strip().strip("'\"") for word in text.split("|")]
        if pa.types.is_list(self.table[name].type):
            raise UserError(f"{name} holds lists, which a condition cannot compare")
        if values.dtype != object:
            try:
                alternatives = [int(word) for word in alternatives]
            except ValueError as error:
                raise UserError(f"{name} holds whole numbers: {text!r} is none") from error
        elif symbol not in ("==", "!="):
            raise UserError(f"{name} holds text, which can only be compared by == and !=")
        if symbol in ("==", "!="):
            found = np.isin(values, np.array(alternatives, values.dtype))
            return found if symbol == "==" else ~found
        if len(alternatives) > 1:
            raise UserError(f"{part!r}: only == and != take alternatives")
        return _COMPARE[symbol](values, alternatives[0])

    def _content(self) -> bytes:
        buffer = io.BytesIO()
        pq.write_table(self.table, buffer, compression="zstd")
        return buffer.getvalue()


def open_parquet(content: bytes) -> pq.ParquetFile:
    """A parquet file in memory, for `read(..., use_threads=False)`.

    On this thread alone: a thread pool that releases Python's bytes while the interpreter exits
    would abort the process.
    """
    return pq.ParquetFile(pa.BufferReader(content), pre_buffer=False)
