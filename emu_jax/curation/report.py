"""The report to choose thresholds by looking: one HTML file.

For every score its histogram, of all images and of those that are kept, and images at its
quantiles; for every threshold the images nearest to it on both sides; groups of near-duplicates;
the balance of concepts before and after; the funnel, and the steps measured against known faults.
Images are read from at most `report.shards` shards of the source.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from etils import epath
from jaxtyping import Float
from PIL import Image

from emu_jax.curation.choices import KEPT, Duplicates, Funnel, Population, Threshold
from emu_jax.curation.curating import Chosen, Pool
from emu_jax.data.decode import open_image
from emu_jax.data.images import compose, upright
from emu_jax.data.plan import mix
from emu_jax.errors import UserError
from emu_jax.evaluation.curves import bar_plot, two_histograms
from emu_jax.evaluation.report import Charts, ImageTable, Section, Table, Tile, write_report

_QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
_SAMPLED = 200_000  # images of which quantiles and histograms are taken
_CONCEPTS = 30  # rows of a table, bars of a plot
_NOT_SCORES = {"hash", "embedding_hash", "width", "height"}


def write(pool: Pool, chosen: Chosen) -> epath.Path:
    """Writes OUT/report.html and returns its path."""
    sampled = _Sample(pool, chosen.funnel)
    tables = [
        *_at_thresholds(pool, sampled, chosen),
        *_duplicates(pool, sampled, chosen),
        *_at_quantiles(pool, sampled),
    ]
    shown = (one for table in tables for _, row in table.rows for one in row if one)
    images = _Images(pool, [number for number, _ in shown])
    sections: list[Section] = [
        _funnel(chosen.funnel),
        *_by(chosen.funnel),
        *_balance(pool, chosen.funnel),
        _histograms(sampled),
        *map(images.table, tables),
    ]
    counted = f"{pool.source.origin}: {len(chosen.funnel.left_by):,} images"
    return write_report(pool.out / "report.html", "Curation", sections, counted)


class _Sample:
    """Images from which the report is made: a part of each shard, all of a small pool."""

    def __init__(self, pool: Pool, funnel: Funnel) -> None:
        scores, config = pool.scores, pool.config.report
        numeric = {
            name
            for name, (_, kind) in scores.schema.items()
            if pa.types.is_integer(kind) or pa.types.is_floating(kind)
        }
        self.scores = sorted(numeric - _NOT_SCORES)
        step = -(-len(funnel.left_by) // _SAMPLED)
        # Those whose pixels can be shown: of a few shards, at equal steps.
        shown = np.unique(np.linspace(0, scores.count - 1, min(config.shards, scores.count)))
        parts: dict[str, list[np.ndarray]] = defaultdict(list)
        numbers, visible = [], []
        for shard, (place, columns) in enumerate(scores.each(self.scores)):
            own = np.arange(place.start, place.stop)
            rank = mix(config.seed, own)
            taken = (rank % np.uint64(step) == 0) & (funnel.left_by[place] != 0)
            numbers.append(own[taken])
            visible.append(np.full(len(numbers[-1]), shard in shown.astype(int)))
            for name in self.scores:
                parts[name].append(columns[name][taken].astype(np.float64))
        self.numbers = np.concatenate(numbers)
        self.visible = np.concatenate(visible)
        self.values = {name: np.concatenate(parts[name]) for name in self.scores}
        self.kept = funnel.left_by[self.numbers] == KEPT
        # Scores of which there is something to show.
        self.scores = [n for n in self.scores if len(np.unique(_finite(self.values[n]))) > 1]

    def nearest(self, name: str, value: float, count: int, side: int = 0) -> list[int]:
        """Places of visible images with values nearest to one; side -1: below it, 1: not below."""
        values = self.values[name]
        usable = self.visible & np.isfinite(values)
        if side:
            usable &= (values < value) if side < 0 else (values >= value)
        places = np.flatnonzero(usable)
        order = np.lexsort((mix(0, self.numbers[places]), np.abs(values[places] - value)))
        return places[order[:count]].tolist()


# An image of a table: its number in the pool, and what is written below it.
Shown = tuple[int, str]


class _Table(NamedTuple):
    """Images in rows with a label each; columns of one length if they are named."""

    title: str
    rows: list[tuple[str, list[Shown | None]]]
    columns: Sequence[str] = ()


def _finite(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    return values[np.isfinite(values)]


def _funnel(funnel: Funnel) -> Table:
    rows = []
    for before, row in zip([None, *funnel.rows], funnel.rows, strict=False):
        share = row.left / before.left if before and before.left else None
        low, high = row.bounds or (None, None)
        rows.append(
            (
                row.step,
                row.left,
                _percent(share),
                low,
                high,
                *map(_percent, (row.precision, row.recall)),
            )
        )
    columns = ("step", "images left", "of those before", "at least", "at most")
    return Table(
        "The funnel",
        (*columns, "precision", "recall"),
        rows,
        note="What each step left. Precision and recall are of the fault that the step is to find, "
        "where faults are known; images with another fault count for neither.",
    )


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.1%}"


def _by(funnel: Funnel) -> Iterator[Table]:
    rows = [row for row in funnel.rows if row.by]
    if not rows:
        return
    names = sorted(rows[0].by, key=lambda name: -rows[0].by[name])[:_CONCEPTS]
    yield Table(
        "The funnel by concept",
        ("concept", *(row.step for row in rows)),
        [(name, *(row.by.get(name, 0) for row in rows)) for name in names],
    )


def _histograms(sampled: _Sample) -> Charts:
    plots = {}
    for name in sampled.scores:
        values = sampled.values[name]
        whole, kept = _finite(values), _finite(values[sampled.kept])
        plots[name] = two_histograms(whole, kept, title=name)
    return Charts("Scores", ("all images", "kept"), plots)


def _at_quantiles(pool: Pool, sampled: _Sample) -> Iterator[_Table]:
    count = max(2, pool.config.report.images // 3)
    for name in sampled.scores:
        values = np.sort(_finite(sampled.values[name]))
        at = {float(values[int(q * (len(values) - 1))]): f"{q:.0%}" for q in reversed(_QUANTILES)}
        columns = [_said(sampled, name, sampled.nearest(name, value, count)) for value in at]
        rows = [("", list(row)) for row in itertools.zip_longest(*reversed(columns))]
        labels = [f"{label}: {value:.4g}" for value, label in reversed(at.items())]
        yield _Table(f"{name} at its quantiles", rows, labels)


def _said(sampled: _Sample, name: str, places: Iterable[int]) -> list[Shown | None]:
    found: list[Shown | None] = []
    for i in places:
        kept = "kept" if sampled.kept[i] else "left out"
        found.append((int(sampled.numbers[i]), f"{sampled.values[name][i]:.4g} {kept}"))
    return found


def _at_thresholds(pool: Pool, sampled: _Sample, chosen: Chosen) -> Iterator[_Table]:
    count = pool.config.report.images
    bounds = {row.step: row.bounds for row in chosen.funnel.rows if row.bounds}
    for key, step in chosen.steps.items():
        if not isinstance(step, Threshold) or step.column not in sampled.scores:
            continue
        low, high = bounds.get(key, (None, None))
        for value, word in ((low, "at least"), (high, "at most")):
            if value is None:
                continue
            edge = np.nextafter(value, np.inf) if value == high else value
            below = _said(sampled, step.column, sampled.nearest(step.column, edge, count, -1))
            above = _said(sampled, step.column, sampled.nearest(step.column, edge, count, 1))
            sides = [("fails", below), ("passes", above)]
            if word == "at most":
                sides = [("passes", below), ("fails", above)]
            yield _Table(f"{key}: {step.column} {word} {value:.4g}", sides)


def _duplicates(pool: Pool, sampled: _Sample, chosen: Chosen) -> Iterator[_Table]:
    visible = set(sampled.numbers[sampled.visible].tolist())
    left_by = chosen.funnel.left_by
    for i, (key, step) in enumerate(chosen.steps.items()):
        if not isinstance(step, Duplicates):
            continue
        population = Population(pool.scores, chosen.pairs)
        population.left_by = np.where((left_by > i) | (left_by == KEPT), KEPT, left_by)
        numbers, groups = step.groups(population, f"config.steps.{key}")
        members: dict[int, list[int]] = defaultdict(list)
        for number, group in zip(numbers.tolist(), groups.tolist(), strict=True):
            members[group].append(number)
        rows: list[tuple[str, list[Shown | None]]] = []
        for _, own in sorted(members.items(), key=lambda item: (-len(item[1]), item[0])):
            if len(rows) == pool.config.report.groups:
                break
            own.sort(key=lambda number: (left_by[number] == i + 1, number))
            shown = [number for number in own if number in visible][: pool.config.report.images]
            if len(shown) > 1:
                what: list[Shown | None] = [
                    (n, "left out" if left_by[n] == i + 1 else "stays") for n in shown
                ]
                rows.append((f"{len(own)} images", what))
        if rows:
            yield _Table(f"{key}: {len(members):,} groups of near-duplicates", rows)


class _Images:
    """Thumbnails of images by their numbers in the pool, each read once."""

    def __init__(self, pool: Pool, numbers: Sequence[int]) -> None:
        self._pool, self._starts = pool, pool.scores.starts
        asked: dict[int, dict[int, int]] = defaultdict(dict)
        for number in set(numbers):
            shard = int(np.searchsorted(self._starts, number, side="right")) - 1
            asked[shard][number - int(self._starts[shard])] = number
        self._tiles: dict[int, np.ndarray] = {}
        for shard, rows in sorted(asked.items()):
            for row, item in pool.source.read(shard, frozenset(rows)):
                self._tiles[rows[row]] = self._thumbnail(item.data)

    def _thumbnail(self, data: bytes) -> np.ndarray:
        side = self._pool.config.report.side
        try:
            image = compose(upright(open_image(data)), self._pool.config.background)
        except (UserError, OSError, ValueError):  # the source has changed since it was scored
            return np.full((side, side, 3), 127, np.uint8)
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        return np.asarray(image)

    def table(self, table: _Table) -> ImageTable:
        """A section of the report."""
        width = max(len(shown) for _, shown in table.rows)
        rows: list[tuple[str, list[Tile | None]]] = []
        for label, shown in table.rows:
            tiles = [Tile(self._tiles[one[0]], one[1]) if one else None for one in shown]
            rows.append((label, tiles + [None] * (width - len(tiles))))
        columns = table.columns or [""] * width
        return ImageTable(table.title, columns, rows, width=self._pool.config.report.side)


def _balance(pool: Pool, funnel: Funnel) -> Iterator[Charts]:
    rows = [row for row in funnel.rows if row.by]
    if not rows:
        return
    first, last = rows[0].by, rows[-1].by
    names = sorted(first, key=lambda name: -first[name])[:_CONCEPTS]
    plots = {
        label: bar_plot({name: by.get(name, 0) for name in names}, title=label, color=color)
        for label, by, color in (("readable images", first, 0), ("kept images", last, 1))
    }
    yield Charts(f"Balance by {pool.config.report.by}", (), plots)
