"""The bucket of every selected record, computed once for a large data set.

Of at most `IN_MEMORY` records the buckets are computed each time, in memory. Of more they are
computed shard by shard, by several threads, and stored in the data set's folder (or, where that
cannot be written, in `~/.cache/emu_jax`), under a digest of the manifest, the condition and the
buckets; they are memory-mapped, so that all processes of a machine share them.
"""

import concurrent.futures
import hashlib
import os
import shutil
import uuid
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from emu_jax.data.buckets import Shape, assign, tabulated
from emu_jax.data.manifest import named_in
from emu_jax.data.mixture import Selection
from emu_jax.data.roster import FILES, Everything, Members, count_blocks, empty
from emu_jax.errors import UserError
from emu_jax.progress import watch

IN_MEMORY = 2**24  # records
_FORMAT = "1"  # of the files


def open_members(selection: Selection, shapes: Sequence[Shape]) -> Members | Everything:
    """The selected records of a source by bucket.

    Raises UserError if the condition is invalid or selects nothing.
    """
    manifest = selection.source.manifest
    names = named_in(selection.select)
    manifest.require(names)
    if not names and len(shapes) == 1 and len(manifest):
        return Everything(len(manifest))
    if len(manifest) <= IN_MEMORY:
        codes, before = empty(len(manifest), len(shapes))
        _fill(codes, before, selection, shapes)
        members = Members(codes, before)
    else:
        members = _stored(selection, shapes)
    if not members.counts.any():
        raise UserError(f"No record of {selection.source.name} matches {selection.select!r}.")
    return members


def _stored(selection: Selection, shapes: Sequence[Shape]) -> Members:
    source = selection.source
    made_from = (_FORMAT, source.manifest.fingerprint, selection.select, [*shapes])
    name = hashlib.sha256(repr(made_from).encode()).hexdigest()[:16]
    for root in _folders(source.directory):
        if all((root / name / file).exists() for file in FILES):
            return Members.open(root / name)
        new = root / f".{name}-{uuid.uuid4().hex}"
        try:
            new.mkdir(parents=True)
        except OSError:  # a data set that may only be read
            continue
        try:
            arrays = empty(len(source.manifest), len(shapes), new)
            _fill(*arrays, selection, shapes, many=True)
            for array in arrays:
                assert isinstance(array, np.memmap)
                array.flush()
            if not (root / name).exists():  # another process may have been faster
                os.replace(new, root / name)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        return Members.open(root / name)
    raise UserError(
        f"The index of {source.name} can be written neither beside the data set nor in "
        "~/.cache/emu_jax: make one of them writable."
    )


def _folders(directory: str) -> list[Path]:
    """Where an index may be, in the order of preference."""
    found = [Path("~/.cache/emu_jax/index").expanduser()]
    return found if "://" in directory else [Path(directory) / "index", *found]


def _fill(
    codes: np.ndarray,
    before: np.ndarray,
    selection: Selection,
    shapes: Sequence[Shape],
    many: bool = False,
) -> None:
    """The codes and the table of :class:`Members`."""
    manifest, flat, select = selection.source.manifest, codes.reshape(-1), selection.select
    names = list(dict.fromkeys([*named_in(select), "width", "height"]))
    find = tabulated(shapes) if many else partial(assign, buckets=shapes)

    def fill(i: int) -> None:
        start, shard = manifest.starts[i], manifest.shard(i, names)
        found = find(shard.column("width"), shard.column("height"))
        flat[start : start + len(shard)] = np.where(shard.matches(select), found, len(shapes))

    indices = range(len(manifest.starts))
    if many:
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in watch(
                pool.map(fill, indices),
                f"index {selection.source.name}",
                len(indices),
                unit="shards",
            ):
                pass
    else:
        for i in indices:
            fill(i)
    count_blocks(codes, before)
