"""Choices: steps that leave images out by their scores, in the order of the config.

    threshold    by a score: a value or a quantile, from below, from above or both
    duplicates   of near-duplicates that are still there the best one stays
    balance      of every concept at most `cap`
    top          the best `count`, with at least `floor` of every concept
    sample       `count` at random

A step reads the score tables shard by shard, as often as it needs to. In memory is one byte an
image: the step that left it out. So thresholds are changed and tried again in seconds.

The best images are those with the largest sum of ``weights`` times standardized scores (minus the
mean, by the deviation, of the images that are there); one without a score comes last. Equal ones
are ranked by a hash of their number and ``seed``.
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from etils import epath
from jaxtyping import Bool, Float, Int, UInt64

from emu_jax.curation.scores import Scores, write_bytes, write_table
from emu_jax.curation.selection import Largest, keys_of, ordered, value_of
from emu_jax.data.plan import mix
from emu_jax.errors import UserError

KEPT = -1  # in `left_by`: no step has left it out
UNREADABLE = 0  # the first row of the funnel; step i of the config is i + 1
_OTHER = "(none)"  # the group of an image without one


class Population:
    """The images, and which of them are still there. ``left_by`` has one number for each."""

    def __init__(self, scores: Scores, pairs: Mapping[str, epath.Path]) -> None:
        self.scores, self.pairs = scores, pairs
        self.left_by = np.full(int(scores.starts[-1]), KEPT, np.int8)
        for shard, place in enumerate(self.places()):
            self.left_by[place][~scores.readable(shard)] = UNREADABLE

    def places(self) -> Iterator[slice]:
        """The numbers of the images of every shard."""
        for start, stop in itertools.pairwise(self.scores.starts.tolist()):
            yield slice(start, stop)

    def coded(self, column: str) -> Iterator[tuple[slice, np.ndarray, list[str]]]:
        """(the numbers of a shard's images, a number for each, the texts of these numbers)."""
        for shard, place in enumerate(self.places()):
            numbers, texts = self.scores.coded(shard, column)
            yield place, np.where(numbers < 0, len(texts), numbers), [*texts, _OTHER]

    def each(
        self, columns: Sequence[str]
    ) -> Iterator[tuple[slice, Bool[np.ndarray, " n"], dict[str, np.ndarray]]]:
        """(the numbers of a shard's images, which of them are there, their columns)."""
        for place, found in self.scores.each(columns):
            yield place, self.left_by[place] == KEPT, found

    def ranks(self, weights: Mapping[str, float], seed: int) -> "Ranks":
        """How the images that are there are ranked; without weights at random."""
        moments = {name: np.zeros(3) for name in weights}
        for _, there, columns in self.each(list(weights)) if weights else ():
            for name, values in columns.items():
                own = values[there & ~np.isnan(values.astype(np.float64))].astype(np.float64)
                moments[name] += len(own), own.sum(), np.square(own).sum()
        scales = {}
        for name, (n, total, squares) in moments.items():
            mean = total / max(n, 1)
            deviation = np.sqrt(max(squares / max(n, 1) - mean**2, 0.0))
            scales[name] = mean, weights[name] / (deviation or 1.0)
        return Ranks(scales, seed)

    def groups(self, column: str) -> list[str]:
        """The values of a column among the images that are there, sorted."""
        return sorted(self.counts(column))

    def counts(self, column: str) -> Counter[str]:
        """How many are there, by a column; by nothing if it is empty."""
        if not column:
            return Counter({"": int(np.count_nonzero(self.left_by == KEPT))})
        found: Counter[str] = Counter()
        for place, numbers, texts in self.coded(column):
            counts = np.bincount(numbers[self.left_by[place] == KEPT], minlength=len(texts))
            found.update({text: int(n) for text, n in zip(texts, counts, strict=True) if n})
        return found


@dataclass(frozen=True)
class Ranks:
    """Ranks images by scores: {name: (mean, weight by deviation)}."""

    scales: Mapping[str, tuple[float, float]]
    seed: int

    def keys(self, place: slice, columns: Mapping[str, np.ndarray]) -> UInt64[np.ndarray, " n"]:
        """The best image has the largest key."""
        ties = mix(self.seed, np.arange(place.start, place.stop))
        if not self.scales:
            return ties
        return keys_of(self.values(columns), ties)

    def values(self, columns: Mapping[str, np.ndarray]) -> Float[np.ndarray, " n"]:
        parts = [(columns[name] - mean) * weight for name, (mean, weight) in self.scales.items()]
        return np.sum(parts, axis=0).astype(np.float32)


class Step(Protocol):
    """A step of the funnel. ``name`` is its dotted name in the config, for messages."""

    removes: str

    def choose(self, population: Population, name: str) -> Iterator[Bool[np.ndarray, " n"]]:
        """Which images of each shard it leaves out, of those that are there; a threshold says it
        of all images.
        """
        ...


# The steps ---------------------------------------------------------------------------------------


class Threshold:
    """Leaves out images whose ``column`` lies outside a range, given by values, by quantiles of the
    images that are there (0 to 1; what lies at the quantile stays), or both.

    An image without this score stays if ``keep_missing``. ``removes`` is the fault, or several
    separated by ``|``, of the config's ``labels`` that the step is to find.
    """

    def __init__(
        self,
        column: str,
        at_least: float | None = None,
        at_most: float | None = None,
        quantile_at_least: float | None = None,
        quantile_at_most: float | None = None,
        keep_missing: bool = False,
        removes: str = "",
    ) -> None:
        self.column, self.keep_missing, self.removes = column, keep_missing, removes
        self.low, self.high = at_least, at_most
        self._quantiles = quantile_at_least, quantile_at_most
        self.used: tuple[float | None, float | None] = (None, None)  # the bounds of the last choice

    def choose(self, population: Population, name: str) -> Iterator[Bool[np.ndarray, " n"]]:
        population.scores.require(self.column, f"{name}.column", number=True)
        low, high = self.used = self._bounds(population)
        for _, _, columns in population.each([self.column]):
            values = columns[self.column].astype(np.float64)
            outside = np.zeros(len(values), bool)
            if low is not None:
                outside |= values < low
            if high is not None:
                outside |= values > high
            yield np.where(np.isnan(values), not self.keep_missing, outside)

    def _bounds(self, population: Population) -> tuple[float | None, float | None]:
        """The range, the tighter of value and quantile."""
        low, high = (self._quantile(population, q) for q in self._quantiles)
        lows = [x for x in (self.low, low) if x is not None]
        highs = [x for x in (self.high, high) if x is not None]
        return max(lows, default=None), min(highs, default=None)

    def _quantile(self, population: Population, q: float | None) -> float | None:
        """The value at rank floor(q (n - 1)) of the n that are there, exact in float32."""
        if q is None:
            return None

        def parts() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for _, there, columns in population.each([self.column]):
                values = columns[self.column].astype(np.float32)
                keys = ordered(values).astype(np.uint64) << np.uint64(32)
                yield keys, np.where(there & ~np.isnan(values), 0, -1)

        total = sum(int(np.count_nonzero(group == 0)) for _, group in parts())
        if not total:
            return None
        rank = int(np.floor(q * (total - 1)))  # from below
        found = Largest(parts, np.array([total - rank])).least()
        return _smallest(parts) if found is None else value_of(found)


def _smallest(parts: Any) -> float:
    least = min(int(keys[group == 0].min()) for keys, group in parts() if (group == 0).any())
    return value_of(least)


class Duplicates:
    """Of near-duplicates that are still there the best one stays
    (:mod:`emu_jax.curation.duplicates` says how they are found, once for these settings).

    ``match`` is what must agree: ``hash``, at most ``distance`` of 64 bits of the perceptual hash
    differ; ``embedding``, their cosine is at least ``cosine``; ``both``; or ``either``. ``bands``
    are the parts of a hash of which one must be equal for two images to be compared at all.
    ``origin`` is a column of texts that are equal for true duplicates, to measure the step.
    """

    def __init__(
        self,
        match: str = "hash",
        distance: int = 4,
        cosine: float = 0.95,
        bands: int = 8,
        weights: dict[str, float] | None = None,
        seed: int = 0,
        origin: str = "",
        removes: str = "",
    ) -> None:
        self.match, self.distance, self.cosine, self.bands = match, distance, cosine, bands
        self.weights, self.seed, self.origin = dict(weights or {}), seed, origin
        self.removes = removes

    @property
    def settings(self) -> list[Any]:
        """What the pairs depend on."""
        cosine = self.cosine if self.match != "hash" else None
        distance = self.distance if self.match != "embedding" else None
        return [self.match, distance, cosine, self.bands]

    def choose(self, population: Population, name: str) -> Iterator[Bool[np.ndarray, " n"]]:
        _require(population, self.weights, f"{name}.weights")
        rows, group = self.groups(population, name)
        ranks = population.ranks(self.weights, self.seed)
        best: dict[int, tuple[int, int]] = {}
        keys = np.zeros(len(rows), np.uint64)
        for place, _, columns in population.each(list(self.weights)):
            first, last = np.searchsorted(rows, [place.start, place.stop])
            if last > first:
                own = ranks.keys(place, columns)
                keys[first:last] = own[rows[first:last] - place.start]
        for i in np.lexsort((-rows, keys)):  # the best last, of equal ones the first
            best[int(group[i])] = int(keys[i]), int(rows[i])
        stay = {row for _, row in best.values()}
        for place in population.places():
            out = np.zeros(place.stop - place.start, bool)
            first, last = np.searchsorted(rows, [place.start, place.stop])
            for row in rows[first:last]:
                out[row - place.start] = int(row) not in stay
            yield out

    def groups(
        self, population: Population, name: str
    ) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """(numbers of images that are there and have a duplicate there, ascending; the group of
        each): the connected components of the pairs.
        """
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        pairs = read_pairs(population.pairs[name])
        there = (population.left_by[pairs] == KEPT).all(axis=1)
        rows, ends = np.unique(pairs[there], return_inverse=True)
        ends = ends.reshape(-1, 2)
        edges = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), (len(rows), len(rows)))
        return rows, connected_components(edges, directed=False)[1]


