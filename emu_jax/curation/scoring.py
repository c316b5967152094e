"""Scoring: every filter over every shard, as a pipeline of Apache Beam.

    shards -> (read, decode, filter in batches, write the shard's tables)

A shard is scored by one worker, and its tables depend on the shard alone: on no order, on no number
of workers. A shard whose tables exist is not read again, so a killed run continues with the next
one, and a filter that is added later computes its own columns only.
"""

import contextlib
import hashlib
import importlib.metadata
import itertools
import logging
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.utils.shared import Shared
from etils import epath
from PIL import Image

import emu_jax
from emu_jax.assembly.checking import typed
from emu_jax.assembly.schema import Section
from emu_jax.curation.filters import Batch, Filter
from emu_jax.curation.registry import FILTERS, SOURCES
from emu_jax.curation.scores import DAMAGED, IMAGES, Scores, digest, write_table
from emu_jax.curation.sections import Curation
from emu_jax.curation.sources import Item, Source
from emu_jax.data.decode import open_image
from emu_jax.data.images import compose, upright
from emu_jax.errors import UserError
from emu_jax.registry import loaded

_TIMES = "emu_jax.curation.times"
_WORKER_OPTIONS = Path(__file__).with_name("worker_options.json")
_COLUMNS: dict[str, pa.DataType] = {  # of the table images, before those of the source
    "key": pa.string(),
    "sha256": pa.string(),
    "width": pa.int32(),
    "height": pa.int32(),
    "captions": pa.list_(pa.string()),
    DAMAGED: pa.string(),
}
_SHIPPED = Path(emu_jax.__file__).parent / "weights"
_models = Shared()
_WHILE = re.compile(r" \[while running ")  # what a runner adds to a message


def made(registry: Mapping[str, Any], section: Section) -> Any:
    """What a section's entry of a registry builds."""
    values = dict(vars(section))
    return loaded(registry[values.pop("kind")])(**values)


def open_scores(config: Curation, out: epath.Path, source: Source) -> Scores:
    """Where the tables of a config are, whether they exist or not."""
    pool = [source.identity, config.background]
    folders = {IMAGES: out / "scores" / f"{IMAGES}-{digest(pool)}"}
    for name, section in config.filters.items():
        settings = dict(vars(section))
        kind = settings["kind"]
        made_by = loaded(FILTERS[kind])
        version = [made_by.VERSION, _versions(kind, made_by), _files(settings)]
        own = digest(pool, config.side, config.batch_size, settings, version)
        folders[name] = out / "scores" / f"{name}-{own}"
    return Scores(len(source.shards), {name: str(path) for name, path in folders.items()})


