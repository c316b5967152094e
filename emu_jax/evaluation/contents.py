"""What images show of what their prompts ask for, as a detector sees it: the sections of a report.

Figures are shares of images, with 95 % intervals over prompts: ``right``, the questions of
:mod:`emu_jax.evaluation.compositions`, and two of them among the images whose things are right,
since a thing that is not recognized has neither a color nor a place. A detector has errors of its
own: its figures for real images of the same prompts stand beside those of the models.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from emu_jax.errors import UserError
from emu_jax.evaluation import geneval
from emu_jax.evaluation.comparison import pairs_of
from emu_jax.evaluation.compositions import COLUMNS, QUESTIONS, Composition, expected
from emu_jax.evaluation.geneval import GenEval
from emu_jax.evaluation.instances import (
    Colors,
    Detector,
    Instance,
    Pixels,
    distinct,
    outlined,
    see,
)
from emu_jax.evaluation.metrics import Interval, share_difference_interval, share_interval
from emu_jax.evaluation.prompt_sets import PromptSet
from emu_jax.evaluation.report import ImageTable, Section, Table, Tile

Asked = Composition | GenEval
ALL, RIGHT, FEW = "all", "right", "count, up to 4"
_FEW = 4
_AMONG = {"color": "color of right things", "relation": "relation of right things"}
_WORST = 2  # images of a kind
_NOTE = """Read by {detector}; its own errors are those of real images. Intervals are 95 %, over
prompts. Right: all that the prompt asks for. Count: exactly as many instances. Things: every thing
and no other. Color: each thing has its color and no other. Relation: the layout that stands for
it.{left}"""
_PAIRED = "The first model minus the second, paired by prompt."
_LEGEND = "Outlines and labels are what {detector} saw; the prompts are the worst of each kind."

# Figure -> index of an image -> whether it counts.
Shares = Mapping[str, Mapping[int, bool]]


def asked_by(columns: Mapping[str, Sequence[str]]) -> dict[int, Asked]:
    """Index of a prompt -> what it asks for, as the columns of a prompt set say it; empty where
    they say nothing. Prompts without things, such as those of persons, are left out.

    Raises:
      UserError: a cell cannot be read.
    """
    if "geneval" in columns:
        lines = enumerate(columns["geneval"])
        return {i: geneval.from_json(line) for i, line in lines if line}
    if not {"kind", "things"} <= columns.keys():
        return {}
    names = [name for name in COLUMNS if name in columns]
    rows = zip(*(columns[name] for name in names), strict=True)
    found = (expected(dict(zip(names, row, strict=True))) for row in rows)
    return {i: one for i, one in enumerate(found) if one}


def require_words(asked: Mapping[int, Asked], detector: Detector) -> None:
    """Raises UserError if a prompt asks for a thing that a detector has no word for."""
    unknown = {thing for one in asked.values() for thing in one.things} - set(detector.words)
    if unknown:
        raise UserError(
            f"{detector.name} has no word for {min(unknown)!r}, which a prompt asks for: use a "
            "parser that does, or --parser= for none."
        )


@dataclass(frozen=True)
class Reading:
    """What a detector saw in a model's images, and whether that is what their prompts ask for; by
    the index of the prompt.
    """

    images: Mapping[int, Pixels]
    seen: Mapping[int, list[Instance]]
    answers: Mapping[int, Mapping[str, bool]]

    def shares(self, asked: Mapping[int, Asked], kind: str = ALL) -> Shares:
        """The figures of a kind, those among some of its images for all kinds together only.
        Figures that no prompt asks for are left out.
        """
        own = {i: a for i, a in self.answers.items() if kind in (ALL, asked[i].kind)}
        found = {RIGHT: {i: all(a.values()) for i, a in own.items()}}
        for question in QUESTIONS:
            found[question] = {i: a[question] for i, a in own.items() if question in a}
        if kind == ALL:
            few = (i for i, one in asked.items() if one.count <= _FEW)
            found[FEW] = {i: own[i]["count"] for i in few if "count" in own[i]}
            for question, name in _AMONG.items():
                found[name] = {i: x for i, x in found[question].items() if own[i]["things"]}
        return {name: shown for name, shown in found.items() if shown}


def read(
    images: Sequence[Pixels], asked: Mapping[int, Asked], detector: Detector, colors: Colors
) -> Reading:
    """A reading of those of the images whose prompts ask for something."""
    own = {i: images[i] for i in asked}
    seen = dict(zip(own, see(list(own.values()), detector, colors), strict=True))
    # GenEval's rules count every label on its own.
    seen |= {i: distinct(seen[i]) for i, one in asked.items() if isinstance(one, Composition)}
    return Reading(own, seen, {i: one.answers(seen[i]) for i, one in asked.items()})


def figures(shares: Shares, repeats: int = 1) -> dict[str, Interval]:
    """Shares with their intervals, where ``repeats`` images in a row are of one prompt."""
    return {name: share_interval(_means(shown, repeats)) for name, shown in shares.items()}


def summary(
    readings: Mapping[str, Reading],
    asked: Mapping[int, Asked],
    labels: Mapping[str, str],
    repeats: int = 1,
) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a table with one row per model: all figures, and what is right of each
    kind."""
    rows = {name: figures(one.shares(asked), repeats) for name, one in readings.items()}
    for name, one in readings.items():
        for kind in _kinds(asked):
            rows[name][f"{RIGHT}: {kind}"] = figures(one.shares(asked, kind), repeats)[RIGHT]
    columns = list(dict.fromkeys(figure for row in rows.values() for figure in row))
    cells = [
        [labels[name], *(f"{row[key]:.1%}" if key in row else "" for key in columns)]
        for name, row in rows.items()
    ]
    return ["", *columns], cells


