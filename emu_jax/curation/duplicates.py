"""Near-duplicates in the whole pool, as a join of Apache Beam.

    score tables -> (band of a hash, image) -> images with an equal band -> pairs that agree

A 64-bit hash is cut into bands of equal width. Two hashes that differ in fewer bits than there are
bands have an equal band at least, so that with `distance` below `bands` no pair is missed; a larger
distance misses some. Images with an equal band meet at one worker, wherever in the pool they are,
and are compared by the distance of their hashes, the cosine of their embeddings, or both.

A band of a large pool has more images than can be compared all with all. Hashes that differ in d of
64 bits have B - d of B bands equal. So more than `_ALL` images of a band are parted by a further
band, and these parts again, B - d - 1 times at most, and still no pair is missed (Manku et al.
2007). What is larger even then, with the default distance images that agree in half of the hash, is
in the order of the hashes, and each image is compared with the next `_ALL`.

The bands of embeddings are those of the signs along random directions: pairs are found with some
probability, and parts of a large band are made once only.

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
from jaxtyping import Int, UInt64

from emu_jax.curation.choices import Duplicates
from emu_jax.curation.scores import Scores, digest, shard_name, write_table
from emu_jax.curation.scoring import user_errors
from emu_jax.errors import UserError

_ALL = 256  # images that are compared all with all


class Member(NamedTuple):
    """An image in a band."""

    row: int  # its number in the pool
    bits: int  # of which the band is a part
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
        for kind, values in enumerate(banded):
            bits = int(values[i])
            own = Member(
                start + int(i),
                bits,
                int(hashes[i]) if hashes is not None else 0,
                embeddings[i].astype(np.float16).tobytes() if embeddings is not None else b"",
            )
            for band in range(step.bands):
                part = ((bits & (2**64 - 1)) >> (band * width)) & (2**width - 1)
                yield (kind * step.bands + band, part), own


def _compare(
    band: tuple[tuple[int, int], Iterable[Any]], step: Duplicates
) -> Iterator[tuple[int, int]]:
    """The pairs of a band that agree."""
    members = sorted((Member(*one) for one in band[1]), key=lambda m: (m.hash, m.row))
    if len(members) < 2:
        return
    rows = np.array([m.row for m in members], np.int64)
    hashes = np.array([m.hash for m in members], np.int64).view(np.uint64)
    vectors = None
    if step.match != "hash":
        flat = b"".join(m.embedding for m in members)
        vectors = np.frombuffer(flat, np.float16).reshape(len(rows), -1).astype(np.float32)
    kind, number = divmod(band[0][0], step.bands)
    of_hash = kind == 0 and step.match != "embedding"
    further = max(step.bands - step.distance - 1, 0) if of_hash else 1
    bits = np.array([m.bits for m in members], np.int64).view(np.uint64)
    for own in _parts(bits, np.arange(len(rows)), number, further, step.bands):
        for gap in range(1, min(len(own), _ALL + 1)):
            first, second = own[:-gap], own[gap:]
            near = np.bitwise_count(hashes[first] ^ hashes[second]) <= step.distance
            if vectors is not None:
                cosines = np.einsum("nd,nd->n", vectors[first], vectors[second])
                alike = cosines >= step.cosine
                near = {"embedding": alike, "both": near & alike, "either": near | alike}[
                    step.match
                ]
            for a, b in zip(rows[first][near], rows[second][near], strict=True):
                yield int(min(a, b)), int(max(a, b))


def _parts(
    bits: UInt64[np.ndarray, "n"],
    own: Int[np.ndarray, "m"],
    band: int,
    further: int,
    bands: int,
) -> Iterator[Int[np.ndarray, "k"]]:
    """``own``, images with this band equal, or parts of it: with a later band equal too, and so on
    for ``further`` bands, until a part is small. An image is in several parts.
    """
    if len(own) <= _ALL or not further or band + 1 == bands:
        yield own
        return
    width = 64 // bands
    for later in range(band + 1, bands):
        value = (bits[own] >> np.uint64(later * width)) & np.uint64(2**width - 1)
        order = np.argsort(value, kind="stable")
        for part in np.split(own[order], np.flatnonzero(np.diff(value[order])) + 1):
            if len(part) > 1:
                yield from _parts(bits, part, later, further - 1, bands)


def _of_shard(pair: tuple[int, int], starts: list[int]) -> tuple[int, tuple[int, int]]:
    return int(np.searchsorted(starts, pair[0], side="right")) - 1, pair


def _write(of_shard: tuple[int, Iterable[Any]], folder: str, count: int) -> int:
    shard, found = of_shard
    pairs = np.array(sorted({(int(a), int(b)) for a, b in found}), np.int64).reshape(-1, 2)
    _write_pairs(pairs, epath.Path(folder) / shard_name(shard, count))
    return shard


def _write_pairs(pairs: Int[np.ndarray, "n 2"], path: epath.Path) -> None:
    write_table(pa.table({"a": pairs[:, 0], "b": pairs[:, 1]}), path)
