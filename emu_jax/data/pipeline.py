"""The input pipeline: from record ids to the batches of one host, computed ahead of time.

    plan.batch(n) -> this host's rows -> read, decode, crop, flip -> stack, tokenize -> arrays

All of it is one pure function of n, `Loader`, which grain maps over range(start_step, ...) in
threads (`threads`, `prefetch` batches ahead) or, for many cores, in `workers` processes. The result
depends neither on the order of computation nor on the number of hosts that share a batch.

Fields of a batch: `image` uint8 [b, h, w, 3]; `sizes` int32 [b, 6] (see images.py); `record`
int32 [b], the index in the concatenation of the sources; `tokens` {encoder: {ids, mask}};
`further` {name: uint8 [b, h, w] for labels, [b, h, w, 3] for other images}, the images that belong
to `image`, in the same crop and flip; `columns` {name: int32 [b, n]}, numbers or numbered
words of manifest columns; `captions` {column: {tokens, text}}, further caption columns of the same
record; `vectors` float32 [b, layers, width], a language model's of the caption, always from a
cache; in a sequential stream `valid` bool [b]. With caches, `moments` [b, h', w', 2c] (and any
other arrays of the image cache) replace `image`, and `text` {encoder: {states, mask, pooled}}
replaces the tokens of those encoders; everything else stays the same, except that the crop is
centered. Caption dropout belongs to the training step.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import grain
import numpy as np
from absl import flags
from jaxtyping import Int

from emu_jax.data.buckets import Shape, make_buckets
from emu_jax.data.cache import Cache
from emu_jax.data.further import COMPUTED, prepare_further, require_names
from emu_jax.data.images import Color, flipped, prepare, view
from emu_jax.data.index import open_members
from emu_jax.data.mixture import (
    Captions,
    Column,
    RecordCaptions,
    Selection,
    captions_fingerprint,
)
from emu_jax.data.plan import BatchPlan, PlannedBatch, SequentialPlan
from emu_jax.data.roster import Roster
from emu_jax.data.source import Source
from emu_jax.data.vectors import ARRAY, GROUP, ControlVectors
from emu_jax.errors import UserError

Tokenize = Callable[[list[str]], Mapping[str, np.ndarray]]
HostBatch = dict[str, Any]

_ENDLESS = 2**62
_MOST = 2**31 - 1  # records of a stream: their numbers are int32
_tokenizing = threading.Lock()  # Hugging Face tokenizers are not safe across threads


@dataclass(frozen=True)
class StreamSpec:
    """How records become batches. Sides are in pixels; `batch_size` is over all hosts."""

    batch_size: int
    side: int
    seed: int = 0
    buckets: bool = False  # aspect-ratio buckets instead of squares
    bucket_step: int = 64
    max_ratio: float = 2.0
    background: Color = (255, 255, 255)
    crop: Literal["centre", "random"] = "centre"
    flip: bool = False
    scaled_decoding: bool = False  # of large JPEGs: see images.py
    further: tuple[str, ...] = ()  # names of further images that rows hold: see further.py
    columns: Mapping[str, Column] = field(default_factory=dict)  # columns that rows hold
    captions: tuple[str, ...] = ()  # further columns of captions, beside each source's own
    sequential: bool = False  # each record once, in order (validation), not an endless mixture
    num_steps: int | None = None  # the stream ends before this step
    workers: int = 0  # processes; 0: threads of this process
    threads: int = 2  # in each process
    prefetch: int = 4  # batches kept ready in each process

    def __post_init__(self):
        if self.crop not in ("centre", "random"):
            raise UserError(f"crop is {self.crop!r}; use 'centre' or 'random'.")
        for name in ("batch_size", "side", "threads", "prefetch"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; use 1 or more.")
        require_names(self.further)

    def shapes(self) -> list[Shape]:
        """The (h, w) that batches can have."""
        if not self.buckets:
            return [(self.side, self.side)]
        return make_buckets(self.side, self.bucket_step, self.max_ratio)


@dataclass(frozen=True)
class Caches:
    """What is read from caches instead of computed: image moments, text states by encoder, those of
    further caption columns by column and encoder, and a language model's vectors.
    """

    moments: Cache | None = None
    text: Mapping[str, Cache] = field(default_factory=dict)
    captions: Mapping[str, Mapping[str, Cache]] = field(default_factory=dict)
    vectors: Cache | ControlVectors | None = None


class Loader:
    """n -> this host's rows of batch n as arrays: a pure function that workers can unpickle."""

    def __init__(
        self,
        spec: StreamSpec,
        selections: Sequence[Selection],
        tokenize: Mapping[str, Tokenize],
        caches: Caches = Caches(),
        rows: Int[np.ndarray, "r"] | None = None,
    ):
        if not selections:
            raise UserError("A stream needs at least one source.")
        if caches.moments:
            if spec.crop != "centre":
                raise UserError("Cached moments are of the centered crop: set crop to 'centre'.")
            caches.moments.require(images_fingerprint(spec, selections))
        self.spec, self.selections, self.caches = spec, list(selections), caches
        for selection in selections:
            _require_further(selection, spec.further)
        self._columns = {
            name: [vocabulary.numbers(s, name) for s in selections]
            for name, vocabulary in spec.columns.items()
        }
        self.tokenize = dict(tokenize)
        shapes = spec.shapes()
        roster = Roster([open_members(s, shapes) for s in selections], shapes)
        self.plan = (
            SequentialPlan(roster, spec.batch_size, spec.seed)
            if spec.sequential
            else BatchPlan(roster, [s.weight for s in selections], spec.batch_size, spec.seed)
        )
        self.captions = None
        if self.tokenize or caches.text or caches.vectors:
            own = [*caches.text.values(), *filter(None, [caches.vectors])]
            self.captions = _captions(selections, own)
        self.further_captions = {
            column: _captions(
                [replace(selection, captions=column) for selection in selections],
                list(caches.captions.get(column, {}).values()),
            )
            for column in spec.captions
        }
        lengths = [len(s.source.manifest) for s in selections]
        if sum(lengths) > _MOST:
            raise UserError(
                f"The sources of a stream have {sum(lengths):,} records; {_MOST:,} are possible."
            )
        self._offsets = np.cumsum([0, *lengths[:-1]])
        self._rows = np.arange(spec.batch_size) if rows is None else rows

    @property
    def steps(self) -> int:
        """The number of batches."""
        steps = len(self.plan) if isinstance(self.plan, SequentialPlan) else _ENDLESS
        return steps if self.spec.num_steps is None else min(steps, self.spec.num_steps)

    def __call__(self, n: int) -> HostBatch:
        rows = self.plan.batch(int(n)).take(self._rows)
        record = self._offsets[rows.sources] + rows.records
        batch: HostBatch = {"record": record.astype(np.int32)}
        if self.spec.sequential:
            batch["valid"] = rows.valid
        moments = self.caches.moments
        batch |= self._cached(rows, moments) if moments else self._images(rows)
        if self.spec.further:
            originals = batch["sizes"][:, :2]
            batch["further"] = {
                name: self._further(rows, originals, name) for name in self.spec.further
            }
        if self._columns:
            places = list(zip(rows.sources, rows.records, strict=True))
            batch["columns"] = {
                name: np.stack([of_part[s][record] for s, record in places])
                for name, of_part in self._columns.items()
            }
        if self.captions:
            batch |= self._texts(self.captions, self.caches.text, rows)
            if self.caches.vectors and isinstance(self.captions, Captions):
                numbers = self.captions.numbers(rows)
                batch["vectors"] = self.caches.vectors.take(numbers, GROUP)[ARRAY]
        if self.further_captions:
            # By the same seeds: of columns with equally many captions, those of the same place.
            batch["captions"] = {
                column: self._texts(captions, self.caches.captions.get(column, {}), rows)
                for column, captions in self.further_captions.items()
            }
        return batch

    def _texts(
        self, captions: Captions | RecordCaptions, caches: Mapping[str, Cache], rows: PlannedBatch
    ) -> HostBatch:
        """The rows' captions: cached states of the encoders in `caches`, tokens of the others."""
        found: HostBatch = {}
        others = self.tokenize.keys() - caches.keys()
        if others:
            texts = captions.draw(rows)
            with _tokenizing:
                found["tokens"] = {
                    name: dict(tokenize(texts))
                    for name, tokenize in self.tokenize.items()
                    if name in others
                }
        if caches and isinstance(captions, Captions):
            numbers = captions.numbers(rows)
            found["text"] = {name: cache.take(numbers, GROUP) for name, cache in caches.items()}
        return found

    def texts(self, n: int) -> list[str]:
        """The captions of batch n, of all hosts' rows that are valid."""
        if not self.captions:
            return []
        rows = self.plan.batch(n)
        return self.captions.draw(rows.take(np.flatnonzero(rows.valid)))

    def _images(self, rows: PlannedBatch) -> HostBatch:
        pairs = [
            self._image(self.selections[s].source, int(record), rows.bucket, int(seed))
            for s, record, seed in zip(rows.sources, rows.records, rows.seeds, strict=True)
        ]
        images, sizes = zip(*pairs, strict=True)
        return {"image": np.stack(images), "sizes": np.stack(sizes)}

    def _image(self, source: Source, record: int, bucket: Shape, seed: int):
        spec = self.spec
        try:
            return prepare(
                source.read(record),
                bucket,
                background=spec.background,
                random_crop=spec.crop == "random",
                flip=spec.flip,
                seed=seed,
                scaled=spec.scaled_decoding,
            )
        except (UserError, OSError, ValueError) as error:
            key = source.manifest.value("key", int(record))
            raise UserError(
                f"Image {key!r} of {source.name} cannot be read ({error}): build the data set "
                "again with --force, which leaves damaged images out."
            ) from error

    def _further(
        self, rows: PlannedBatch, originals: Int[np.ndarray, "b 2"], name: str
    ) -> np.ndarray:
        """A further image of every row; `originals` are the (h, w) of the images."""
        images, spec = [], self.spec
        places = zip(rows.sources, rows.records, rows.seeds, originals.tolist(), strict=True)
        for s, record, seed, (height, width) in places:
            source = self.selections[s].source
            shown = view(
                (height, width),
                rows.bucket,
                random_crop=spec.crop == "random",
                flip=spec.flip,
                seed=int(seed),
            )
            try:
                data = source.read(int(record), "" if name in COMPUTED else name)
                images.append(prepare_further(data, name, shown, spec.background))
            except (UserError, OSError, ValueError) as error:
                key = source.manifest.value("key", int(record))
                raise UserError(
                    f"The further image {name!r} of {key!r} of {source.name} cannot be read "
                    f"({error}): build the data set again with --force."
                ) from error
        return np.stack(images)

    def _cached(self, rows: PlannedBatch, moments: Cache) -> HostBatch:
        roster = self.plan.roster
        bucket = roster.buckets.index(rows.bucket)
        place = roster.position(bucket, rows.sources, rows.records)
        if self.spec.flip:
            place = 2 * place + flipped(rows.seeds)
        return moments.take(place, group_name(rows.bucket))


