"""A comparison of several models on the same prompts: the sections of its report.

From the models' images, their assessments (:mod:`emu_jax.evaluation.assessment`) and the logs of
the training runs to the sections of a report, to one record for JSON and to a table in Markdown.
Models are known by their names as the user gave them; the report shows short labels.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8

from emu_jax.evaluation import curves
from emu_jax.evaluation.assessment import (
    SHARES,
    Assessment,
    Yardstick,
    differences,
    duels,
    figures,
    spread,
)
from emu_jax.evaluation.measuring import Meter
from emu_jax.evaluation.metrics import Interval
from emu_jax.evaluation.prompt_sets import PromptSet
from emu_jax.evaluation.report import Charts, ImageTable, Section, Table, Tile

REAL = "real pictures"  # the name of the real images in JSON records
_WORST = 8  # rows of the images nearest to a needle
_ALL_PAIRS = 4  # models of which all pairs are compared
_PLOTTED = ("faithful", "finish", "both", "mmd_needles", "contrast")
_IN_MARKDOWN = ("faithful", "finish", "both", "copied", "contrast")
# Beside losses: what samples show, and what teachers say of predictions (a reward's term falls
# while its score rises).
_CURVES = ("samples/", "contents/", "generator/reward", "generator/adversary", "discriminator/")
_LABELS = {
    REAL: "real images",
    "faithful_top5": "faithful, top 5",
    "frechet_needles": "Frechet distance to needles",
    "frechet_haystack": "Frechet distance to haystack",
    "mmd_needles": "kernel distance to needles",
    "mmd_haystack": "kernel distance to haystack",
}
_NOTE = """The judge is a small network with errors of its own; its figures for real images of the
same prompts show how far to trust it. Intervals are 95 %, over prompts. Faithful: among all
prompts, the judge ranks the image's own prompt first. Finish: a probe classifies the image as
finished like the needles. Copied: nearer to a needle than 99 % of real images that are not needles.
Contrast: standard deviation of luma. Spread: mean distance of the images of one prompt. Distances:
small for similar sets of images."""
_PAIRED = """The first model minus the second, paired by prompt. If an interval excludes 0, the
choice of prompts does not explain the difference."""
_METRICS = "Intervals are 95 %, by bootstrap over prompts."
_DUELS = (
    """Which image of a prompt the judge prefers; a tie is a difference below its resolution."""
)


@dataclass
class Drawn:
    """A model's images in the order of the prompts, and facts about the model and its cost."""

    name: str
    images: list[UInt8[np.ndarray, "_ _ 3"]]
    facts: dict[str, Any]


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """For each path the fewest last parts that no other path ends with; ``@STEP`` stays."""
    stems = {path: path.partition("@")[0].rstrip("/") for path in paths}
    parts = {stem: stem.split("/") for stem in stems.values()}
    short = {}
    for stem, own in parts.items():
        others = [other for name, other in parts.items() if name != stem]
        ends = (own[-k:] for k in range(1, len(own)))
        unique = (end for end in ends if not any(other[-len(end) :] == end for other in others))
        short[stem] = "/".join(next(unique, own))
    return {path: "".join([short[stem], *path.partition("@")[1:]]) for path, stem in stems.items()}


def pairs_of(names: Iterable[str], real: str = REAL) -> list[tuple[str, str]]:
    """The pairs of models that are compared: all, or with many models each with the first. The
    ``real`` images are in none.
    """
    models = [name for name in names if name != real]
    return [
        (a, b) for a, b in combinations(models, 2) if len(models) <= _ALL_PAIRS or a == models[0]
    ]


def image_table(
    drawn: Sequence[Drawn],
    labels: Mapping[str, str],
    prompts: Sequence[str],
    indices: Sequence[int],
    seed: int,
) -> Section:
    """A row for each of the ``indices``, one column per model; real images have no seed."""
    rows = [
        (
            prompts[i],
            [Tile(m.images[i], "" if m.name == REAL else f"seed {seed + i}") for m in drawn],
        )
        for i in indices
    ]
    note = "All drawn images of a row have the same prompt and the same initial noise."
    columns = [label_of(model.name, labels) for model in drawn]
    return ImageTable("Images", columns, rows, note=note)