def read_pairs(folder: epath.Path) -> Int[np.ndarray, "n 2"]:
    """The pairs that :func:`emu_jax.curation.duplicates.find_pairs` wrote, sorted."""
    from emu_jax.data.manifest import open_parquet

    parts = [np.zeros((0, 2), np.int64)]
    for file in sorted(folder.glob("*.parquet")):
        table = open_parquet(file.read_bytes()).read(use_threads=False)
        parts.append(np.stack([table["a"].to_numpy(), table["b"].to_numpy()], axis=1))
    found = np.concatenate(parts)
    return found[np.lexsort((found[:, 1], found[:, 0]))]


class Balance:
    """Of every value of ``column`` the best ``cap`` stay. Without weights they are at random."""

    def __init__(
        self,
        cap: int,
        column: str = "concept",
        weights: dict[str, float] | None = None,
        seed: int = 0,
        removes: str = "",
    ) -> None:
        self.cap, self.column, self.weights = cap, column, dict(weights or {})
        self.seed, self.removes = seed, removes

    def choose(self, population: Population, name: str) -> Iterator[Bool[np.ndarray, " n"]]:
        population.scores.require(self.column, f"{name}.column")
        _require(population, self.weights, f"{name}.weights")
        names = population.groups(self.column)
        parts = _parts(population, self.weights, self.seed, self.column, names)
        for chosen in Largest(parts, np.full(len(names), self.cap)):
            yield ~chosen


