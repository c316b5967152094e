"""Near-duplicates in the whole pool, as a join of Apache Beam.

    score tables -> (band of a hash, image) -> images with an equal band -> pairs that agree

A 64-bit hash is cut into bands of equal width. Two hashes that differ in fewer bits than there are
bands have an equal band at least, so that with `distance` below `bands` no pair is missed; a larger
distance misses some. Images with an equal band meet at one worker, wherever in the pool they are,
and are compared by the distance of their hashes, the cosine of their embeddings, or both. The bands
of embeddings are those of the signs along random directions.

Many images of one band, say of an empty sky, are not compared all with all, but each with the next
`_NEXT` in the order of their hashes.

The pairs are written by shard of their first image. They depend on the score tables alone, so they
are computed once for their settings; which image of a group stays is a step of
:mod:`emu_jax.curation.choices`.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions
from etils import epath
from jaxtyping import Int

from emu_jax.curation.choices import Duplicates
from emu_jax.curation.scores import Scores, digest, shard_name, write_table
from emu_jax.curation.scoring import user_errors
from emu_jax.errors import UserError

_NEXT = 256


class Member(NamedTuple):
    """An image in a band."""

    row: int  # its number in the pool
    hash: int
    embedding: bytes  # float16


def pairs_folder(out: epath.Path, scores: Scores, step: Duplicates) -> epath.Path:
    """Where the pairs of a step are."""
    return out / "pairs" / digest(step.settings, _tables(scores, step))


def _tables(scores: Scores, step: Duplicates) -> list[str]:
    names = {scores.schema[column][0] for column in _columns(step)}
    return sorted(scores.versions[name] for name in names)


def _columns(step: Duplicates) -> list[str]:
    by_hash, by_embedding = step.match != "embedding", step.match != "hash"
    return [
        *(["hash"] if by_hash else []),
        *(["embedding", "embedding_hash"] if by_embedding else []),
    ]


def find_pairs(
    out: epath.Path, scores: Scores, step: Duplicates, name: str, options: PipelineOptions
) -> epath.Path:
    """Writes the pairs of a step, unless they exist, and returns their folder.

    Raises:
      UserError: there is no score that the step compares.
    """
    for column in _columns(step):
        if column not in scores.schema:
            raise UserError(
                f"{name}.match is {step.match!r}, which needs the filter "
                f"{'hash' if column == 'hash' else 'embedding'}: add it to config.filters."
            )
    folder = pairs_folder(out, scores, step)
    paths = [folder / shard_name(i, scores.count) for i in range(scores.count)]
    if all(path.exists() for path in paths):
        return folder
    starts = scores.starts
    with user_errors(), beam.Pipeline(options=options) as pipeline:
        _ = (
            pipeline
            | "shards" >> beam.Create(list(range(scores.count)))
            | "spread" >> beam.Reshuffle()
            | "bands" >> beam.FlatMap(_bands, scores, step)
            | "by band" >> beam.GroupByKey()
            | "compare" >> beam.FlatMap(_compare, step)
            | "by shard" >> beam.Map(_of_shard, starts.tolist())
            | "pairs of a shard" >> beam.GroupByKey()
            | "write" >> beam.Map(_write, str(folder), scores.count)
        )
    for path in paths:  # of shards without a pair
        if not path.exists():
            _write_pairs(np.zeros((0, 2), np.int64), path)
    return folder


def _bands(
    shard: int, scores: Scores, step: Duplicates
) -> Iterator[tuple[tuple[int, int], Member]]:
    """((number of the band, its bits), image) for every band of every image."""
    columns = scores.read(shard, _columns(step))
    start = int(scores.starts[shard])
    hashes, embeddings = columns.get("hash"), columns.get("embedding")
    banded = [columns[name] for name in ("hash", "embedding_hash") if name in columns]
    if step.match == "both":
        banded = banded[:1]
    width = 64 // step.bands
    for i in np.flatnonzero(scores.readable(shard)):
        own = Member(
            start + int(i),
            int(hashes[i]) if hashes is not None else 0,
            embeddings[i].astype(np.float16).tobytes() if embeddings is not None else b"",
        )
        for kind, values in enumerate(banded):
            bits = int(values[i]) & (2**64 - 1)
            for band in range(step.bands):
                part = (bits >> (band * width)) & (2**width - 1)
                yield (kind * step.bands + band, part), own


def _compare(
    band: tuple[tuple[int, int], Iterable[Any]], step: Duplicates
) -> Iterator[tuple[int, int]]:
    """The pairs of a band that agree."""
    members = sorted((Member(*one) for one in band[1]), key=lambda m: (m.hash, m.row))
    if len(members) < 2:
        return
    rows = np.array([m.row for m in members], np.int64)
    bits = np.array([m.hash for m in members], np.int64).view(np.uint64)
    vectors = None
    if step.match != "hash":
        flat = b"".join(m.embedding for m in members)
        vectors = np.frombuffer(flat, np.float16).reshape(len(rows), -1).astype(np.float32)
    for gap in range(1, min(len(rows), _NEXT + 1)):
        first, second = slice(None, -gap), slice(gap, None)
        near = np.bitwise_count(bits[first] ^ bits[second]) <= step.distance
        if vectors is not None:
            cosines = np.einsum("nd,nd->n", vectors[first], vectors[second])
            alike = cosines >= step.cosine
            near = {"embedding": alike, "both": near & alike, "either": near | alike}[step.match]
        for a, b in zip(rows[first][near], rows[second][near], strict=True):
            yield int(min(a, b)), int(max(a, b))


def _of_shard(pair: tuple[int, int], starts: list[int]) -> tuple[int, tuple[int, int]]:
    return int(np.searchsorted(starts, pair[0], side="right")) - 1, pair


def _write(of_shard: tuple[int, Iterable[Any]], folder: str, count: int) -> int:
    shard, found = of_shard
    pairs = np.array(sorted({(int(a), int(b)) for a, b in found}), np.int64).reshape(-1, 2)
    _write_pairs(pairs, epath.Path(folder) / shard_name(shard, count))
    return shard


def _write_pairs(pairs: Int[np.ndarray, "n 2"], path: epath.Path) -> None:
    write_table(pa.table({"a": pairs[:, 0], "b": pairs[:, 1]}), path)
