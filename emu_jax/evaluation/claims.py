"""Claims about models, written down before they are tried, and what a comparison says of them.

A file of claims names the arms of an experiment and what must hold of them:

    title = "Short prompts understood"

    [arms]                              # models as compare.json names them; seeds make a list
    floor   = "builtin:scenes_64 (simple)"
    ceiling = "builtin:scenes_64 (complex)"
    adapted = ["runs/adapted_0 (simple)", "runs/adapted_1 (simple)", "runs/adapted_2 (simple)"]

    [[gates]]                           # premises: where one fails, no claim is decided; of those
                                        # with one `name` one must hold
    says = "There is a gap to close."
    arm = "ceiling"
    against = "floor"
    figure = "right"
    more_than = 0.15
    kinds = ["count", "two", "action"]  # in each; `at_least` = in how many of them

    [[claims]]
    name = "S1"
    says = "The adapter helps."
    arm = "adapted"
    against = "floor"
    figure = "right"
    more_than = 0.0

    [[claims]]
    name = "S4"
    says = "Contrast is kept."
    arm = "adapted"
    against = "floor"
    figure = "contrast"
    within = 0.02

    [[claims]]
    name = "S5"
    says = "Half of the distance between two others is gone."
    arm = "adapted"
    floor = "floor"
    against = "ceiling"
    figure = "frechet_haystack"
    more_than = 0.5

    [[gaps]]                            # reported, never decided
    arm = "adapted"
    floor = "floor"
    ceiling = "ceiling"
    figure = "right"

    [[tables]]                          # all arms, or some; all kinds together, and those named
    figure = "right"
    kinds = ["count", "two", "action"]

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

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, Self

import numpy as np
from etils import epath
from jaxtyping import Float
from scipy import stats

from emu_jax.data.textfile import read_text
from emu_jax.errors import UserError
from emu_jax.evaluation.metrics import DEVIATIONS, Interval, mean_interval, ratio_interval

Record = Mapping[str, Any]  # compare.json
Seeds = Float[np.ndarray, "s n"]  # a value of every seed and prompt
_TYPES: Mapping[Any, Any] = {
    str: str,
    int: int,
    float: (int, float),
    float | None: (int, float),
    Sequence[str]: list,
}
_DRAWS = 20_000
HOLDS, FAILS, VOID = "holds", "does not hold", "void: a gate failed"


@dataclass(frozen=True)
class Requirement:
    """A gate or a claim; see the module's docstring."""

    says: str
    arm: str
    figure: str
    name: str = ""
    against: str = ""
    floor: str = ""
    times: float = 1.0
    more_than: float | None = None
    less_than: float | None = None
    within: float | None = None
    kinds: Sequence[str] = ()
    at_least: int = 0

    def __post_init__(self):
        if (self.more_than, self.less_than, self.within).count(None) != 2:
            raise UserError(
                f"The claim {self.says!r} needs one of more_than, less_than and within."
            )
        if self.within is not None and not self.against:
            raise UserError(f"The claim {self.says!r} has no `against`: within what of which arm?")
        if self.floor and not self.against:
            raise UserError(f"The claim {self.says!r} has no `against`: up to which arm?")
        if self.at_least > len(self.kinds):
            raise UserError(
                f"The claim {self.says!r} asks for {self.at_least} kinds and names "
                f"{len(self.kinds)}: lower at_least."
            )


@dataclass(frozen=True)
class Gap:
    """The share of the difference between two arms that a third one reaches."""

    arm: str
    floor: str
    ceiling: str
    figure: str
    kinds: Sequence[str] = ()


@dataclass(frozen=True)
class Overview:
    """A figure of several arms."""

    figure: str
    arms: Sequence[str] = ()
    kinds: Sequence[str] = ()


@dataclass(frozen=True)
class Claims:
    """All that an experiment must show."""

    title: str
    arms: Mapping[str, Sequence[str]]
    gates: Sequence[Requirement] = ()
    claims: Sequence[Requirement] = ()
    gaps: Sequence[Gap] = ()
    tables: Sequence[Overview] = ()

    @classmethod
    def read(cls, path: epath.PathLike) -> Self:
        """Claims from a TOML file.

        Raises:
          UserError: the file is missing, no TOML, or has an entry that is unknown or missing.
        """
        file = epath.Path(path)
        if not file.is_file():
            raise UserError(f"There is no file of claims {path}.")
        try:
            found = tomllib.loads(read_text(file))
        except tomllib.TOMLDecodeError as error:
            raise UserError(f"{path} is not a file of claims: {error}.") from error
        arms = _arms(found.pop("arms", {}), path)
        parts = {
            name: [_made(kind, entry, f"[[{name}]]", path) for entry in found.pop(name, [])]
            for name, kind in _PARTS.items()
        }
        made = _made(cls, {**found, "arms": arms, **parts}, "the file", path)
        for one in (*made.gates, *made.claims, *made.gaps, *made.tables):
            named = [getattr(one, key, "") for key in ("arm", "against", "floor", "ceiling")]
            named += getattr(one, "arms", ())
            unknown = [name for name in named if name and name not in arms]
            if unknown:
                raise UserError(f"{path} names an arm {unknown[0]!r} that is not in [arms].")
        return made


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


_PARTS = {"gates": Requirement, "claims": Requirement, "gaps": Gap, "tables": Overview}


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


def _arms(entry: Any, path: epath.PathLike) -> dict[str, list[str]]:
    """The models of each arm, one or several seeds."""
    if not isinstance(entry, Mapping):
        raise UserError(f"[arms] of {path} is {entry!r}; it must be a table.")
    arms = {name: [models] if isinstance(models, str) else models for name, models in entry.items()}
    for name, models in arms.items():
        texts = isinstance(models, list) and all(isinstance(model, str) for model in models)
        if not (texts and models):
            raise UserError(
                f"The arm {name} of {path} is {models!r}; use the name of a model, or a list."
            )
    return arms


def _made(kind: Any, entry: Any, where: str, path: epath.PathLike) -> Any:
    """A dataclass of the entries of a table in a file."""
    if not isinstance(entry, Mapping):
        raise UserError(f"{where} of {path} is {entry!r}; it must be a table.")
    known = {one.name: one for one in fields(kind)}
    unknown = [name for name in entry if name not in known]
    if unknown:
        raise UserError(
            f"{where} of {path} has an unknown entry {unknown[0]!r}; use {', '.join(known)}."
        )
    for name, value in entry.items():
        expected = _TYPES.get(known[name].type)
        if expected and (isinstance(value, bool) or not isinstance(value, expected)):
            raise UserError(f"{name} in {where} of {path} is {value!r}, which is of another type.")
    missing = [n for n, one in known.items() if one.default is MISSING and n not in entry]
    if missing:
        raise UserError(f"{where} of {path} has no entry {missing[0]!r}: add it.")
    return kind(**entry)