def contents(
    readings: Mapping[str, Reading],
    asked: Mapping[int, Asked],
    prompts: PromptSet,
    labels: Mapping[str, str],
    detector: str,
    real: str,
) -> tuple[list[Section], dict[str, Any]]:
    """Figures, differences and the worst images: as sections, and as a record for JSON. ``real`` is
    the name of the real images, which are paired with no model.
    """
    shares = {
        name: {kind: one.shares(asked, kind) for kind in (ALL, *_kinds(asked))}
        for name, one in readings.items()
    }
    measured = {
        name: {kind: figures(own, prompts.repeats) for kind, own in by_kind.items()}
        for name, by_kind in shares.items()
    }
    names = [labels[name] for name in readings]
    left = _left((len(prompts) - len(asked)) // prompts.repeats)
    sections: list[Section] = [
        Table(
            "Contents",
            ["kind", "", "images", *names],
            list(_rows(shares, measured)),
            note=_NOTE.format(detector=detector, left=left),
        )
    ]
    models = [name for name in readings if name != real]
    leads = {
        (b, a): _differences(shares[a], shares[b], prompts.repeats)
        for a, b in pairs_of(models, real)
    }
    if leads:
        rows = [
            [*key, *(f"{lead[key]:+z.0%}" for lead in leads.values())]
            for key in next(iter(leads.values()))
        ]
        versus = [f"{labels[b]} against {labels[a]}" for b, a in leads]
        sections.append(Table("Differences of contents", ["kind", "", *versus], rows, note=_PAIRED))
    worst = _worst([readings[name] for name in models], asked)
    tiles = [(prompts.prompts[i], [_tile(one, i) for one in readings.values()]) for i in worst]
    if tiles:
        legend = _LEGEND.format(detector=detector)
        sections.append(ImageTable("Worst contents", names, tiles, note=legend, width=192))
    record = {
        "figures": {
            name: {kind: _as_dicts(own) for kind, own in by_kind.items()}
            for name, by_kind in measured.items()
        },
        "differences": {
            f"{b} against {a}": _as_dicts({" ".join(key): x for key, x in lead.items()})
            for (b, a), lead in leads.items()
        },
        "images": {
            name: [
                {
                    "image": i,
                    "kind": asked[i].kind,
                    "seen": [x.name for x in one.seen[i]],
                    RIGHT: all(one.answers[i].values()),
                    **one.answers[i],
                }
                for i in asked
            ]
            for name, one in readings.items()
        },
    }
    return sections, record


def _kinds(asked: Mapping[int, Asked]) -> list[str]:
    return list(dict.fromkeys(one.kind for one in asked.values()))


def _left(count: int) -> str:
    if not count:
        return ""
    return (
        f" {count} prompts name no things that it knows (persons, for instance) and are left out."
    )


def _rows(
    shares: Mapping[str, Mapping[str, Shares]],
    measured: Mapping[str, Mapping[str, Mapping[str, Interval]]],
) -> Iterator[list[Any]]:
    """A row for every kind and figure. The images of a figure among some differ by model."""
    first = next(iter(shares.values()))
    for kind in first:
        for key in dict.fromkeys(k for by_kind in shares.values() for k in by_kind[kind]):
            number = None if key in _AMONG.values() else len(first[kind][key])
            cells = [by_kind[kind].get(key) for by_kind in measured.values()]
            yield [kind, key, number, *(f"{x:.0%}" if x else None for x in cells)]


def _differences(
    a: Mapping[str, Shares], b: Mapping[str, Shares], repeats: int
) -> dict[tuple[str, str], Interval]:
    """b minus a, of the figures that are of the same prompts."""
    return {
        (kind, key): share_difference_interval(*(_means(x, repeats) for x in pair))
        for kind in a
        for key in a[kind]
        if key in (RIGHT, *QUESTIONS) and (pair := (a[kind][key], b[kind][key]))
    }


def _means(shown: Mapping[int, bool], repeats: int) -> Float[np.ndarray, " p"]:
    """The share of each prompt's images that count; prompts of which no image is among them are
    left out."""
    prompts = np.array([*shown]) // repeats
    _, rows, images = np.unique(prompts, return_inverse=True, return_counts=True)
    return np.bincount(rows, np.array([*shown.values()], float)) / images


def _worst(readings: Sequence[Reading], asked: Mapping[int, Asked]) -> list[int]:
    """Of each kind the prompts with the most wrong answers over all models, if there are any."""
    wrong = {i: sum(not x for one in readings for x in one.answers[i].values()) for i in asked}
    order = sorted((i for i in asked if wrong[i]), key=lambda i: -wrong[i])
    return [
        i for kind in _kinds(asked) for i in [j for j in order if asked[j].kind == kind][:_WORST]
    ]


def _tile(one: Reading, i: int) -> Tile:
    wrong = [question for question, answer in one.answers[i].items() if not answer]
    note = f"wrong: {', '.join(wrong)}" if wrong else RIGHT
    return Tile(outlined(one.images[i], one.seen[i]), note)


def _as_dicts(values: Mapping[str, Interval]) -> dict[str, dict[str, float]]:
    return {key: value._asdict() for key, value in values.items()}
