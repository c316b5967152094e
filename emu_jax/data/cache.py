"""Encoder outputs computed once and read from memory-mapped .npy files.

A cache is a directory: `cache.json` (fingerprint and layout) and one file `<group>/<name>.npy` for
each array. A group is a set of rows of one shape: the images of one bucket, or captions. The
fingerprint says what the cache was computed from, as a flat dict of strings (weights of the
encoder, dtype, crop, flip, buckets, background, manifests, selection ...). A cache with another
fingerprint is refused with the difference, and so is an incomplete one.

A build writes into `<directory>.partial` and renames it at the end, so that a directory that exists
is complete; a build that was interrupted continues from its last saved progress.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy
import numpy as np
from jaxtyping import Int

from emu_jax.errors import UserError
from emu_jax.progress import watch

_SAVE_SECONDS = 30  # an interrupted build loses at most this much work
Fingerprint = Mapping[str, str]


class Spec(NamedTuple):
    """Shape (rows first) and dtype name of one array of a cache."""

    shape: tuple[int, ...]
    dtype: str


Layout = Mapping[str, Mapping[str, Spec]]  # group -> array name -> shape and dtype


class Rows(NamedTuple):
    """Consecutive rows of a group from row `start` on, as a build produces them."""

    group: str
    start: int
    arrays: Mapping[str, np.ndarray]


def digest(fingerprint: Fingerprint) -> str:
    """sha256 over all parts of a fingerprint."""
    return hashlib.sha256(json.dumps(dict(fingerprint), sort_keys=True).encode()).hexdigest()


class Cache:
    """A complete cache, opened for reading. It pickles without its arrays."""

    def __init__(self, directory: Path, fingerprint: Fingerprint, layout: Layout):
        self.directory, self.fingerprint, self.layout = directory, dict(fingerprint), layout
        self._arrays = {
            group: {name: _open(directory, group, name, spec) for name, spec in specs.items()}
            for group, specs in layout.items()
        }

    @classmethod
    def open(cls, directory: str | os.PathLike, fingerprint: Fingerprint) -> "Cache":
        """The cache in this directory, if it has this fingerprint.

        Raises UserError if it is missing, incomplete, stale (with the difference) or damaged.
        """
        directory = _local(directory)
        if not directory.exists():
            partial = _partial(directory)
            if partial.exists():
                raise UserError(f"The cache {directory} is incomplete: build it again.")
            raise UserError(f"There is no cache in {directory}: build it first.")
        try:
            description = json.loads((directory / "cache.json").read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{directory} is not a complete cache ({error}): delete it.") from error
        made_from = description["fingerprint"]
        _compare(directory, made_from, fingerprint, sorted({*made_from, *fingerprint}))
        return cls(directory, fingerprint, _read_layout(description))

    def require(self, wanted: Fingerprint) -> None:
        """Raises UserError unless all of `wanted` is in the fingerprint."""
        _compare(self.directory, self.fingerprint, wanted, sorted(wanted))

    def __reduce__(self):
        return Cache, (self.directory, self.fingerprint, self.layout)

    def take(self, ids: Int[np.ndarray, "b"], group: str) -> dict[str, np.ndarray]:
        """The rows `ids` of every array of a group, copied into memory: {name: [b, ...]}."""
        return {name: np.asarray(array[ids]) for name, array in self._arrays[group].items()}


def build(
    directory: str | os.PathLike,
    fingerprint: Fingerprint,
    layout: Layout,
    pieces: Callable[[int], Iterable[Rows]],
    total: int,
) -> Cache:
    """Build a cache from `total` pieces and open it; a valid one is only opened.

    `pieces(k)` yields piece k and those after it, so that an interrupted build can continue; a
    stale or unreadable partial build is deleted. Raises UserError if the disk is too small; all
    space is allocated beforehand.
    """
    try:
        return Cache.open(directory, fingerprint)
    except UserError:
        pass  # missing, incomplete, stale or damaged: to be built
    directory = _local(directory)
    partial = _partial(directory)
    layout = {group: dict(specs) for group, specs in layout.items()}
    description = {"fingerprint": dict(fingerprint), "layout": layout}
    done = _resume(partial, description)
    if done is None:
        shutil.rmtree(partial, ignore_errors=True)
        done = 0
        try:
            _allocate(partial, layout)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            size = sum(_size(spec) for specs in layout.values() for spec in specs.values())
            raise UserError(
                f"The cache {directory} needs {size / 2**30:.1f} GiB, which could not be written "
                f"({error.strerror}): choose another directory or free space."
            ) from error
        _note(partial, description, done)
    arrays = {
        (group, name): _open(partial, group, name, spec, mode="r+")
        for group, specs in layout.items()
        for name, spec in specs.items()
    }

    def save(count: int) -> None:
        for array in arrays.values():
            array.flush()
        _note(partial, description, count)

    saved = time.monotonic()
    label = f"cache {directory.name}"
    for rows in watch(pieces(done), label, total, unit="batches", start=done):
        for name, values in rows.arrays.items():
            arrays[rows.group, name][rows.start : rows.start + len(values)] = values
        done += 1
        if time.monotonic() - saved > _SAVE_SECONDS:
            save(done)
            saved = time.monotonic()
    if done != total:
        raise ValueError(f"a cache of {total} pieces received {done}")
    save(done)
    os.replace(partial / "progress.json", partial / "cache.json")
    shutil.rmtree(directory, ignore_errors=True)  # a stale one
    os.replace(partial, directory)
    return Cache.open(directory, fingerprint)


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


def _partial(directory: Path) -> Path:
    return directory.with_name(directory.name + ".partial")


def _read_layout(description: dict) -> Layout:
    layout = {
        group: {name: Spec(tuple(shape), dtype) for name, (shape, dtype) in specs.items()}
        for group, specs in description["layout"].items()
    }
    for name in (*layout, *(name for specs in layout.values() for name in specs)):
        if "/" in name or name in ("", ".", ".."):
            raise UserError(f"The cache names {name!r}, which is no array of it: build it again.")
    return layout


def _stored_dtype(spec: Spec) -> np.dtype:
    """The dtype of the file: .npy has no bfloat16, so its bits are stored as an integer."""
    dtype = np.dtype(spec.dtype)
    return np.dtype(f"u{dtype.itemsize}") if dtype.kind == "V" else dtype


def _size(spec: Spec) -> int:
    return int(np.prod(spec.shape, dtype=np.int64)) * np.dtype(spec.dtype).itemsize


def _allocate(directory: Path, layout: Layout) -> None:
    for group, specs in layout.items():
        (directory / group).mkdir(parents=True)
        for name, spec in specs.items():
            path = directory / group / f"{name}.npy"
            np.lib.format.open_memmap(path, "w+", _stored_dtype(spec), spec.shape)
            # On a full disk, writing to a hole of a mapped file would kill the process.
            with path.open("r+b") as file:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _open(
    directory: Path, group: str, name: str, spec: Spec, mode: Literal["r", "r+"] = "r"
) -> np.memmap:
    path = directory / group / f"{name}.npy"
    try:
        array = np.lib.format.open_memmap(path, mode)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): build the cache again.") from error
    if array.shape != spec.shape or array.dtype != _stored_dtype(spec):
        raise UserError(
            f"{path} has another shape or dtype than was written: build the cache again."
        )
    return array.view(np.dtype(spec.dtype), np.memmap)


def _note(partial: Path, description: dict, done: int) -> None:
    """Save the progress atomically: the file holds either the old or the new."""
    new = partial / "progress.json.new"
    new.write_text(json.dumps({**description, "done": done}))
    os.replace(new, partial / "progress.json")


def _resume(partial: Path, description: dict) -> int | None:
    """The number of pieces in a partial build of exactly this cache, or None."""
    try:
        found = json.loads((partial / "progress.json").read_text())
        same = found["fingerprint"] == description["fingerprint"]
        return found["done"] if same and _read_layout(found) == description["layout"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