def _versions(kind: str, made_by: Any) -> list[str]:
    """Of the packages that bring a filter's weights."""
    found = []
    for package in getattr(made_by, "PACKAGES", ()):
        try:
            found.append(importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError as error:
            raise UserError(
                f"The filter {kind} needs the package {package}: pip install 'emu_jax[curation]'"
                f"{'' if kind != 'nudity' else ' nudenet'}."
            ) from error
    return found


def _files(settings: Mapping[str, Any]) -> list[Any]:
    """What tells the weights that settings name by a local path from others under this path: sizes
    and times, and of shipped ones the content.
    """
    found = []
    for name in ("path", "model", "weights"):
        text = str(settings.get(name) or "")
        shipped = text.startswith("builtin:")
        place = _SHIPPED / text.removeprefix("builtin:") if shipped else Path(text).expanduser()
        if not text or not place.exists():
            continue
        for file in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if file.is_file() and shipped:
                found.append((file.name, hashlib.sha256(file.read_bytes()).hexdigest()))
            elif file.is_file():
                found.append((file.name, file.stat().st_size, file.stat().st_mtime_ns))
    return found


def beam_options(workers: int, arguments: Sequence[str]) -> PipelineOptions:
    """Options of the local runner, or those of ``arguments`` where they name another one."""
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    if not any(argument.startswith("--runner") for argument in arguments):
        mode = "multi_processing" if workers > 1 else "in_memory"
        # Processes of this runner read their log level here: otherwise each logs every step of it.
        os.environ.setdefault("PIPELINE_OPTIONS_FILE", str(_WORKER_OPTIONS))
        local = ["--runner=FnApiRunner", f"--direct_num_workers={workers}"]
        arguments = [*local, f"--direct_running_mode={mode}", *arguments]
    return PipelineOptions(list(arguments), save_main_session=False)


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """A UserError of a worker, which a runner wraps in errors of its own, as it was."""
    try:
        yield
    except UserError as error:
        raise UserError(_WHILE.split(str(error))[0]) from error
    except Exception as error:
        if str(error).startswith("Unexpected pipeline runner"):
            raise UserError(f"--beam: {error}") from error
        found = re.search(r"emu_jax\.errors\.UserError: (.+)", str(error))
        if found is None:
            raise
        raise UserError(_WHILE.split(found[1])[0]) from error


def score(
    config: Curation, source: Source, scores: Scores, options: PipelineOptions
) -> dict[str, float]:
    """Computes the tables that are missing. Returns the CPU seconds of reading and decoding and of
    each filter, over all workers, where the runner counts them. (A process is taken to score one
    shard at a time.)
    """
    for name, section in config.filters.items():
        settings = vars(section)
        for key in getattr(loaded(FILTERS[settings["kind"]]), "READS", ()):
            column = settings[key]
            if column not in source.numbers:
                raise UserError(
                    f"config.filters.{name}.{key} is {column!r}; use a column that "
                    "config.source.numbers names."
                )
    todo = [shard for shard in range(scores.count) if scores.missing(shard)]
    if not todo:
        return {}
    with user_errors():
        pipeline = beam.Pipeline(options=options)
        _ = (
            pipeline
            | "shards" >> beam.Create(todo)
            | "spread" >> beam.Reshuffle()
            | "score" >> beam.ParDo(_ScoreShard(config, scores))
        )
        result = pipeline.run()
        result.wait_until_finish()
    try:
        found = result.metrics().query()["counters"]
    except NotImplementedError:
        return {}
    return {
        counter.key.metric.name: counter.committed / 1e6
        for counter in found
        if counter.key.metric.namespace == _TIMES
    }


class _ScoreShard(beam.DoFn):
    """Scores one shard; yields its number."""

    def __init__(self, config: Curation, scores: Scores) -> None:
        # Of plain values: the sections of a registry are classes that no other process can import.
        self._settings, self._scores = asdict(config), scores

    def setup(self) -> None:
        self._config = typed(Curation, self._settings, "config")
        tag = digest(self._settings)
        opened = _models.acquire(lambda: _Opened(self._config), tag)
        self._source, self._filters = opened.source, opened.filter

    def process(self, shard: int) -> Iterator[int]:
        missing = self._scores.missing(shard)
        if missing:
            for name, table in score_shard(
                self._config, self._source, shard, {n: self._filters(n) for n in missing}, _count
            ):
                write_table(table, self._scores.path(name, shard))
        yield shard


def _count(name: str, seconds: float) -> None:
    Metrics.counter(_TIMES, name).inc(round(seconds * 1e6))


class _Opened:
    """The source and the filters of a config, opened once in a process and used by one thread at
    a time.
    """

    def __init__(self, config: Curation) -> None:
        self._config = config
        self._lock = threading.RLock()
        self._made: dict[str, _Locked | None] = {IMAGES: None}
        self.source: Source = made(SOURCES, config.source)

    def filter(self, name: str) -> "_Locked | None":
        with self._lock:
            if name not in self._made:
                opened = made(FILTERS, self._config.filters[name])
                self._made[name] = _Locked(opened)
            return self._made[name]


class _Locked:
    """A filter that threads call in turn: networks of others need not be safe for threads."""

    def __init__(self, inner: Filter) -> None:
        self.columns, self._inner, self._lock = inner.columns, inner, threading.Lock()

    def __call__(self, batch: Batch) -> Mapping[str, Sequence[Any]]:
        with self._lock:
            return self._inner(batch)


def score_shard(
    config: Curation,
    source: Source,
    shard: int,
    filters: Mapping[str, Any],
    count: Any = lambda name, seconds: None,
) -> Iterator[tuple[str, pa.Table]]:
    """(name, table) of the filters called so, of the table images where its filter is None."""
    schema = _COLUMNS | source.columns
    images: dict[str, list[Any]] = {name: [] for name in schema}
    found: dict[str, dict[str, list[Any]]] = {
        name: {column: [] for column in one.columns} for name, one in filters.items() if one
    }
    items = (item for _, item in source.read(shard))
    while chunk := list(itertools.islice(items, config.batch_size)):
        start = time.process_time()
        pixels, rows = zip(*(_decoded(item, config) for item in chunk), strict=True)
        for name in schema:
            images[name] += [row.get(name) for row in rows]
        count("read and decode", time.process_time() - start)
        there = [i for i, image in enumerate(pixels) if image is not None]
        columns = {name: [rows[i].get(name) for i in there] for name in schema}
        batch = Batch([pixels[i] for i in there], columns)
        for name, columns_of in found.items():
            start = time.process_time()
            values = filters[name](batch) if there else {column: [] for column in columns_of}
            for column, into in columns_of.items():
                whole: list[Any] = [None] * len(chunk)
                for i, value in zip(there, values[column], strict=True):
                    whole[i] = value
                into += whole
            count(name, time.process_time() - start)
    if IMAGES in filters:
        yield IMAGES, _table(images, schema)
    for name, of in found.items():
        yield name, _table(of, filters[name].columns)


def _decoded(item: Item, config: Curation) -> tuple[np.ndarray | None, dict[str, Any]]:
    """(pixels or None, row of the table images)."""
    row: dict[str, Any] = {"key": item.key, "captions": item.captions, DAMAGED: item.damaged}
    row |= item.columns
    if item.damaged:
        return None, row
    row["sha256"] = hashlib.sha256(item.data).hexdigest()
    try:
        image = upright(open_image(item.data))
        row["width"], row["height"] = image.size
        image = compose(image, config.background)
        image.thumbnail((config.side, config.side), Image.Resampling.LANCZOS, reducing_gap=3.0)
        return np.asarray(image), row
    except (UserError, OSError, ValueError) as error:  # Pillow's, for modes it cannot convert
        row[DAMAGED] = str(error) or repr(error)
        return None, {**row, "width": None, "height": None}


def _table(columns: Mapping[str, Sequence[Any]], schema: Mapping[str, pa.DataType]) -> pa.Table:
    arrays = [_column(columns[name], kind) for name, kind in schema.items()]
    return pa.table(arrays, names=list(schema))


def _column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_fixed_size_list(kind):  # pyarrow below 26 cannot read null in such a column
        missing = np.zeros(kind.list_size, np.float16)
        values = [missing if x is None else x for x in values]
    elif pa.types.is_floating(kind):  # nan is what null is
        values = [None if x is None or not np.isfinite(x) else float(x) for x in values]
    elif pa.types.is_integer(kind):
        values = [None if x is None else int(x) for x in values]
    return pa.array(values, kind)
