"""Encoder outputs computed once, kept by the content that they were computed from.

A cache is a directory: `cache.json` (its fingerprint) and a folder for each group. A group is a set
of rows of one shape: the images of one bucket, or texts. The fingerprint says what all rows depend
on beside their content, as a flat dict of strings (weights of the encoder, dtype, crop, background
...); a cache with another fingerprint is refused with the difference. A row has a key, a digest of
its content, so an image that is added to a data set costs one row, and one that is taken away none.

Rows lie in shards: `ID.rows`, rows of one size, one after another, memory-mapped for reading, and
`ID.keys`, their keys. A process appends to shards of its own, the keys after the rows have reached
the disk. So what is there is complete at every moment, any number of processes write at once, and
after a kill only the rows of the last `_SAVE_SECONDS` are computed again. `layout.json` in a
group's folder has shape and dtype of a row's arrays.
"""

import hashlib
import json
import os
import shutil
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import IO, NamedTuple

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy
import numpy as np
from jaxtyping import Int

from emu_jax.errors import UserError
from emu_jax.progress import watch

_SAVE_SECONDS = 30  # a killed build loses at most this much work
_SHARD_BYTES = 2**30
_MAPPED = 256  # shards that are open at a time
_KEY = np.dtype("S32")
Fingerprint = Mapping[str, str]
NOTHING: Fingerprint = MappingProxyType({})
Keys = np.ndarray  # S32 [n]


class Spec(NamedTuple):
    """Shape and dtype name of one array of a group."""

    shape: tuple[int, ...]
    dtype: str


Layout = Mapping[str, Spec]  # array name -> shape and dtype of a row


class Rows(NamedTuple):
    """Rows of a group as a build produces them: `positions` among the keys that were asked for."""

    group: str
    positions: Int[np.ndarray, "b"]
    arrays: Mapping[str, np.ndarray]


# {group: positions of missing keys} -> the number of steps, and the rows of each step
Compute = Callable[[Mapping[str, Int[np.ndarray, "_"]]], tuple[int, Iterable[Rows]]]


class Together(NamedTuple):
    """Several processes that build a cache, each its share. `wait()` returns when all call it."""

    index: int = 0
    count: int = 1
    wait: Callable[[], object] = lambda: None


ALONE = Together()


def digest(fingerprint: Fingerprint) -> str:
    """sha256 over all parts of a fingerprint."""
    return hashlib.sha256(json.dumps(dict(fingerprint), sort_keys=True).encode()).hexdigest()


def content_keys(hashes: Iterable[str], copy: int = 0) -> Keys:
    """Keys of contents with these sha256, in hexadecimal; `copy` numbers the rows of one content.

    The last byte is the number of the copy, plus 1: numpy drops zeros there.
    """
    keys = np.frombuffer(bytes.fromhex("".join(hashes)), np.uint8).reshape(-1, 32).copy()
    keys[:, 31] = copy + 1
    return keys.reshape(-1).view(_KEY)


def text_keys(texts: Sequence[str]) -> Keys:
    return content_keys(hashlib.sha256(text.encode()).hexdigest() for text in texts)


class _Group(NamedTuple):
    """Where the rows of a cache are: shards by name, and for each row its shard and its place."""

    shards: tuple[str, ...]
    shard: Int[np.ndarray, "n"]  # -1: missing
    place: Int[np.ndarray, "n"]
    layout: dict[str, Spec]


