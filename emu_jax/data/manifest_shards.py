"""A manifest of several parquet files, which is never read as a whole unless it must be.

`manifest.json` has the number of rows and the sha256 of each file; the files are
`manifest-00000-of-00012.parquet` and so on, their rows in the order of the records. Captions are
read with the record (`Source.captions`), other columns shard by shard, a few columns at a time.
"""

import functools
import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from emu_jax.data.manifest import SHARDS_NAME, Manifest, parquet
from emu_jax.errors import UserError

ROWS = 2**20  # of a shard, about
_UNIQUE = ("key", "sha256")  # columns of texts that do not repeat


class Shard(NamedTuple):
    """A file of the manifest."""

    rows: int
    sha256: str


class ShardedManifest(Manifest):
    """As a :class:`Manifest`. `table` and `column` read all shards."""

    def __init__(self, directory: epath.PathLike):
        self._directory = epath.Path(directory)
        path = self._directory / SHARDS_NAME
        try:
            content = path.read_bytes()
            shards = [Shard(int(rows), str(digest)) for rows, digest in json.loads(content)]
            if not shards or min(shards).rows < 1:
                raise ValueError("a shard without rows")
        except (OSError, ValueError, TypeError) as error:
            raise UserError(
                f"{path} cannot be read ({error}): build the data set again with --force."
            ) from error
        self.fingerprint = hashlib.sha256(content).hexdigest()
        ends = list(itertools.accumulate(shard.rows for shard in shards))
        self._shards, self.starts, self._length = shards, [0, *ends[:-1]], ends[-1]

    @functools.cached_property
    def table(self) -> pa.Table:
        return pa.concat_tables(self._read(i, None) for i in range(len(self._shards)))

    @functools.cached_property
    def _schema(self) -> pa.Schema:
        return self._file(0)[1].schema_arrow

    @property
    def about(self) -> dict[str, str]:
        found = self._schema.metadata or {}
        return {key.decode(): value.decode() for key, value in found.items()}

    def __len__(self) -> int:
        return self._length

    @property
    def columns(self) -> list[str]:
        return self._schema.names

    def shard(self, index: int, names: Iterable[str]) -> Manifest:
        self.require(names)
        texts = [name for name in names if pa.types.is_string(self._schema.field(name).type)]
        return Manifest(self._read(index, list(names), [t for t in texts if t not in _UNIQUE]))

    def column(self, name: str) -> np.ndarray:
        shards = range(len(self._shards))
        return np.concatenate([self.shard(i, [name]).column(name) for i in shards])

    def _file(self, index: int, repeated: Sequence[str] = ()) -> tuple[epath.Path, pq.ParquetFile]:
        """The file of a shard; columns of `repeated` texts are read as numbers of them."""
        path = self._directory / shard_name(index, len(self._shards))
        try:
            return path, pq.ParquetFile(
                path.open("rb"), pre_buffer=False, read_dictionary=[*repeated]
            )
        except Exception as error:  # Arrow raises whatever its decoders run into
            raise _damaged(path, error) from error

    def _read(self, index: int, names: list[str] | None, repeated: Sequence[str] = ()) -> pa.Table:
        path, file = self._file(index, repeated)
        try:
            with file:
                # A table without columns would have no rows.
                columns = names if names != [] else [file.schema_arrow.names[0]]
                table = file.read(columns, use_threads=False)
        except Exception as error:
            raise _damaged(path, error) from error
        if len(table) != self._shards[index].rows:
            raise _damaged(path, f"{len(table):,} rows, not {self._shards[index].rows:,}")
        return table


def shard_name(index: int, count: int) -> str:
    return f"manifest-{index:05d}-of-{count:05d}.parquet"


def write_shard(directory: epath.Path, index: int, count: int, table: pa.Table) -> Shard:
    """Writes the file of one shard."""
    content = parquet(table)
    (directory / shard_name(index, count)).write_bytes(content)
    return Shard(len(table), hashlib.sha256(content).hexdigest())


def write_shards(directory: epath.Path, shards: Sequence[Shard]) -> None:
    """Writes `manifest.json`, which makes the manifest complete."""
    (directory / SHARDS_NAME).write_text(json.dumps(shards))


def _damaged(path: epath.Path, error: object) -> UserError:
    return UserError(
        f"{path} cannot be read ({str(error) or repr(error)}): build the data set again with "
        "--force."
    )