def make_stream(
    spec: StreamSpec,
    selections: Sequence[Selection],
    tokenize: Mapping[str, Tokenize],
    start_step: int = 0,
    caches: Caches = Caches(),
    rows: Int[np.ndarray, "r"] | None = None,
) -> grain.DatasetIterator[HostBatch]:
    """This host's rows of batch start_step, start_step + 1, ...; call `close()` when done.

    `tokenize`: {encoder: texts -> {ids [b, L], mask [b, L]}}. `rows`: the positions in the batch
    that this host reads, those of its devices; None: all. Raises UserError if spec, sources and
    caches do not fit together; an image that cannot be read raises it from `next`, with the record
    and the source.
    """
    return stream(Loader(spec, selections, tokenize, caches, rows), start_step)


def stream(loader: Loader, start_step: int = 0) -> grain.DatasetIterator[HostBatch]:
    """The batches of a loader from `start_step` on, computed ahead; call `close()` when done."""
    spec = loader.spec
    batches = (
        grain.MapDataset.range(start_step, loader.steps)
        .map(loader)
        .to_iter_dataset(grain.ReadOptions(spec.threads, max(spec.threads, spec.prefetch)))
    )
    if spec.workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain reads flags even without an absl main
        options = grain.MultiprocessingOptions(spec.workers, spec.prefetch)
        batches = batches.mp_prefetch(options).map(_own)
    return iter(batches)