class Cache:
    """Rows of a cache's directory in a given order, opened for reading. It pickles without them.

    `made_from` is the directory's fingerprint, `fingerprint` has what identifies the rows, too.
    """

    def __init__(
        self,
        directory: Path,
        made_from: Fingerprint,
        about: Fingerprint,
        groups: Mapping[str, _Group],
    ):
        self.directory, self.made_from = directory, dict(made_from)
        self.fingerprint, self._about = {**made_from, **about}, dict(about)
        self._groups = dict(groups)
        self._mapped: OrderedDict[tuple[str, str], np.memmap] = OrderedDict()

    @classmethod
    def open(
        cls,
        directory: str | os.PathLike,
        made_from: Fingerprint,
        keys: Mapping[str, Keys],
        about: Fingerprint = NOTHING,
    ) -> "Cache":
        """The rows of these keys by group, in this order; `about` identifies them.

        Raises UserError if the cache is missing, stale (with the difference) or damaged, or if a
        row is missing.
        """
        directory = _local(directory)
        if not directory.exists():
            raise UserError(f"There is no cache in {directory}: build it first.")
        _require(directory, made_from)
        groups = {group: _locate(directory, group, own) for group, own in keys.items()}
        missing = sum(np.count_nonzero(group.shard < 0) for group in groups.values())
        if missing:
            rows = sum(map(len, keys.values()))
            raise UserError(
                f"The cache {directory} is incomplete, {missing:,} of {rows:,} rows are missing: "
                "build it again."
            )
        return cls(directory, made_from, about, groups)

    def require(self, wanted: Fingerprint) -> None:
        """Raises UserError unless all of `wanted` is in the fingerprint."""
        _compare(self.directory, self.fingerprint, wanted, sorted(wanted))

    def __reduce__(self):
        return Cache, (self.directory, self.made_from, self._about, self._groups)

    @property
    def layout(self) -> dict[str, dict[str, Spec]]:
        """Shape (rows first) and dtype of every array by group."""
        return {
            name: {
                array: Spec((len(group.shard), *spec.shape), spec.dtype)
                for array, spec in group.layout.items()
            }
            for name, group in self._groups.items()
        }

    def take(self, ids: Int[np.ndarray, "b"], group: str) -> dict[str, np.ndarray]:
        """The rows `ids` of every array of a group, copied into memory: {name: [b, ...]}."""
        own = self._groups[group]
        shards, places = own.shard[ids], own.place[ids]
        rows = np.empty(len(ids), _row_type(own.layout))
        for shard in np.unique(shards):
            chosen = shards == shard
            rows[chosen] = self._rows(group, own.shards[shard])[places[chosen]]
        return {
            name: np.ascontiguousarray(rows[name]).view(np.dtype(spec.dtype))
            for name, spec in own.layout.items()
        }

    def _rows(self, group: str, shard: str) -> np.memmap:
        key = group, shard
        found = self._mapped.pop(key, None)
        if found is None:
            found = _map(self.directory / group, shard, self._groups[group].layout)
        self._mapped[key] = found  # the newest last
        while len(self._mapped) > _MAPPED:
            self._mapped.popitem(last=False)
        return found


def build(
    directory: str | os.PathLike,
    made_from: Fingerprint,
    keys: Mapping[str, Keys],
    compute: Compute,
    about: Fingerprint = NOTHING,
    together: Together = ALONE,
) -> Cache:
    """Computes the rows that are missing, and opens the cache.

    Of several processes each computes the keys of its share; what is missing then, where they have
    no disk in common, each computes for itself. Raises UserError if the cache is stale or the disk
    too small.
    """
    directory = _local(directory)
    if not directory.exists():
        _make(directory, made_from)
    _require(directory, made_from)
    for index, count in [(together.index, together.count), (0, 1)]:
        missing = {}
        for group, own in keys.items():
            positions = _missing(directory, group, own)
            missing[group] = positions[_share(own[positions]) % count == index]
        if any(map(len, missing.values())):
            _fill(directory, keys, missing, compute)
        if count > 1:
            together.wait()
    return Cache.open(directory, made_from, keys, about)


def stored(directory: str | os.PathLike, group: str) -> dict[str, np.ndarray]:
    """All rows of a group, in the order of shards and of writing."""
    folder = Path(directory) / group
    layout = _layout(folder)
    rows = np.concatenate([_map(folder, shard, layout) for shard in _shards(folder)])
    return {
        name: np.ascontiguousarray(rows[name]).view(spec.dtype) for name, spec in layout.items()
    }