def judged(
    found: Mapping[str, Assessment], by: Yardstick, labels: Mapping[str, str]
) -> tuple[list[Section], dict[str, Any], str]:
    """Figures, differences and duels: as sections, as a record for JSON, and in Markdown.

    Pairs are of models, without the real images.
    """
    measured = {name: figures(one, by) for name, one in found.items()}
    labels = {**labels, **_LABELS}
    columns = [labels[name] for name in measured]
    keys = list(next(iter(measured.values())))
    rows = [
        [labels.get(key, key), *(word(key, figure[key]) for figure in measured.values())]
        for key in keys
    ]
    plots = {
        labels.get(key, key): curves.interval_plot(
            {labels[name]: figure[key] for name, figure in measured.items()},
            labels.get(key, key),
            curves.SHARE if key in SHARES else None,
        )
        for key in _PLOTTED
    }
    pairs = pairs_of(found)
    leads = {(b, a): differences(found[b], found[a], by.repeats) for a, b in pairs}
    fights = {(b, a): duels(found[b], found[a]) for a, b in pairs}
    sections: list[Section] = [Table("Figures", ["", *columns], rows, note=_NOTE)]
    sections += [Charts("Figures as charts", [], plots)]
    if pairs:
        versus = {pair: f"{labels[pair[0]]} against {labels[pair[1]]}" for pair in leads}
        apart = [
            [versus[pair], *(f"{x:+z.0%}" for x in lead.values())] for pair, lead in leads.items()
        ]
        shares = [
            [versus[pair], what, *(f"{share:.0%}" for share in shares)]
            for pair, fight in fights.items()
            for what, shares in fight.items()
        ]
        questions = list(next(iter(leads.values())))
        sections += [
            Table("Differences", ["", *questions], apart, note=_PAIRED),
            Table("Duels", ["", "question", "win", "tie", "lose"], shares, note=_DUELS),
        ]

    def by_pair(values: Mapping[tuple[str, str], Mapping[str, Any]]) -> dict[str, Any]:
        return {f"{b} against {a}": _as_dicts(found) for (b, a), found in values.items()}

    record = {
        "figures": {name: _as_dicts(figure) for name, figure in measured.items()},
        "differences": by_pair(leads),
        "duels": by_pair(fights),
        "pictures": {name: _of_images(one, by.repeats) for name, one in found.items()},
    }
    table = [
        [labels[name], *(word(key, figure[key]) for key in _IN_MARKDOWN)]
        for name, figure in measured.items()
    ]
    return sections, record, markdown(["", *_IN_MARKDOWN], table)


def measured(
    meters: Mapping[str, Meter],
    drawn: Sequence[Drawn],
    labels: Mapping[str, str],
    prompts: PromptSet,
    originals: Sequence[UInt8[np.ndarray, "_ _ 3"]] = (),
) -> tuple[list[Section], dict[str, Any], str]:
    """Metrics of the registry and their differences: as sections, as a record, and in Markdown.

    Pairs are of models, without the real images.
    """
    labels, names = {**labels, **_LABELS}, [model.name for model in drawn]
    texts, repeats = prompts.prompts, prompts.repeats
    pairs = pairs_of(names)
    versus = [f"{labels[b]} against {labels[a]}" for a, b in pairs]
    rows: list[list[str]] = []
    apart: list[list[str]] = []
    plots, record = {}, {}
    for metric, meter in meters.items():
        found = {model.name: meter.rows(model.images, texts, originals) for model in drawn}
        figure = {name: meter.interval(values, repeats) for name, values in found.items()}
        leads = [meter.difference(found[a], found[b], repeats) for a, b in pairs]
        rows.append([metric, meter.metric.better, *(word(metric, x) for x in figure.values())])
        apart.append([metric, *(word(metric, lead) for lead in leads)])
        plots[metric] = curves.interval_plot(
            {labels[name]: interval for name, interval in figure.items()}, metric
        )
        record[metric] = {
            "reads": meter.metric.reads,
            "better": meter.metric.better,
            "images": len(texts),
            "figures": _as_dicts(figure),
            "differences": {
                f"{b} against {a}": lead._asdict()
                for (a, b), lead in zip(pairs, leads, strict=True)
            },
        }
        if meter.statistic is None:
            record[metric]["columns"] = {name: one.tolist() for name, one in found.items()}
    columns = ["", "better", *(labels[name] for name in names)]
    each = repeats if repeats > 1 else "one"
    note = f"{len(texts)} images of each model, {each} for each prompt. {_METRICS}"
    sections: list[Section] = [Table("Metrics", columns, rows, note=note)]
    sections += [Charts("Metrics as charts", [], plots)]
    if pairs:
        sections.append(Table("Differences of metrics", ["", *versus], apart, note=_PAIRED))
    return sections, record, markdown(columns, rows)