def _own(batch: HostBatch) -> HostBatch:
    """A copy of arrays in memory shared with a worker, which is freed when the worker exits."""
    return {
        name: _own(value) if isinstance(value, dict) else np.array(value, subok=False)
        for name, value in batch.items()
    }


def _captions(
    selections: Sequence[Selection], caches: Sequence[Cache | ControlVectors]
) -> Captions | RecordCaptions:
    """The captions of a mixture, and the check that the caches are of exactly these."""
    if not caches and RecordCaptions.wanted(selections):
        return RecordCaptions(selections)
    captions = Captions(selections)
    for cache in caches:
        cache.require(captions_fingerprint(captions.texts))
    return captions


def _require_further(selection: Selection, further: Sequence[str]) -> None:
    """Raises UserError if a selected record lacks one of the further images."""
    source, manifest = selection.source, selection.source.manifest
    for name in further:
        if name in COMPUTED:
            continue
        if name not in manifest.columns:
            raise UserError(
                f"{source.name} has no further image {name!r}, which this stream needs; choose a "
                "data set that has it."
            )
        condition = f"{name} == ''" + (f" and {selection.select}" if selection.select else "")
        lacking = manifest.select(condition)
        if len(lacking):
            raise UserError(
                f"Record {manifest.value('key', lacking[0])!r} of {source.name} has no further "
                f"image {name!r} ({len(lacking):,} selected records lack it); add `{name} != ''` "
                "to the condition."
            )


def group_name(bucket: Shape) -> str:
    """The group of a moments cache for the images of this bucket."""
    return f"{bucket[0]}x{bucket[1]}"


def images_fingerprint(spec: StreamSpec, selections: Sequence[Selection]) -> dict[str, str]:
    """Identifies the images of a moments cache and their shapes."""
    made_from = {
        "crop": "centre",
        "flip": str(spec.flip),
        "buckets": str(spec.shapes()),
        "background": str(tuple(spec.background)),
    }
    for i, selection in enumerate(selections):
        made_from[f"source {i}"] = (
            f"{selection.source.name} {selection.source.manifest.fingerprint}"
        )
        made_from[f"select {i}"] = selection.select
    return made_from


def measure(batches: Iterable[HostBatch], seconds: float) -> float:
    """Images per second of a stream after its first batch, measured for about `seconds`."""
    count, elapsed, start = 0, 0.0, None
    for batch in batches:
        now = time.perf_counter()
        if start is None:
            start = now
            continue
        count, elapsed = count + len(batch["record"]), now - start
        if elapsed > seconds:
            break
    return count / elapsed if elapsed else 0.0
