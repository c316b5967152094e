"""The report of an experiment: its gates, its claims and what became of them."""

from collections.abc import Iterator, Mapping, Sequence

from emu_jax.evaluation.claims import Gap, Requirement
from emu_jax.evaluation.comparison import markdown
from emu_jax.evaluation.decisions import Measured, Verdict
from emu_jax.evaluation.report import Section, Table

_COLUMNS = ("", "requirement", "figure", "kind", "measured", "each seed", "p, t-test", "result")
_NOTE = """Requirements were written down before the experiment. Intervals are 95 % over prompts; a
value of every seed stands beside the mean of all. Two arms that do not differ significantly (p) may
still not be equal: a requirement "within" needs the whole interval inside."""
_GAP_COLUMNS = ("arm", "from", "to", "figure", "kind", "share reached", "each seed")


def report(
    gates: Sequence[Verdict],
    verdicts: Sequence[Verdict],
    gaps: Sequence[tuple[Gap, Sequence[Measured]]],
    overviews: Sequence[tuple[str, Mapping[str, Sequence[Measured]]]],
) -> tuple[list[Section], str]:
    """Sections of a page, and the same in Markdown."""
    tables = []
    if gates:
        tables.append(Table("Gates", _COLUMNS, list(_rows(gates)), note=_NOTE))
    tables.append(Table("Claims", _COLUMNS, list(_rows(verdicts)), note="" if gates else _NOTE))
    if gaps:
        rows = [
            [gap.arm, gap.floor, gap.ceiling, gap.figure, part.kind, *_shares(part)]
            for gap, measured in gaps
            for part in measured
        ]
        tables.append(Table("Shares of gaps", _GAP_COLUMNS, rows))
    for figure, by_arm in overviews:
        kinds = [part.kind or "all" for part in next(iter(by_arm.values()))]
        rows = [[arm, *(f"{part.interval:z.3f}" for part in own)] for arm, own in by_arm.items()]
        tables.append(Table(f"Arms: {figure}", ["arm", *kinds], rows))
    return list(tables), "\n".join(markdown(one.columns, one.rows) for one in tables)


def _rows(verdicts: Sequence[Verdict]) -> Iterator[list[str]]:
    for one in verdicts:
        asked = one.requirement
        for i, part in enumerate(one.measured):
            first = i == 0
            yield [
                asked.name if first else "",
                f"{asked.says} {_condition(asked)}" if first else "",
                asked.figure,
                part.kind,
                f"{part.interval:+z.3f}" if asked.against else f"{part.interval:z.3f}",
                ", ".join(f"{value:+z.3f}" for value in part.seeds) if len(part.seeds) > 1 else "",
                "" if part.p is None else f"{part.p:.2g}",
                one.result if first else "",
            ]


def _condition(asked: Requirement) -> str:
    arms = asked.arm
    if asked.floor:
        arms = f"share of {asked.floor} to {asked.against} that {asked.arm} reaches"
    elif asked.against:
        times = "" if asked.times == 1 else f"{asked.times:g} x "
        arms = f"{asked.arm} - {times}{asked.against}"
    bound = next(
        f"{sign} {value:g}"
        for sign, value in (
            (">", asked.more_than),
            ("<", asked.less_than),
            ("within", asked.within),
        )
        if value is not None
    )
    some = f" in {asked.at_least} of {len(asked.kinds)}" if asked.at_least else ""
    return f"({arms} {bound}{some})"


def _shares(part: Measured) -> list[str]:
    return [f"{part.interval:.0%}", ", ".join(f"{x:.0%}" for x in part.seeds)]