def _fill(
    directory: Path,
    keys: Mapping[str, Keys],
    missing: Mapping[str, Int[np.ndarray, "_"]],
    compute: Compute,
) -> None:
    steps, rows = compute(missing)
    writers: dict[str, _Writer] = {}
    saved = time.monotonic()
    try:
        for group, positions, arrays in watch(
            rows, f"cache {directory.name}", steps, unit="batches"
        ):
            if group not in writers:
                writers[group] = _Writer(directory / group, arrays, len(missing[group]))
            writers[group].write(keys[group][positions], arrays)
            if time.monotonic() - saved > _SAVE_SECONDS:
                for writer in writers.values():
                    writer.save()
                saved = time.monotonic()
        for writer in writers.values():
            writer.save()
    except OSError as error:
        raise UserError(
            f"The cache {directory} could not be written ({error.strerror or error}): choose "
            "another directory or free space."
        ) from error
    finally:
        for writer in writers.values():
            writer.close()


class _Writer:
    """Appends rows to shards of its own."""

    def __init__(self, folder: Path, arrays: Mapping[str, np.ndarray], rows: int):
        layout = {name: Spec(x.shape[1:], x.dtype.name) for name, x in arrays.items()}
        folder.mkdir(exist_ok=True)
        if not (folder / "layout.json").exists():
            _write(folder / "layout.json", json.dumps(layout))
        if _layout(folder) != layout:
            raise UserError(f"{folder} has rows of another shape: delete the cache.")
        self._folder, self._type = folder, _row_type(layout)
        size, free = rows * self._type.itemsize, shutil.disk_usage(folder).free
        if size > free:
            raise UserError(
                f"The cache {folder.parent} needs {size / 2**30:.1f} GiB and the disk has "
                f"{free / 2**30:.1f}: choose another directory or free space."
            )
        self._files: tuple[IO[bytes], IO[bytes]] | None = None
        self._keys: list[bytes] = []

    def write(self, keys: Keys, arrays: Mapping[str, np.ndarray]) -> None:
        rows = np.empty(len(keys), self._type)
        for name, values in arrays.items():
            rows[name] = np.ascontiguousarray(values).view(self._type[name].base)
        if self._files is None:
            name = uuid.uuid4().hex
            # The rows first: a shard is read if it has keys.
            rows_file, keys_file = (self._folder / f"{name}.{kind}" for kind in ("rows", "keys"))
            self._files = rows_file.open("wb"), keys_file.open("wb")
        self._files[0].write(rows.tobytes())
        self._keys.append(keys.tobytes())
        if self._files[0].tell() > _SHARD_BYTES:
            self.save()
            self.close()

    def save(self) -> None:
        if self._files is not None:
            for file, content in zip(self._files, (b"", b"".join(self._keys)), strict=True):
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            self._keys = []

    def close(self) -> None:
        for file in self._files or ():
            file.close()
        self._files = None