class Top:
    """The best ``count`` images stay, among them at least ``floor`` of every value of ``column``
    that has so many.
    """

    def __init__(
        self,
        count: int,
        weights: dict[str, float] | None = None,
        floor: int = 0,
        column: str = "concept",
        seed: int = 0,
        removes: str = "",
    ) -> None:
        self.count, self.floor, self.column = count, floor, column
        self.weights, self.seed, self.removes = dict(weights or {}), seed, removes

    def choose(self, population: Population, name: str) -> Iterator[Bool[np.ndarray, " n"]]:
        _require(population, self.weights, f"{name}.weights")
        reserved = np.zeros(len(population.left_by), bool)
        if self.floor:
            population.scores.require(self.column, f"{name}.column")
            names = population.groups(self.column)
            parts = _parts(population, self.weights, self.seed, self.column, names)
            chosen = Largest(parts, np.full(len(names), self.floor))
            for place, own in zip(population.places(), chosen, strict=True):
                reserved[place] = own
        least = int(np.count_nonzero(reserved))
        if least > self.count:
            raise UserError(
                f"{name}.floor is {self.floor}, which makes {least} images of all concepts, and "
                f"{name}.count is {self.count}; lower the floor."
            )
        rest = _parts(population, self.weights, self.seed, "", [""], without=reserved)
        chosen = Largest(rest, np.array([self.count - least]))
        for place, own in zip(population.places(), chosen, strict=True):
            yield ~(own | reserved[place])


class Sample(Top):
    """``count`` images at random stay."""

    def __init__(self, count: int, seed: int = 0, removes: str = "") -> None:
        super().__init__(count, seed=seed, removes=removes)


def _require(population: Population, weights: Mapping[str, float], key: str) -> None:
    for name in weights:
        population.scores.require(name, f"{key}.{name}", number=True)


def _parts(
    population: Population,
    weights: Mapping[str, float],
    seed: int,
    column: str,
    names: Sequence[str],
    without: Bool[np.ndarray, " n"] | None = None,
) -> Any:
    """Keys and groups for :class:`Largest`: of a column's values, or one group of all."""
    ranks = population.ranks(weights, seed)
    number = {name: i for i, name in enumerate(names)}

    def parts() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        coded = population.coded(column) if column else itertools.repeat((None, None, None))
        for (place, there, columns), (_, numbers, texts) in zip(
            population.each(list(weights)), coded, strict=False
        ):
            if without is not None:
                there = there & ~without[place]
            group = np.zeros(len(there), np.int64)
            if numbers is not None and texts is not None:
                group = np.array([number.get(text, -1) for text in texts])[numbers]
            yield ranks.keys(place, columns), np.where(there, group, -1)

    return parts


