"""The report of a study of preference: Emu's tables by prompt set and category, the images, and how
far annotators and metrics agree. HTML, and JSON with the same figures.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, Int
from sqlalchemy import select

from emu_jax.errors import UserError
from emu_jax.evaluation.agreement import fleiss_kappa, krippendorff_alpha
from emu_jax.evaluation.comparison import pairs_of
from emu_jax.evaluation.metrics import Interval
from emu_jax.evaluation.preferences import (
    OUTCOMES,
    TIE,
    Preference,
    Votes,
    accuracy,
    majority,
    preference,
    smallest_share,
)
from emu_jax.evaluation.prompt_sets import PromptSet
from emu_jax.evaluation.ranking import ranked
from emu_jax.evaluation.report import ImageTable, Section, Table, Text, Tile, write_report
from emu_jax.people import tables
from emu_jax.people.images import Pixels, decode
from emu_jax.people.questions import COMPARE
from emu_jax.people.results import Row, answer_rows, names, progress, votes
from emu_jax.people.store import Store

ALL = "all prompts"
_SIGNS = {"higher": 1.0, "lower": -1.0}
_SHOWN = 6  # rows of images of each kind
_FEW = 3  # pairs with a majority, at least, of a group that has a row of its own
_TITLES = {"appeal": "Visual appeal", "faithfulness": "Text faithfulness"}
_RULE = """A pair is won by a model if more than half of its votes say so, and is a tie otherwise;
"both" and "neither" are ties. Intervals are 95 %: Wilson's for win, tie and lose; by bootstrap over
prompts and annotators together in the column of that name. p is that of the exact sign test of
whether wins and losses are equally frequent."""
_AGREE = """Alpha is Krippendorff's for nominal answers (win, tie, lose) and for an interval scale
(1, 0, -1), kappa is Fleiss'; 1 is perfect agreement and 0 is chance."""
_CONDUCT = """Checks are pairs whose right answer is known. Same: pairs that were shown twice, with
sides exchanged, and got the same outcome. A: share of A among the answers A and B; sides are drawn
at random, so it should be near 50 %."""
_MACHINE = """Accuracy: among the pairs that a majority decides, the share in which the metric
prefers the same image. 50 % is chance; intervals are 95 %, over pairs."""


@dataclass(frozen=True)
class _Study:
    """What a report reads of a study."""

    prompts: PromptSet
    rows: Sequence[Row]
    labels: Mapping[str, str]
    files: Mapping[tuple[str, int], epath.Path]  # model, prompt from 1
    questions: Mapping[str, int]  # votes of each

    @classmethod
    def of(cls, store: Store) -> "_Study":
        with store.read() as connection:
            found = connection.execute(select(tables.prompts).order_by(tables.prompts.c.id)).all()
            images = connection.execute(
                select(tables.models.c.name, tables.images.c.prompt, tables.images.c.file).join(
                    tables.models, tables.models.c.id == tables.images.c.model
                )
            ).all()
        columns = {
            name: tuple(row.columns.get(name, "") for row in found) for name in found[0].columns
        }
        asked = {name: count for name, count in store.settings["votes"].items() if count}
        return cls(
            PromptSet(tuple(row.text for row in found), columns),
            answer_rows(store),
            names(store),
            {(name, prompt): store.image(file) for name, prompt, file in images},
            asked,
        )

    def read(self, model: str, prompt: int) -> Pixels:
        return decode(self.files[model, prompt].read_bytes())

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return pairs_of(self.labels)

    def versus(self, pair: tuple[str, str]) -> str:
        a, b = pair
        return f"{self.labels[b]} against {self.labels[a]}"