def _make(directory: Path, made_from: Fingerprint) -> None:
    """A directory without rows; another process may make it at the same time."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _write(directory / "cache.json", json.dumps({"fingerprint": dict(made_from)}))
    except OSError as error:
        raise UserError(
            f"The cache {directory} could not be made ({error.strerror or error}): choose another "
            "directory."
        ) from error


def _write(path: Path, text: str) -> None:
    """Writes a file that others see complete or not at all."""
    new = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    new.write_text(text)
    os.replace(new, path)


def _require(directory: Path, made_from: Fingerprint) -> None:
    path = directory / "cache.json"
    for _ in range(100):  # another process has made the directory and is about to write the file
        if path.exists():
            break
        time.sleep(0.02)
    try:
        found = json.loads(path.read_text())["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{directory} is not a cache ({error!r}): delete it.") from error
    _compare(directory, found, made_from, sorted({*found, *made_from}))


def _compare(
    directory: Path, made_from: Fingerprint, now: Fingerprint, keys: Iterable[str]
) -> None:
    differences = [
        f"{key} was {made_from.get(key, 'not given')!r} and is now {now.get(key, 'not given')!r}"
        for key in keys
        if made_from.get(key) != now.get(key)
    ]
    if differences:
        raise UserError(
            f"The cache {directory} is stale: {'; '.join(differences)}. Build it again."
        )


def _local(directory: str | os.PathLike) -> Path:
    if "://" in os.fspath(directory):
        raise UserError(
            f"{directory} is not a local path; caches are memory-mapped from a local disk."
        )
    return Path(directory)


def _share(keys: Keys) -> np.ndarray:
    """A number of each key by which processes share them."""
    return keys.view(np.uint8).reshape(-1, _KEY.itemsize)[:, :4].copy().view(np.uint32).reshape(-1)


def _missing(directory: Path, group: str, keys: Keys) -> Int[np.ndarray, "m"]:
    """The first position of every key that has no row."""
    _, first = np.unique(keys, return_index=True)
    first = np.sort(first)
    return first[_locate(directory, group, keys[first]).shard < 0]


def _locate(directory: Path, group: str, keys: Keys) -> _Group:
    folder = directory / group
    shards = _shards(folder)
    layout = _layout(folder) if shards else {}
    counts, found = [], [np.zeros(0, _KEY)]
    for shard in shards:
        own = np.fromfile(folder / f"{shard}.keys", _KEY)
        size = (folder / f"{shard}.rows").stat().st_size // _row_type(layout).itemsize
        found.append(own[:size])
        counts.append(len(found[-1]))
    known = np.concatenate(found)
    order = np.argsort(known, kind="stable")  # of several rows of a key the first counts
    rank = np.searchsorted(known, keys, sorter=order)
    at = order[np.minimum(rank, len(order) - 1)] if len(order) else np.zeros(len(keys), int)
    there = known[at] == keys if len(order) else np.zeros(len(keys), bool)
    starts = np.cumsum([0, *counts])
    shard = np.searchsorted(starts, at, side="right") - 1
    place = at - starts[np.minimum(shard, len(counts))]
    return _Group(tuple(shards), np.where(there, shard, -1).astype(np.int32), place, layout)


def _shards(folder: Path) -> list[str]:
    """The names of the shards of a group whose files are both there."""
    if not folder.is_dir():
        return []
    files = {path.name for path in folder.iterdir()}
    names = sorted(name.removesuffix(".keys") for name in files if name.endswith(".keys"))
    return [name for name in names if f"{name}.rows" in files]


def _layout(folder: Path) -> dict[str, Spec]:
    try:
        found = json.loads((folder / "layout.json").read_text())
        layout = {
            str(name): Spec(tuple(map(int, shape)), str(dtype))
            for name, (shape, dtype) in found.items()
        }
        _row_type(layout)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{folder} is damaged ({error}): delete the cache.") from error
    return layout


def _row_type(layout: Layout) -> np.dtype:
    """The dtype of a row: its arrays one after another. Files have no bfloat16, so its bits are
    stored as an integer.
    """
    fields = []
    for name, spec in layout.items():
        dtype = np.dtype(spec.dtype)
        if dtype.hasobject:
            raise ValueError(f"{name} has the dtype {dtype}")
        stored = np.dtype(f"u{dtype.itemsize}") if dtype.kind == "V" else dtype
        fields.append((name, stored, spec.shape))
    return np.dtype(fields)


def _map(folder: Path, shard: str, layout: Layout) -> np.memmap:
    dtype, path = _row_type(layout), folder / f"{shard}.rows"
    try:
        rows = path.stat().st_size // dtype.itemsize
        return np.memmap(path, dtype, "r", shape=(rows,))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): delete the cache.") from error