# The funnel --------------------------------------------------------------------------------------


@dataclass
class Row:
    """A line of the funnel: what a step left."""

    step: str
    left: int
    by: dict[str, int] = field(default_factory=dict)  # what is left, by the report's column
    bounds: tuple[float | None, float | None] | None = None  # of a threshold
    precision: float | None = None  # of the fault that it is to find, where it is known
    recall: float | None = None


@dataclass
class Funnel:
    """What came in, and what each step left. ``left_by`` says of every image which step left it
    out (0: it cannot be read; i + 1: step i; -1: none).
    """

    rows: list[Row]
    left_by: Int[np.ndarray, " n"]

    def write(self, folder: epath.Path) -> None:
        """Into a folder, the funnel's table last."""
        table = pa.table({"left_by": pa.array(self.left_by, pa.int8())})
        write_table(table, folder / "left_by.parquet")
        rows = [vars(row) for row in self.rows]
        write_bytes(json.dumps(rows, indent=1).encode(), folder / "funnel.json")


def choose(
    scores: Scores,
    steps: Mapping[str, Step],
    pairs: Mapping[str, epath.Path],
    by: str = "",
    labels: str = "",
) -> Funnel:
    """Takes the steps in order. ``pairs`` are the folders of the near-duplicates of the steps that
    need them, by dotted name.

    Raises:
      UserError: a step names a column that no table has.
    """
    if by:
        scores.require(by, "config.report.by")
    if labels:
        scores.require(labels, "config.labels")
    population = Population(scores, pairs)
    total = len(population.left_by)
    rows = [Row("pool", total), _row("readable", population, by)]
    for i, (key, step) in enumerate(steps.items()):
        name = f"config.steps.{key}"
        measured = _Measured(population, step, labels)
        # A step decides on a shard after it has read what it needs of all of them.
        for place, own in zip(population.places(), step.choose(population, name), strict=True):
            measured.add(place, own)
            there = population.left_by[place] == KEPT
            population.left_by[place][there & own] = i + 1
        row = _row(key, population, by)
        row.bounds = step.used if isinstance(step, Threshold) else None
        row.precision, row.recall = measured.result()
        rows.append(row)
    return Funnel(rows, population.left_by)


def _row(name: str, population: Population, by: str) -> Row:
    counts = population.counts(by)
    return Row(name, sum(counts.values()), dict(sorted(counts.items())) if by else {})


class _Measured:
    """Precision and recall of a step against known faults: for a threshold of all readable images
    that have none of the other faults. Of duplicates those are right of which another one of the
    same origin stays.
    """

    def __init__(self, population: Population, step: Step, labels: str) -> None:
        self._population, self._step = population, step
        self._labels = labels if step.removes else ""
        self._origin = step.origin if isinstance(step, Duplicates) else ""
        self._right = self._removed = self._faulty = 0
        self._there: Counter[str] = Counter()
        self._stay: Counter[str] = Counter()

    def add(self, place: slice, out: Bool[np.ndarray, " n"]) -> None:
        column = self._origin or self._labels
        if not column:
            return
        shard = int(np.searchsorted(self._population.scores.starts, place.start, side="right")) - 1
        values = self._population.scores.read(shard, [column])[column]
        left_by = self._population.left_by[place]
        if self._origin:
            there = left_by == KEPT
            self._there.update(values[there])
            self._stay.update(values[there & ~out])
            self._removed += int(np.count_nonzero(out & there))
            return
        faulty = np.isin(values.astype(str), self._step.removes.split("|"))
        clean = np.array([not value for value in values], bool)
        readable = (left_by != UNREADABLE) & (clean | faulty)
        self._right += int(np.count_nonzero(readable & out & faulty))
        self._removed += int(np.count_nonzero(readable & out))
        self._faulty += int(np.count_nonzero(readable & faulty))

    def result(self) -> tuple[float | None, float | None]:
        if self._origin:
            gone = {name: n - self._stay[name] for name, n in self._there.items()}
            self._right = sum(min(n, self._there[name] - 1) for name, n in gone.items())
            self._faulty = sum(n - 1 for n in self._there.values())
        elif not self._labels:
            return None, None
        precision = self._right / self._removed if self._removed else None
        return precision, self._right / self._faulty if self._faulty else None