def copies(model: Drawn, label: str, found: Assessment, by: Yardstick) -> Section:
    """The images that are nearest to a tuning image, beside it."""
    worst = np.argsort(found.distance)[:_WORST].tolist()
    rows: list[tuple[str, list[Tile | None]]] = []
    for i in worst:
        tuned = by.tuned_images[int(found.nearest[i])]
        drawn = Tile(model.images[i], "copied" if found.copied[i] else "")
        rows.append((str(by.prompts[i]), [drawn, Tile(tuned, f"distance {found.distance[i]:.3f}")]))
    note = (
        f"The images nearest to a needle; below a distance of {by.bound:.3f} they count as copied."
    )
    title = f"Nearest needles: {_LABELS.get(label, label)}"
    return ImageTable(title, ["image", "needle"], rows, note=note, width=96)


def costs(drawn: Sequence[Drawn], labels: Mapping[str, str]) -> Section:
    """The models, their sampling settings, and their cost: one column per model."""
    rows: dict[str, list[object]] = {}
    for model in drawn:
        facts, sampling = model.facts, model.facts["sampling"]
        column = {
            "path": facts["path"],
            "step": facts["step"],
            "weights": facts["weights"][:12],
            "sampler": sampling["sampler"],
            "sampling steps": sampling["steps"],
            "guidance scale": float(sampling["guidance_scale"]),
            "parameters": facts["parameters"],
            "GFLOP per training image": facts["training_flops"] / 1e9,
            "network calls per image": facts["evaluations"],
            "GFLOP per drawn image": facts["flops"] / 1e9,
            "seconds per drawn image": facts["seconds"],
            "validation loss": facts["kept_loss"],
        }
        for name, value in column.items():
            rows.setdefault(name, []).append(value)
    columns = ["", *(labels[model.name] for model in drawn)]
    return Table("Models", columns, [[name, *values] for name, values in rows.items()])


def training(
    runs: Mapping[str, epath.Path],
    labels: Mapping[str, str],
    chosen: Mapping[str, Mapping[str, Any]],
    objectives: Mapping[str, str],
) -> Section:
    """Losses, samples and teachers of runs by name; the step that each has ``chosen``, and why.

    ``objectives`` say what each run's losses measure.
    """
    metrics = {labels[name]: curves.read_metrics(folder) for name, folder in runs.items()}
    found = dict.fromkeys(name for one in metrics.values() for name in one)
    names = [name for name in found if "loss" in name or name.startswith(_CURVES)]
    reasons = [
        f"{labels[name]}: step {one['step']} was chosen; {one['reason']}."
        for name, one in chosen.items()
    ]
    if reasons:
        reasons.append("Vertical broken lines mark the chosen steps.")
    plots = curves.charts(
        metrics,
        names,
        marks={labels[name]: choice["step"] for name, choice in chosen.items()},
        objectives={labels[name]: objective for name, objective in objectives.items()},
        shares=[name for name in names if name.rsplit("/")[-1] in SHARES],
    )
    return Charts("Training curves", list(metrics), plots, note="\n\n".join(reasons))


def label_of(name: str, labels: Mapping[str, str]) -> str:
    """The short label of a model or of the real images."""
    return labels.get(name, _LABELS.get(name, name))


def markdown(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table for a text file."""
    lines = [columns, ["---"] * len(columns), *rows]
    cells = [[str(cell).replace("|", "\\|") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def word(key: str, figure: Interval) -> str:
    """A figure with its interval as text."""
    return f"{figure:.0%}" if key in SHARES else f"{figure:z.3g}"


def _of_images(found: Assessment, repeats: int) -> dict[str, list[Any]]:
    values = {"faithful": found.top1, "finish": found.finish.round(4), "copied": found.copied}
    if repeats > 1:
        values["spread"] = spread(found, repeats).round(4)
    return {name: own.tolist() for name, own in values.items()}


def _as_dicts(values: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    return {key: value._asdict() for key, value in values.items()}