def report(
    store: Store,
    out: str,
    least: int | None = None,
    by: str = "",
    metrics: Sequence[str] = (),
    weights: str = "",
    record: str = "",
    seed: int = 0,
) -> epath.Path:
    """Writes ``index.html`` and ``people.json`` into ``out``; returns the path of the first.

    Pairs with fewer votes than ``least``, by default all that the study asks for, are left out.
    ``by`` is a column of the prompts, by default the one that usually names categories. ``metrics``
    of the study's own images, and those in ``record``, a compare.json of the same models, prompts
    and seed, are compared with the majority.
    """
    if store.study().kind != COMPARE:
        raise UserError(f"{store.folder} is a study of curation: use emu-jax people curated.")
    study = _Study.of(store)
    found: dict[str, Any] = {"models": list(study.labels), "prompts": list(study.prompts.prompts)}
    sections: list[Section] = [Text("How it was counted", _RULE)]
    values = {**_measured(study, metrics, weights), **_recorded(study, record)}
    by = study.prompts.categories(by)
    for question, asked in study.questions.items():
        complete = {
            pair: votes(study.rows, question, *pair).complete(least or asked)
            for pair in study.pairs
        }
        complete = {pair: own for pair, own in complete.items() if len(own)}
        one: dict[str, Any] = {"votes_asked": asked, "least_votes": least or asked}
        if complete:
            more, told = _question(study, question, complete, by, seed)
            one |= told
            sections += more
            if values:
                section, one["metrics"] = _machine(study, question, complete, values)
                sections.append(section)
            sections += _images(study, question, complete)
        else:
            need = f"No pair has {least or asked} votes yet; --least_votes=1 counts all."
            sections.append(Text(_TITLES[question], need))
        found[question] = one
    section, found["annotators"] = _annotators(store, study)
    sections.append(section)
    folder = epath.Path(out)
    people = len({row.annotator for row in study.rows if row.counts})
    subtitle = f"{len(study.prompts)} prompts, {people} annotators"
    labels = list(study.labels.values())
    compared = " and ".join(labels) if len(labels) < 4 else f"{len(labels)} models"
    title = f"People's preference: {compared}"
    index = write_report(folder / "index.html", title, sections, subtitle)
    (folder / "people.json").write_text(json.dumps(found, indent=1))
    return index


def _question(
    study: _Study, question: str, complete: Mapping[tuple[str, str], Votes], by: str, seed: int
) -> tuple[list[Section], dict[str, Any]]:
    """The tables of one question."""
    title = _TITLES[question]
    columns = ["", "prompts", "pairs", "win", "tie", "lose", "win, bootstrap", "p"]
    rows: list[list[object]] = []
    told: dict[str, Any] = {"preferences": {}, "agreement": {}}
    agree: list[list[object]] = []
    for pair, own in complete.items():
        versus = study.versus(pair)
        told["preferences"][versus] = groups = {}
        for name, prompts in _groups(study.prompts, by):
            chosen = own.of(prompts)
            if len(np.unique(chosen.prompt)) < (1 if name == ALL else _FEW):
                continue
            one = preference(chosen, seed)
            groups[name] = _as_dict(one)
            rows.append([versus, name, one.pairs, *_words(one)])
        counts = own.counts()
        alpha = krippendorff_alpha(counts), krippendorff_alpha(counts, np.array([1.0, 0.0, -1.0]))
        same = counts[counts.sum(1) == study.questions[question]]
        kappa = fleiss_kappa(same) if len(same) and study.questions[question] > 1 else math.nan
        told["agreement"][versus] = {
            "votes": len(own),
            "alpha_nominal": _number(alpha[0]),
            "alpha_interval": _number(alpha[1]),
            "fleiss_kappa": _number(kappa),
        }
        decided = int(np.sum(majority(counts) != TIE))
        told["agreement"][versus]["smallest_share"] = smallest_share(decided)
        agree.append([versus, len(own), *map(_plain, (*alpha, kappa)), decided])
    heads = ["", "votes", "alpha, nominal", "alpha, interval", "kappa", "pairs with a winner"]
    share = min(one["smallest_share"] for one in told["agreement"].values())
    power = (
        f"With so many pairs that have a winner, a share of {share:.1%} or more of them is told "
        "from 50 % with a power of 80 %."
    )
    sections: list[Section] = [
        Table(title, columns, rows),
        Table(f"{title}: agreement", heads, agree, note=f"{_AGREE}\n\n{power}"),
    ]
    if len(study.labels) > 2:
        section, told["strengths"] = _strengths(study, title, complete, seed)
        sections.insert(1, section)
    return sections, told


