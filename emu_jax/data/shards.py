"""A data set written shard by shard, each shard by any process: one Beam pipeline.

A function of a shard's number yields its images. Whoever runs it writes the shard's ArrayRecord
files (one for the images, one for each name of further images) and, into a folder for work, its
rows of the manifest and a summary, last, by atomic renames. A shard whose summary exists is not
written again. When all are there, a second pass over the rows writes the manifest: one file as of
small data sets, or of more than `manifest_shards.ROWS` rows several. What is written depends on the
shards alone, not on who wrote which.

Beam runs in threads of this process unless options name another runner; without the package
apache-beam the shards are written one after another.
"""

import hashlib
import importlib.util
import io
import itertools
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from tensorflow_datasets.core.example_serializer import ExampleSerializer
from tensorflow_datasets.core.naming import ShardedFileTemplate

from emu_jax.data.manifest import Manifest, Ranks, open_parquet, parquet, rank, schema, with_parts
from emu_jax.data.manifest_shards import ROWS, write_shard, write_shards
from emu_jax.errors import UserError
from emu_jax.progress import watch

_WORK = "work"  # the folder, in the data set's
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Item:
    """An image of a shard; without a row there is none, and `reasons` say why."""

    data: bytes = b""
    row: Mapping[str, Any] = field(default_factory=dict)  # of the manifest, without sha256
    further: Mapping[str, bytes] = field(default_factory=dict)  # images by name; b"": none
    reasons: Mapping[str, str] = field(default_factory=dict)  # by file that is not used


Make = Callable[[int], Iterator[Item]]  # of a shard's number; it must pickle


@dataclass(frozen=True)
class Layout:
    """What all shards of a data set share; it pickles."""

    directory: epath.Path
    files: Mapping[str, ShardedFileTemplate]  # by split, that of the images first
    columns: Mapping[str, pa.DataType]  # of the manifest, beyond the common ones
    about: Mapping[str, str]
    count: int  # shards

    def file(self, split: str, shard: int, count: int) -> epath.Path:
        template = self.files[split]
        return epath.Path(template.sharded_filepath(shard_index=shard, num_shards=count))

    def work(self, name: str) -> epath.Path:
        return self.directory / _WORK / name


@dataclass(frozen=True)
class Written:
    """All shards of a data set. `splits` is empty if no shard has an image."""

    splits: list[tfds.core.SplitInfo]
    reasons: dict[str, str]  # by file that is not used


def write(layout: Layout, make: Make, label: str, options: Sequence[str] = ()) -> Written:
    """Writes every shard and the manifest. Raises UserError where a file cannot be written."""
    layout.work("").mkdir(parents=True, exist_ok=True)
    found = each(_WriteShard(layout, make), layout.count, layout.work("shard"), label, options)
    used = [i for i, one in enumerate(found) if one["rows"]]
    reasons = {name: reason for one in found for name, reason in one["reasons"].items()}
    splits = []
    if used:
        for split, template in layout.files.items():
            if len(used) < layout.count:
                _leave_out_empty(layout, split, used)
            size = sum(one["bytes"][split] for one in found)
            lengths = [found[i]["rows"] for i in used]
            splits.append(tfds.core.SplitInfo(split, lengths, size, template))
        ranks = [Ranks(*found[i]["ranks"]) for i in used]
        counts, least, most = zip(*ranks, strict=True)
        _write_manifest(layout, used, lengths, Ranks(sum(counts), min(least), max(most)), options)
    layout.work("").rmtree()
    return Written(splits, reasons)


def record_features() -> tfds.features.FeaturesDict:
    """What a record of every data set consists of."""
    return tfds.features.FeaturesDict(
        {
            "key": tfds.features.Text(),
            "captions": tfds.features.Sequence(tfds.features.Text()),
            "image": tfds.features.Image(shape=(None, None, None)),
        }
    )


def example(key: str, captions: Sequence[str], data: bytes) -> dict[str, Any]:
    return {"key": key, "captions": captions, "image": io.BytesIO(data)}


@dataclass(frozen=True)
class _WriteShard:
    """Writes the files of a shard, and its rows into the folder for work."""

    layout: Layout
    make: Make

    def __call__(self, shard: int) -> dict[str, Any]:
        layout, features = self.layout, record_features()
        serializer = ExampleSerializer(features.get_serialized_info())
        images, *names = layout.files
        rows, reasons, sizes = [], {}, dict.fromkeys(layout.files, 0)
        writers = {
            split: ArrayRecordWriter(
                os.fspath(layout.file(split, shard, layout.count)), "group_size:1"
            )
            for split in layout.files
        }
        for item in self.make(shard):
            reasons |= item.reasons
            if not item.row:
                continue
            contents = {images: item.data, **{name: item.further.get(name, b"") for name in names}}
            for split, data in contents.items():
                texts = item.row["captions"] if split == images else []
                encoded = features.encode_example(example(item.row["key"], texts, data))
                # Else the order of the features would be that of this process's hash table.
                record = serializer.get_tf_example(encoded).SerializeToString(deterministic=True)
                writers[split].write(record)
                sizes[split] += len(record)
            hashes = {name: _sha256(contents[name]) for name in names}
            rows.append({"sha256": _sha256(item.data), **hashes, **item.row})
        for writer in writers.values():
            writer.close()
        table = Manifest.from_rows(rows, layout.columns, layout.about).table
        layout.work(f"rows-{shard}.parquet").write_bytes(parquet(table))
        ranks = Ranks.of(rank(table["sha256"].to_pylist()))
        return {"rows": len(rows), "bytes": sizes, "reasons": reasons, "ranks": ranks}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest() if data else ""


