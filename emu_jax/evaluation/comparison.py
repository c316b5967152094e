"""Several models' pictures of the same prompts: what a report says of them.

From pictures, what a judge made of them (:mod:`emu_jax.evaluation.assessment`) and the runs' logs
to a report's sections, to one record for JSON and to one table in Markdown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8

from emu_jax.evaluation import curves
from emu_jax.evaluation.assessment import Assessment, Yardstick, differences, duels, figures
from emu_jax.evaluation.metrics import Interval
from emu_jax.evaluation.report import Charts, Picture, Pictures, Section, Table

REAL = "real pictures"
_WORST = 8  # pairs shown of those nearest to a needle
_PER_CENT = ("faithful", "faithful_top5", "finish", "both", "copied")
_PLOTTED = ("faithful", "finish", "both", "mmd_needles", "contrast")
_OPINION = """The machine's opinion: the judge is a small network, and its figures for real
pictures of the same prompts say how far to believe it. Intervals are 95 %, by bootstrap over
prompts. Faithful: the judge finds the picture's own prompt the likest of all prompts. Finish: a
probe finds it finished as the needles are. Copied: nearer to a needle than 99 % of real pictures
that are none. Contrast: the deviation of a picture's luma. Distances are small where alike."""
_PAIRED = """The first named minus the second, prompt by prompt; an interval that leaves out
0 is a difference that the choice of prompts does not explain."""


@dataclass
class Drawn:
    """A model's pictures, in the prompts' order, and what is known of it and of what they cost."""

    name: str
    images: list[UInt8[np.ndarray, "h w 3"]]
    facts: dict[str, Any]


def pictures(drawn: Sequence[Drawn], prompts: Sequence[str], seed: int) -> Section:
    """A row a prompt, a column a model."""
    rows = [
        (prompt, [Picture(model.images[i], f"seed {seed + i}") for model in drawn])
        for i, prompt in enumerate(prompts)
    ]
    note = "A row shares its prompt and its noise."
    return Pictures("Pictures", [model.name for model in drawn], rows, note=note)


def judged(
    found: Mapping[str, Assessment], by: Yardstick
) -> tuple[list[Section], dict[str, Any], str]:
    """Figures, differences and duels: as sections (headline first), as JSON, and in Markdown.

    Pairs are taken among models, not with the real pictures.
    """
    measured = {name: figures(one, by) for name, one in found.items()}
    keys = list(next(iter(measured.values())))
    rows = [[key, *(word(key, figure[key]) for figure in measured.values())] for key in keys]
    plots = {
        key: curves.interval_plot({n: f[key] for n, f in measured.items()}, key) for key in _PLOTTED
    }
    pairs = list(combinations([name for name in found if name != REAL], 2))
    leads = {f"{b} against {a}": differences(found[b], found[a]) for a, b in pairs}
    fights = {f"{b} against {a}": duels(found[b], found[a]) for a, b in pairs}
    sections: list[Section] = [
        Table("Figures", ["", *measured], rows, note=_OPINION),
        Charts("Figures, drawn", list(measured), plots),
    ]
    if pairs:
        shares = [
            [who, what, *(f"{share:.0%}" for share in shares)]
            for who, fight in fights.items()
            for what, shares in fight.items()
        ]
        apart = [[who, *(f"{lead[key]:+.0%}" for key in lead)] for who, lead in leads.items()]
        note = "Prompt by prompt, in the judge's opinion; a tie is a difference too small to tell."
        columns = list(next(iter(leads.values())))
        sections += [
            Table("Differences", ["", *columns], apart, note=_PAIRED),
            Table("Duels", ["", "question", "win", "tie", "lose"], shares, note=note),
        ]
    record = {
        "figures": {n: {k: v._asdict() for k, v in f.items()} for n, f in measured.items()},
        "differences": {n: {k: v._asdict() for k, v in f.items()} for n, f in leads.items()},
        "duels": {n: {k: v._asdict() for k, v in f.items()} for n, f in fights.items()},
        "pictures": {
            name: {"faithful": one.top1.tolist(), "finish": one.finish.round(4).tolist()}
            for name, one in found.items()
        },
    }
    shown = ("faithful", "finish", "both", "copied", "contrast")
    table = [[n, *(word(key, f[key]) for key in shown)] for n, f in measured.items()]
    return sections, record, markdown(["", *shown], table)


def copies(model: Drawn, found: Assessment, by: Yardstick) -> Section:
    """The pictures that are nearest to a tuning picture, beside it."""
    worst = np.argsort(found.distance)[:_WORST].tolist()
    rows: list[tuple[str, list[Picture | None]]] = []
    for i in worst:
        copy = Picture(model.images[i], "copy" if found.copied[i] else "")
        tuned = by.tuned_images[int(found.nearest[i])]
        pair: list[Picture | None] = [copy, Picture(tuned, f"distance {found.distance[i]:.3f}")]
        rows.append((str(by.prompts[i]), pair))
    note = f"Nearest needles; below {by.bound:.3f} a picture counts as copied."
    return Pictures(f"Copies? {model.name}", ["drawn", "needle"], rows, note=note, width=96)


def costs(drawn: Sequence[Drawn]) -> Section:
    """What the models are, how they were asked to draw, and what that cost."""
    rows = []
    for model in drawn:
        facts, sampling = model.facts, model.facts["sampling"]
        rows.append(
            [
                model.name,
                facts["step"],
                facts["weights"][:12],
                f"{sampling['sampler']}, {sampling['steps']} steps, "
                f"guidance {sampling['guidance_scale']:g}",
                facts["parameters"],
                facts["training_flops"] / 1e9,
                facts["evaluations"],
                facts["flops"] / 1e9,
                facts["seconds"],
                facts["kept_loss"],
            ]
        )
    columns = ["model", "step", "weights", "sampling", "parameters", "GFLOP a picture trained on"]
    drawing = ["network calls", "GFLOP a picture drawn", "seconds a picture drawn", "kept loss"]
    return Table("Models", [*columns, *drawing], rows)


def training(runs: Mapping[str, epath.Path], chosen: Mapping[str, Mapping[str, Any]]) -> Section:
    """Losses and judged samples of runs by name, and which step each has ``chosen``, and why."""
    metrics = {name: curves.read_metrics(folder) for name, folder in runs.items()}
    found = dict.fromkeys(name for one in metrics.values() for name in one)
    names = [name for name in found if "loss" in name or name.startswith("samples/")]
    marks = {name: choice["step"] for name, choice in chosen.items()}
    reasons = [f"{name} chose step {one['step']}: {one['reason']}." for name, one in chosen.items()]
    if reasons:
        reasons.append("Broken upright lines mark the chosen steps.")
    plots = curves.charts(metrics, names, marks)
    return Charts("Curves", list(metrics), plots, note="\n\n".join(reasons))


def markdown(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table for a text file."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(str(cell) for cell in line)} |\n" for line in lines)


def word(key: str, figure: Interval) -> str:
    """A figure with its interval as people read it."""
    return f"{figure:.0%}" if key in _PER_CENT else f"{figure:.3g}"