def _groups(prompts: PromptSet, by: str) -> Iterator[tuple[str, Int[np.ndarray, " n"]]]:
    """All prompts; each prompt set, and the stylised prompts of each; each category. Prompts are
    numbered from 1.
    """
    numbers = np.arange(1, len(prompts) + 1)
    yield ALL, numbers
    sets = np.array(prompts.columns.get("set", ("",) * len(prompts)))
    stylised = np.array(prompts.columns.get("stylised", ("",) * len(prompts))) == "yes"
    several = list(dict.fromkeys(sets.tolist()))
    for name in several:
        if len(several) > 1:
            yield name, numbers[sets == name]
        if np.any(stylised & (sets == name)):
            words = f"stylised, {name}" if len(several) > 1 else "stylised"
            yield words, numbers[stylised & (sets == name)]
    if by and by not in ("set", "stylised"):
        lists = prompts.lists(by)
        for value in dict.fromkeys(item for one in lists for item in one):
            here = np.array([value in one for one in lists])
            yield f"{by}: {value}", numbers[here]


def _strengths(
    study: _Study, title: str, complete: Mapping[tuple[str, str], Votes], seed: int
) -> tuple[Section, dict[str, Any] | None]:
    """Bradley-Terry strengths of more than two models."""
    order = list(study.labels)
    number = {name: i for i, name in enumerate(order)}
    numbered = {(number[a], number[b]): own for (a, b), own in complete.items()}
    try:
        found = ranked(numbered, len(order), seed)
    except UserError as error:
        return Text(f"{title}: strengths", str(error)), None
    best = sorted(zip(order, found, strict=True), key=lambda one: -one[1].value)
    note = (
        "Log-strengths of a Bradley-Terry model with ties; their sum is 0. A difference of d means "
        "that the stronger model wins a share of 1 / (1 + exp(-d)) of the votes that decide. "
        "Intervals are 95 %, by bootstrap over prompts and annotators."
    )
    rows = [[study.labels[name], f"{one:+.2f}"] for name, one in best]
    section = Table(f"{title}: strengths", ["", "log-strength"], rows, note)
    return section, {name: one._asdict() for name, one in best}


def _machine(
    study: _Study,
    question: str,
    complete: Mapping[tuple[str, str], Votes],
    values: Mapping[str, tuple[float, Mapping[str, Float[np.ndarray, " p"]]]],
) -> tuple[Section, dict[str, Any]]:
    """Metrics against the majority."""
    rows: list[list[object]] = []
    told: dict[str, Any] = {}
    for metric, (sign, of) in values.items():
        for pair, own in complete.items():
            outcomes = majority(own.counts())
            prompts = np.unique(own.prompt) - 1
            if not np.any(outcomes != TIE) or not all(model in of for model in pair):
                continue
            leads = sign * (of[pair[1]] - of[pair[0]])[prompts]
            found = accuracy(outcomes, leads)
            told.setdefault(metric, {})[study.versus(pair)] = found._asdict()
            rows.append([metric, study.versus(pair), int(np.sum(outcomes != TIE)), f"{found:.0%}"])
    columns = ["metric", "", "pairs with a winner", "accuracy"]
    return Table(f"{_TITLES[question]}: metrics", columns, rows, note=_MACHINE), told


def _measured(
    study: _Study, metrics: Sequence[str], weights: str
) -> dict[str, tuple[float, dict[str, Float[np.ndarray, " p"]]]]:
    """Metrics of the study's own images: sign of what is better, and values by model."""
    from emu_jax.evaluation.measuring import open_metrics

    found = {}
    for name, meter in open_metrics(metrics, weights).items():
        single = meter.metric.reads in ("images", "images and prompts")
        if not single or meter.metric.better not in _SIGNS:
            raise UserError(
                f"The metric {name} does not say which of two images is better: leave it out."
            )
        texts = study.prompts.prompts
        values = {
            model: meter.rows(
                [study.read(model, prompt) for prompt in range(1, len(texts) + 1)], texts
            )
            for model in study.labels
        }
        found[name] = (_SIGNS[meter.metric.better], values)
    return found


