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

A distance between sets, such as Frechet's, has no value per image. Its requirements are decided by
draws from normal distributions with the intervals of the comparisons, each arm by itself: as if the
prompts were not shared, so that intervals are rather too wide.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
    """A value with its interval, of one kind or of all together, and of every seed."""

    kind: str
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

    def values(self, models: Sequence[str], figure: str, kind: str = "") -> Seeds:
        """The mean of every prompt's images, of prompts of a kind or of all that have the figure.

        Raises:
          UserError: no comparison has the model, or the figure.
        """
        found = [self._images(model, figure, kind) for model in models]
        prompts = np.array([*found[0]]) // self.records[0].get("images_per_prompt", 1)
        _, rows, count = np.unique(prompts, return_inverse=True, return_counts=True)
        means = [np.bincount(rows, np.array([*own.values()], float)) / count for own in found]
        return np.stack(means)

    def distances(self, models: Sequence[str], figure: str) -> list[Interval]:
        """The figure of sets of images of each model; none if it is no such figure."""
        found = (_of_set(record, model, figure) for model in models for record in self.records)
        return [Interval(**entry) for entry in found if entry]

    def _images(self, model: str, figure: str, kind: str) -> Mapping[int, float]:
        for record in self.records:
            found = dict(_read(record, model, figure, kind))
            if found:
                return found
        known = sorted({name for record in self.records for name in record["models"]})
        if model not in known:
            raise UserError(f"No comparison has a model {model!r}; they have {', '.join(known)}.")
        of = f" of the kind {kind!r}" if kind else ""
        raise UserError(f"The comparison has no figure {figure!r} of {model}{of}.")


def decide(claims: Claims, found: Comparison) -> tuple[list[Verdict], list[Verdict]]:
    """The verdicts on gates and on claims."""
    gates = [_decided(one, claims, found) for one in claims.gates]
    alternatives: dict[str | int, list[bool]] = {}
    for i, gate in enumerate(gates):
        alternatives.setdefault(gate.requirement.name or i, []).append(gate.result == HOLDS)
    void = not all(map(any, alternatives.values()))
    verdicts = [_decided(one, claims, found) for one in claims.claims]
    if void:
        verdicts = [Verdict(one.requirement, one.measured, VOID) for one in verdicts]
    return gates, verdicts


def gaps(claims: Claims, found: Comparison) -> list[tuple[Gap, list[Measured]]]:
    """The shares of gaps that arms close."""
    return [
        (gap, [_gap(gap, claims, found, kind) for kind in gap.kinds or [""]]) for gap in claims.gaps
    ]


def overview(table: Overview, claims: Claims, found: Comparison) -> dict[str, list[Measured]]:
    """The figure of every arm: of all prompts together, and of every kind."""
    return {
        arm: [
            _measured(Requirement("", arm, table.figure, more_than=0.0), claims, found, kind)
            for kind in ("", *table.kinds)
        ]
        for arm in table.arms or claims.arms
    }


def _decided(one: Requirement, claims: Claims, found: Comparison) -> Verdict:
    measured = [_measured(one, claims, found, kind) for kind in one.kinds or [""]]
    holding = sum(_holds(one, part) for part in measured)
    enough = holding >= (one.at_least or len(measured))
    return Verdict(one, measured, HOLDS if enough else FAILS)


def _measured(one: Requirement, claims: Claims, found: Comparison, kind: str) -> Measured:
    if found.distances(claims.arms[one.arm], one.figure):
        return _of_sets(one, claims, found)
    ours = found.values(claims.arms[one.arm], one.figure, kind)
    if not one.against:
        return Measured(kind, mean_interval(ours.mean(0)), ours.mean(1).tolist())
    if one.floor:
        return _gap(Gap(one.arm, one.floor, one.against, one.figure), claims, found, kind)
    theirs = one.times * found.values(claims.arms[one.against], one.figure, kind)
    each = ours - theirs if len(ours) == len(theirs) else ours - theirs.mean(0)
    a, b = ours.mean(0), theirs.mean(0)
    p = float(stats.ttest_ind(a, b).pvalue) if np.ptp(a) and np.ptp(b) else None
    lead = mean_interval(a - b)
    return Measured(kind, lead, each.mean(1).tolist(), p)


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


def _gap(gap: Gap, claims: Claims, found: Comparison, kind: str) -> Measured:
    arm, floor, ceiling = (
        found.values(claims.arms[name], gap.figure, kind)
        for name in (gap.arm, gap.floor, gap.ceiling)
    )
    low, high = floor.mean(0), ceiling.mean(0)
    share = ratio_interval(arm.mean(0) - low, high - low)
    return Measured(kind, share, ((arm - low).mean(1) / (high - low).mean()).tolist())


def _of_set(record: Record, model: str, figure: str) -> Mapping[str, float] | None:
    metric = record.get("metrics", {}).get(figure, {})
    if "columns" not in metric and model in metric.get("figures", {}):
        return metric["figures"][model]
    if figure in record.get("pictures", {}).get(model, {}):
        return None
    return record.get("figures", {}).get(model, {}).get(figure)


def _read(record: Record, model: str, figure: str, kind: str) -> Iterator[tuple[int, float]]:
    """(image, value) of those images that have the figure."""
    for image in record.get("contents", {}).get("images", {}).get(model, []):
        if kind in ("", image["kind"]) and figure in image:
            yield image["image"], float(image[figure])
    if not kind:
        metric = record.get("metrics", {}).get(figure, {}).get("columns", {}).get(model, [])
        yield from enumerate(metric)
        yield from enumerate(record.get("pictures", {}).get(model, {}).get(figure, []))
