"""What comparisons of models say of the claims about them (:mod:`emu_jax.evaluation.claims`).

A figure is a question of :mod:`emu_jax.evaluation.contents`, a metric, or a figure of the judge.
Without ``against`` a requirement is on the arm itself, else on the arm minus ``times`` (by default
1) the other one; with ``floor``, too, on the share (arm - floor) / (against - floor). Prompts are
the units: the values of an arm are means over its seeds and over the images of a prompt, and
intervals are 95 % by bootstrap over prompts. ``more_than`` holds if the whole interval lies above
it and the value of every seed does too; ``less_than``, if they lie below. ``within`` holds if the
whole interval lies between -within and within (an equivalence test: that a difference is not
significant says nothing); the p-value of the t-test on independent means, which papers print in its
place, stands beside it.

Where the file of claims names kinds of prompts, a kind that fails a gate is left out: claims and
gaps are of the other kinds, separately or together.

A distance between sets, such as Frechet's, has no value per image. Its requirements are decided by
draws from normal distributions with the intervals of the comparisons, each arm by itself: as if the
prompts were not shared, so that intervals are rather too wide.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from emu_jax.errors import UserError
from emu_jax.evaluation.claims import Claims, Gap, Overview, Requirement
from emu_jax.evaluation.metrics import DEVIATIONS, Interval, mean_interval, ratio_interval

Record = Mapping[str, Any]  # compare.json
Seeds = Float[np.ndarray, "s n"]  # a value of every seed and prompt
_DRAWS = 20_000
HOLDS, FAILS, VOID = "holds", "does not hold", "void: a gate failed"


@dataclass(frozen=True)
class Measured:
    """A value with its interval, of one kind or of several together, and of every seed."""

    kind: str  # "count", "count, two"; of all prompts: ""
    interval: Interval
    seeds: Sequence[float]
    p: float | None = None  # of the t-test on independent means


@dataclass(frozen=True)
class Verdict:
    requirement: Requirement
    measured: Sequence[Measured]
    result: str


@dataclass
class Comparison:
    """The values per image of one or more records of ``emu-jax compare`` on the same prompts."""

    records: Sequence[Record]

    def __post_init__(self):
        for record in self.records:
            if not {"prompts", "models"} <= record.keys():
                raise UserError("A record has no prompts or models: name files of emu-jax compare.")
        asked = [(one["prompts"], one.get("images_per_prompt", 1)) for one in self.records]
        if any(one != asked[0] for one in asked):
            raise UserError("The comparisons are of different prompts: compare on the same.")

    def values(self, models: Sequence[str], figure: str, kinds: Sequence[str] = ()) -> Seeds:
        """The mean of every prompt's images, of prompts of these kinds or of all that have the
        figure.

        Raises:
          UserError: no comparison has the model, or the figure.
        """
        found = [self._images(model, figure, kinds) for model in models]
        prompts = np.array([*found[0]]) // self.records[0].get("images_per_prompt", 1)
        _, rows, count = np.unique(prompts, return_inverse=True, return_counts=True)
        means = [np.bincount(rows, np.array([*own.values()], float)) / count for own in found]
        return np.stack(means)

    def kinds(self) -> list[str]:
        """The kinds of the prompts whose images were read."""
        images = [one.get("contents", {}).get("images", {}) for one in self.records]
        return sorted({x["kind"] for own in images for rows in own.values() for x in rows})

    def distances(self, models: Sequence[str], figure: str) -> list[Interval]:
        """The figure of sets of images of each model; none if it is no such figure."""
        found = (_of_set(record, model, figure) for model in models for record in self.records)
        return [Interval(**entry) for entry in found if entry]

    def _images(self, model: str, figure: str, kinds: Sequence[str]) -> Mapping[int, float]:
        for record in self.records:
            found = dict(_read(record, model, figure, kinds))
            if found:
                return found
        known = sorted({name for record in self.records for name in record["models"]})
        if model not in known:
            raise UserError(f"No comparison has a model {model!r}; they have {', '.join(known)}.")
        of = f" of the kinds {', '.join(kinds)}" if kinds else ""
        raise UserError(f"The comparison has no figure {figure!r} of {model}{of}.")


def decide(claims: Claims, found: Comparison) -> tuple[list[Verdict], list[Verdict]]:
    """The verdicts on gates and on claims."""
    gates, left = _gates(claims, found), kinds_left(claims, found)
    passed = _pass([(gate.requirement, gate.result != FAILS) for gate in gates])
    verdicts = [_decided(one, claims, found, left) for one in claims.claims]
    if not passed or (claims.kinds and not left):
        verdicts = [replace(one, result=VOID) for one in verdicts]
    return gates, verdicts


def kinds_left(claims: Claims, found: Comparison) -> list[str]:
    """Those of ``claims.kinds`` that fail no gate.

    Raises:
      UserError: no prompt of the comparison is of a kind.
    """
    known = found.kinds()
    for kind in claims.kinds:
        if kind not in known:
            raise UserError(
                f"The claims are about prompts of the kind {kind!r}, and the comparison has none; "
                f"its kinds are {', '.join(known) or 'none'}."
            )
    gates = [gate for gate in _gates(claims, found) if not gate.requirement.kinds]

    def passes(kind: str) -> bool:
        parts = [
            (gate.requirement, part)
            for gate in gates
            for part in gate.measured
            if part.kind == kind
        ]
        return _pass([(one, _holds(one, part)) for one, part in parts])

    return [kind for kind in claims.kinds if passes(kind)]


def _pass(gates: Sequence[tuple[Requirement, bool]]) -> bool:
    """Whether every gate holds; of those with the same name one is enough."""
    alternatives: dict[str | int, list[bool]] = {}
    for i, (one, holds) in enumerate(gates):
        alternatives.setdefault(one.name or i, []).append(holds)
    return all(map(any, alternatives.values()))


def gaps(claims: Claims, found: Comparison) -> list[tuple[Gap, list[Measured]]]:
    """The shares of gaps that arms close."""
    left = kinds_left(claims, found)
    return [
        (
            gap,
            _marked(
                [_gap(gap, claims, found, part) for part in _parts(gap.kinds, left)], claims, left
            ),
        )
        for gap in claims.gaps
    ]


def overview(table: Overview, claims: Claims, found: Comparison) -> dict[str, list[Measured]]:
    """The figure of every arm: of all prompts together, and of every kind."""
    return {
        arm: [
            _measured(Requirement("", arm, table.figure, more_than=0.0), claims, found, kinds)
            for kinds in [[], *([kind] for kind in table.kinds)]
        ]
        for arm in table.arms or claims.arms
    }


def _gates(claims: Claims, found: Comparison) -> list[Verdict]:
    """Those without kinds of their own are decided for each of ``claims.kinds``."""
    verdicts = []
    for one in claims.gates:
        parts = _parts(one.kinds or claims.kinds, [])
        measured = [_measured(one, claims, found, kinds) for kinds in parts]
        holding = [part.kind for part in measured if _holds(one, part)]
        result = HOLDS if len(holding) >= (one.at_least or len(measured)) else FAILS
        if result == FAILS and holding and not one.kinds:
            result = f"{HOLDS} for {', '.join(holding)}"
        verdicts.append(Verdict(one, measured, result))
    return verdicts


def _decided(one: Requirement, claims: Claims, found: Comparison, left: Sequence[str]) -> Verdict:
    measured = [_measured(one, claims, found, kinds) for kinds in _parts(one.kinds, left)]
    counted = [part for part in measured if part.kind in left or part.kind not in claims.kinds]
    holding, needed = sum(_holds(one, part) for part in counted), one.at_least or len(counted)
    marked = _marked(measured, claims, left)
    if not 0 < needed <= len(counted):
        return Verdict(one, marked, VOID)
    return Verdict(one, marked, HOLDS if holding >= needed else FAILS)


def _parts(kinds: Sequence[str], otherwise: Sequence[str]) -> list[list[str]]:
    """The sets of kinds for which something is measured: each, or all of ``otherwise``."""
    return [[kind] for kind in kinds] or [[*otherwise]]


def _marked(measured: Sequence[Measured], claims: Claims, left: Sequence[str]) -> list[Measured]:
    """Kinds that fail a gate are reported, but not counted."""
    out = set(claims.kinds).difference(left)
    return [
        replace(part, kind=f"{part.kind} (left out)") if part.kind in out else part
        for part in measured
    ]


def _measured(
    one: Requirement, claims: Claims, found: Comparison, kinds: Sequence[str]
) -> Measured:
    if found.distances(claims.arms[one.arm], one.figure):
        return _of_sets(one, claims, found)
    ours = found.values(claims.arms[one.arm], one.figure, kinds)
    name = ", ".join(kinds)
    if not one.against:
        return Measured(name, mean_interval(ours.mean(0)), ours.mean(1).tolist())
    if one.floor:
        return _gap(Gap(one.arm, one.floor, one.against, one.figure), claims, found, kinds)
    theirs = one.times * found.values(claims.arms[one.against], one.figure, kinds)
    each = ours - theirs if len(ours) == len(theirs) else ours - theirs.mean(0)
    a, b = ours.mean(0), theirs.mean(0)
    p = float(stats.ttest_ind(a, b).pvalue) if np.ptp(a) and np.ptp(b) else None
    lead = mean_interval(a - b)
    return Measured(name, lead, each.mean(1).tolist(), p)


def _of_sets(one: Requirement, claims: Claims, found: Comparison) -> Measured:
    generator, values, drawn = np.random.default_rng(0), [], []
    for name in filter(None, (one.arm, one.against, one.floor)):
        intervals = found.distances(claims.arms[name], one.figure)
        if len(intervals) != len(claims.arms[name]):
            raise UserError(f"The comparison has no figure {one.figure!r} of the arm {name!r}.")
        own = np.array([x.value for x in intervals])
        reach = np.mean([(x.high - x.low) / 2 for x in intervals])
        values.append(own)
        drawn.append(own.mean() + reach / DEVIATIONS * generator.standard_normal(_DRAWS))

    def lead(arm: np.ndarray, *others: np.ndarray) -> np.ndarray:
        if one.floor:
            return (arm - others[1]) / (others[0] - others[1])
        return arm - one.times * others[0] if others else arm

    paired = all(len(x) == len(values[0]) for x in values)
    each = lead(values[0], *(x if paired else x.mean() for x in values[1:]))
    whole = float(lead(*(x.mean() for x in values)))
    low, high = np.quantile(lead(*drawn), (0.025, 0.975))
    return Measured("", Interval(whole, float(low), float(high)), each.tolist())


def _holds(one: Requirement, part: Measured) -> bool:
    if one.within is not None:
        return -one.within < part.interval.low and part.interval.high < one.within
    if one.less_than is not None:
        return part.interval.high < one.less_than and max(part.seeds) < one.less_than
    assert one.more_than is not None
    return part.interval.low > one.more_than and min(part.seeds) > one.more_than


def _gap(gap: Gap, claims: Claims, found: Comparison, kinds: Sequence[str]) -> Measured:
    arm, floor, ceiling = (
        found.values(claims.arms[name], gap.figure, kinds)
        for name in (gap.arm, gap.floor, gap.ceiling)
    )
    low, high = floor.mean(0), ceiling.mean(0)
    share = ratio_interval(arm.mean(0) - low, high - low)
    seeds = (arm - low).mean(1) / (high - low).mean()
    return Measured(", ".join(kinds), share, seeds.tolist())


def _of_set(record: Record, model: str, figure: str) -> Mapping[str, float] | None:
    metric = record.get("metrics", {}).get(figure, {})
    if "columns" not in metric and model in metric.get("figures", {}):
        return metric["figures"][model]
    if figure in record.get("pictures", {}).get(model, {}):
        return None
    return record.get("figures", {}).get(model, {}).get(figure)


def _read(
    record: Record, model: str, figure: str, kinds: Sequence[str]
) -> Iterator[tuple[int, float]]:
    """(image, value) of those images that have the figure."""
    shown = record.get("contents", {}).get("images", {}).get(model, [])
    for image in shown:
        if figure in image and (not kinds or image["kind"] in kinds):
            yield image["image"], float(image[figure])
    of_kinds = {image["image"] for image in shown if image["kind"] in kinds}
    metric = record.get("metrics", {}).get(figure, {}).get("columns", {}).get(model, [])
    for column in (metric, record.get("pictures", {}).get(model, {}).get(figure, [])):
        yield from ((i, x) for i, x in enumerate(column) if not kinds or i in of_kinds)