def _recorded(
    study: _Study, record: str
) -> dict[str, tuple[float, dict[str, Float[np.ndarray, " p"]]]]:
    """Metrics in a record of ``emu-jax compare``."""
    if not record:
        return {}
    from emu_jax.checkpoint.foreign import read_json

    said = read_json(epath.Path(record))
    if said.get("prompts") != list(study.prompts.prompts) or said.get("images_per_prompt", 1) != 1:
        raise UserError(f"{record} is of other prompts than the study, or of several images each.")
    found = {}
    for name, one in said.get("metrics", {}).items():
        if "columns" in one and one["better"] in _SIGNS:
            of = {model: np.array(values, np.float64) for model, values in one["columns"].items()}
            found[name] = (_SIGNS[one["better"]], of)
    finish = {model: np.array(one["finish"]) for model, one in said.get("pictures", {}).items()}
    if finish:
        found["finish"] = (1.0, finish)
    if not any(model in of for _, of in found.values() for model in study.labels):
        raise UserError(f"{record} has no metric of single images of the study's models.")
    return found


def _images(
    study: _Study, question: str, complete: Mapping[tuple[str, str], Votes]
) -> Iterator[Section]:
    """Pairs that are won and lost most clearly, and those on which annotators disagree most."""
    for pair, own in complete.items():
        counts, prompts = own.counts(), np.unique(own.prompt)
        lead = (counts[:, 0] - counts[:, 2]) / counts.sum(1)
        kinds = {
            "won most clearly": lead,
            "lost most clearly": -lead,
            "votes most divided": np.minimum(counts[:, 0], counts[:, 2]) / counts.sum(1),
        }
        for kind, degree in kinds.items():
            chosen = [i for i in np.argsort(-degree, kind="stable")[:_SHOWN] if degree[i] > 0]
            rows: list[tuple[str, list[Tile | None]]] = []
            for i in chosen:
                prompt = int(prompts[i])
                win, tie, lose = counts[i].tolist()
                tiles: list[Tile | None] = [
                    Tile(study.read(pair[1], prompt), f"{win} votes, {tie} ties"),
                    Tile(study.read(pair[0], prompt), f"{lose} votes"),
                ]
                rows.append((study.prompts.prompts[prompt - 1], tiles))
            if rows:
                title = f"{_TITLES[question]}, {study.versus(pair)}: {kind}"
                columns = [study.labels[pair[1]], study.labels[pair[0]]]
                yield ImageTable(title, columns, rows, width=256)


def _annotators(store: Store, study: _Study) -> tuple[Section, list[dict[str, Any]]]:
    """The work of every annotator, by number: the lab's page has the names."""
    rows: list[list[object]] = []
    told = []
    for one in progress(store, study.rows):
        if not one.done:
            continue
        own = one.conduct
        told.append({"annotator": one.id, "left_out": one.left_out, **own._asdict()})
        share = None if own.side_a is None else f"{own.side_a:.0%}"
        words = [f"{right} of {of}" if of else None for right, of in (own.checks, own.same)]
        out = "left out" if one.left_out else None
        rows.append([str(one.id), own.answers, own.seconds, *words, share, out])
    columns = ["annotator", "answers", "seconds, median", "checks", "same", "A", ""]
    return Table("Annotators", columns, rows, note=_CONDUCT), told


def _words(one: Preference) -> list[str]:
    shares = [f"{getattr(one, name).wilson:.1%}" for name in OUTCOMES]
    return [*shares, f"{one.win.resampled:.1%}", f"{one.p:.2g}"]


def _as_dict(one: Preference) -> dict[str, Any]:
    def intervals(name: str) -> dict[str, Any]:
        share = getattr(one, name)
        kinds: Mapping[str, Interval] = {
            kind: getattr(share, kind) for kind in ("wilson", "exact", "resampled")
        }
        found = {kind: [own.low, own.high] for kind, own in kinds.items()}
        return {"count": share.count, "share": share.value, **found}

    return {"pairs": one.pairs, "p": one.p, **{name: intervals(name) for name in OUTCOMES}}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _plain(value: float) -> str | None:
    return None if math.isnan(value) else f"{value:.3f}"
