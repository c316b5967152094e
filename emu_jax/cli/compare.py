"""``emu-jax compare A B ...``: the same prompts and the same noise drawn by several models.

One HTML file that needs nothing else, a JSON file with the same figures, a picture of the grid.
Without ``--prompts`` the prompts are kept concepts: seen in pre-training, never in quality-tuning.
A judge (``--judge=""``: none) measures every model; its intervals are 95 %, over prompts.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8
from tqdm import tqdm

from emu_jax.cli import parts
from emu_jax.cli.generator import Generator
from emu_jax.cli.judge import SHIPPED, Judge, part, yardstick
from emu_jax.cli.sample import add_sampling_arguments, positive, read_prompts, sampling_changes
from emu_jax.data.source import DEFAULT_DATA_DIR
from emu_jax.evaluation import curves
from emu_jax.evaluation.assessment import Assessment, Yardstick, assess, duels, figures
from emu_jax.evaluation.grids import grid
from emu_jax.evaluation.metrics import Interval
from emu_jax.evaluation.prompts import KEPT_CONCEPTS
from emu_jax.evaluation.references import Sets
from emu_jax.evaluation.report import Charts, Picture, Pictures, Section, Table, write_report

REAL = "real pictures"
_SHOWN = len(KEPT_CONCEPTS)  # rows of pictures in the report
_WORST = 8  # pairs shown of those nearest to a needle
_PER_CENT = ("faithful", "faithful_top5", "finish", "both", "copied")
_OPINION = """The machine's opinion: the judge is a small network, and its figures for real
pictures of the same prompts say how far to believe it. Intervals are 95 %, by bootstrap over
prompts. Faithful: the judge finds the picture's own prompt the likest of all prompts. Finish: a
probe finds it finished as the needles are. Copied: nearer to a needle than 99 % of real pictures
that are none. Distances are small where alike."""


@dataclass
class Drawn:
    """A model's pictures, in the prompts' order, and what they cost."""

    name: str
    images: list[UInt8[np.ndarray, "h w 3"]]
    facts: dict[str, Any]


def main(argv: Sequence[str]) -> int:
    return report(argv, "compare", __doc__, "runs/report")


def report(argv: Sequence[str], program: str, description: str | None, default_out: str) -> int:
    """What ``compare`` and ``evaluate`` share: all of it."""
    parser = argparse.ArgumentParser(prog=f"emu-jax {program}", description=description)
    parser.add_argument("models", nargs="+", help="runs, exported models or builtin:NAME")
    parser.add_argument("--prompts", help="file with one prompt a line")
    parser.add_argument("--count", type=positive, default=100, help="prompts, without --prompts")
    parser.add_argument("--judge", default=SHIPPED, help=f"default {SHIPPED}; empty: none")
    parser.add_argument("--data_dir", default=DEFAULT_DATA_DIR)
    for name, what in (
        ("captions", "whose captions are prompts, without --prompts"),
        ("needles", "what was tuned on"),
        ("haystack", "with the finish to leave behind"),
        ("kept", "that the loss is taken on, as in validation"),
    ):
        default = getattr(Sets, name)
        parser.add_argument(f"--{name}", default=default, help=f"pictures {what}; {default}")
    parser.add_argument("--out", default=default_out, help="folder for the report")
    add_sampling_arguments(parser)
    arguments = parser.parse_args(argv)
    prompts = read_prompts(arguments.prompts) if arguments.prompts else None

    judge = by = None
    if arguments.judge:
        judge = Judge(arguments.judge)
        sets = Sets(arguments.data_dir, arguments.captions, arguments.needles, arguments.haystack)
        by = yardstick(judge, sets, prompts, arguments.count)
    prompts = list(by.prompts) if by else prompts or list(KEPT_CONCEPTS)
    kept = arguments.kept if arguments.judge else ""
    drawn = [_draw(name, prompts, kept, arguments) for name in arguments.models]
    record: dict[str, Any] = {"prompts": prompts}
    sections = _grid(drawn, prompts, arguments.seed)
    if judge and by:
        judged, verdicts = _judged(drawn, judge, by)
        sections, record = [judged[0], *sections, *judged[1:]], record | verdicts
    record["models"] = {model.name: model.facts for model in drawn}
    sections.append(_costs(drawn))
    charts = _curves(arguments.models)
    if charts:
        sections.append(charts)

    folder = epath.Path(arguments.out)
    index = write_report(
        folder / "index.html",
        " against ".join(arguments.models),
        sections,
        subtitle=f"{len(prompts)} prompts, one picture each",
    )
    (folder / f"{program}.json").write_text(json.dumps(record, indent=1))
    with (folder / "grid.png").open("wb") as file:
        shown = range(min(_SHOWN, len(prompts)))
        paired = np.stack([model.images[i] for i in shown for model in drawn])
        captions = [prompts[i] for i in shown for _ in drawn]
        wide = len(drawn) * max(1, round(8 / len(drawn)))
        grid(paired, captions, columns=wide, scale=2).save(file, "PNG")
    for name, found in record.get("figures", {}).items():
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in _words(found).items()))
    print(f"report: {index}")
    return 0


def _draw(name: str, prompts: Sequence[str], kept: str, arguments: argparse.Namespace) -> Drawn:
    generator = Generator(name, **sampling_changes(arguments))
    seeds = [arguments.seed + i for i in range(len(prompts))]
    pictures = generator.draw(prompts, seeds)
    images = [next(pictures)]  # the first batch compiles: it is not in the time
    start, first = time.monotonic(), generator.batch_size
    images += list(tqdm(pictures, total=len(prompts) - 1, desc=name))
    late = len(prompts) - first
    seconds = (time.monotonic() - start) / late if late > 0 else None
    facts = {
        "step": generator.step,
        "weights": generator.fingerprints["weights"],
        "sampling": generator.config.sampling.to_dict(),
        **generator.costs(),
        "seconds": seconds,
        "kept_loss": generator.loss(part(kept, arguments.data_dir)) if kept else None,
    }
    return Drawn(name, images, facts)


def _grid(drawn: Sequence[Drawn], prompts: Sequence[str], seed: int) -> list[Section]:
    rows = [
        (prompt, [Picture(model.images[i], f"seed {seed + i}") for model in drawn])
        for i, prompt in enumerate(prompts[:_SHOWN])
    ]
    note = "A row shares its prompt and its noise."
    return [Pictures("Pictures", [model.name for model in drawn], rows, note=note)]


def _judged(
    drawn: Sequence[Drawn], judge: Judge, by: Yardstick
) -> tuple[list[Section], dict[str, Any]]:
    """Figures, duels and the nearest tuning pictures, as sections (headline first) and as JSON."""
    columns = [*drawn, *([Drawn(REAL, list(by.real), {})] if by.real else [])]
    found = {model.name: assess(model.images, judge.see(model.images), by) for model in columns}
    measured = {name: figures(one, by) for name, one in found.items()}
    keys = list(next(iter(measured.values())))
    rows = [[key, *(_word(key, figure[key]) for figure in measured.values())] for key in keys]
    plots = {
        key: curves.interval_plot({n: f[key] for n, f in measured.items()}, key)
        for key in ("faithful", "finish", "both", "mmd_needles")
    }
    fights = {
        f"{b} against {a}": duels(found[b], found[a])
        for a, b in combinations([model.name for model in drawn], 2)
    }
    sections: list[Section] = [
        Table("Figures", ["", *measured], rows, note=_OPINION),
        Charts("Figures, drawn", list(measured), plots),
    ]
    if fights:
        shares = [
            [who, what, *(f"{share:.0%}" for share in shares)]
            for who, fight in fights.items()
            for what, shares in fight.items()
        ]
        note = "Prompt by prompt, in the judge's opinion; a tie is a difference too small to tell."
        sections.append(Table("Duels", ["", "question", "win", "tie", "lose"], shares, note=note))
    sections += [_nearest(model, found[model.name], by) for model in drawn]
    record = {
        "judge": {"path": judge.name, "weights": judge.fingerprint},
        "figures": {n: {k: v._asdict() for k, v in f.items()} for n, f in measured.items()},
        "duels": {n: {k: v._asdict() for k, v in f.items()} for n, f in fights.items()},
        "pictures": {
            name: {"faithful": one.top1.tolist(), "finish": one.finish.round(4).tolist()}
            for name, one in found.items()
        },
    }
    return sections, record


def _nearest(model: Drawn, found: Assessment, by: Yardstick) -> Section:
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


def _costs(drawn: Sequence[Drawn]) -> Section:
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
                facts["evaluations"],
                facts["flops"] / 1e9,
                facts["seconds"],
                facts["kept_loss"],
            ]
        )
    columns = ["model", "step", "weights", "sampling", "parameters", "network calls"]
    return Table("Models", [*columns, "GFLOP a picture", "seconds a picture", "kept loss"], rows)


def _words(found: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    return {key: _word(key, Interval(**value)) for key, value in found.items()}


def _word(key: str, figure: Interval) -> str:
    return f"{figure:.0%}" if key in _PER_CENT else f"{figure:.3g}"


def _curves(models: Sequence[str]) -> Charts | None:
    """Training and validation curves of those models that are runs."""
    runs = {}
    for model in models:
        folder = epath.Path(parts.locate(model).split("@")[0])
        if (folder / curves.METRICS_FILE).exists():
            runs[model] = curves.read_metrics(folder)
    if not runs:
        return None
    names = dict.fromkeys(n for metrics in runs.values() for n in metrics if "loss" in n)
    return Charts("Curves", list(runs), curves.charts(runs, list(names)))