def _leave_out_empty(layout: Layout, split: str, used: Sequence[int]) -> None:
    """Renumbers the files of a split: readers know no empty shards."""
    for i in set(range(layout.count)) - {*used}:
        layout.file(split, i, layout.count).unlink()
    for new, i in enumerate(used):
        layout.file(split, i, layout.count).rename(layout.file(split, new, len(used)))


@dataclass(frozen=True)
class _WriteManifest:
    """Writes a shard of the manifest from the rows of several shards of records."""

    layout: Layout
    groups: Sequence[Sequence[int]]
    ranks: Ranks

    def __call__(self, index: int) -> list[Any]:
        table = _rows(self.layout, self.groups[index])
        ranks = [] if "part" in table.column_names else rank(table["sha256"].to_pylist())
        table = with_parts(table, ranks, self.ranks)
        return [*write_shard(self.layout.directory, index, len(self.groups), table)]


def _write_manifest(
    layout: Layout,
    used: Sequence[int],
    lengths: Sequence[int],
    ranks: Ranks,
    options: Sequence[str],
) -> None:
    if sum(lengths) <= ROWS:
        Manifest(_rows(layout, used)).write(layout.directory)
        return
    starts = itertools.accumulate(lengths, initial=0)
    groups = itertools.groupby(zip(starts, used, strict=False), key=lambda pair: pair[0] // ROWS)
    shards = [[i for _, i in group] for _, group in groups]
    make = _WriteManifest(layout, shards, ranks)
    found = each(make, len(shards), layout.work("manifest"), "manifest", options)
    write_shards(layout.directory, found)


def _rows(layout: Layout, shards: Sequence[int]) -> pa.Table:
    """The rows of these shards of records."""
    contents = (layout.work(f"rows-{i}.parquet").read_bytes() for i in shards)
    tables = [open_parquet(content).read(use_threads=False) for content in contents]
    table = pa.concat_tables(tables).combine_chunks()
    # Parquet renames the elements of lists; equal manifests have equal files.
    return table.cast(schema(layout.columns, layout.about))


def each(
    work: Callable[[int], Any],
    count: int,
    place: epath.Path,
    label: str,
    options: Sequence[str] = (),
) -> list[Any]:
    """[work(0), ..., work(count - 1)], each computed by any process that Beam's options provide.

    A result is JSON in a file `place-NUMBER.json`; what is there already is not computed again.
    Raises UserError for a UserError and an OSError of `work`.
    """
    task = _Task(work, place)
    missing = [i for i in range(count) if not task.file(i).exists()]
    start = count - len(missing)
    if len(missing) > 1 and importlib.util.find_spec("apache_beam"):
        for _ in watch(_by_beam(task, missing, options), label, count, unit="shards", start=start):
            pass
    else:
        for i in watch(missing, label, count, unit="shards", start=start):
            task(i)
    found = []
    for i in range(count):
        result = json.loads(task.file(i).read_text())
        if "error" in result:
            task.file(i).unlink()
            raise UserError(result["error"])
        found.append(result["value"])
    return found


@dataclass(frozen=True)
class _Task:
    work: Callable[[int], Any]
    place: epath.Path

    def file(self, number: int) -> epath.Path:
        return self.place.parent / f"{self.place.name}-{number}.json"

    def __call__(self, number: int) -> None:
        try:
            result = {"value": self.work(number)}
        except (UserError, OSError) as error:
            result = {"error": str(error)}
        new = self.file(number).with_suffix(".new")
        new.write_text(json.dumps(result))
        new.replace(self.file(number))  # complete or not there


def _by_beam(task: _Task, numbers: Sequence[int], options: Sequence[str]) -> Iterator[int]:
    """Runs the tasks in a pipeline; yields each number when its file is seen."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # of parts of Beam that are not installed
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    logging.disable(disabled)
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    local = [
        "--runner=apache_beam.runners.portability.fn_api_runner.fn_runner.FnApiRunner",
        f"--direct_num_workers={os.cpu_count()}",
        "--direct_running_mode=multi_threading",
    ]
    failed: list[BaseException] = []

    def run() -> None:
        try:
            with beam.Pipeline(options=PipelineOptions([*(options or local)])) as pipeline:
                _ = pipeline | beam.Create(numbers) | beam.Reshuffle() | beam.Map(task)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    waiting = set(numbers)
    while waiting:
        thread.join(_POLL_SECONDS)
        ended = not thread.is_alive()  # before looking: what is written later counts, too
        seen = sorted(i for i in waiting if task.file(i).exists())
        yield from seen
        waiting -= {*seen}
        if ended and failed:
            raise failed[0]
        if ended and waiting:
            raise RuntimeError(f"the pipeline ended without {len(waiting)} of its results")
    thread.join()
