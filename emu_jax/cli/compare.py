"""``emu-jax compare A B``: the same prompts and the same noise drawn by several models.

The report is one HTML file that needs nothing else. Without ``--prompts`` the prompts are kept
concepts: seen in pre-training, never in quality-tuning.
"""

import argparse
from collections.abc import Sequence

import numpy as np
from etils import epath
from tqdm import tqdm

from emu_jax.cli import parts
from emu_jax.cli.generator import Generator
from emu_jax.cli.sample import add_sampling_arguments, read_prompts, sampling_changes
from emu_jax.evaluation import curves
from emu_jax.evaluation.grids import grid
from emu_jax.evaluation.prompts import KEPT_CONCEPTS
from emu_jax.evaluation.report import Charts, Picture, Pictures, Section, Table, write_report


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="emu-jax compare", description=__doc__)
    parser.add_argument("models", nargs="+", help="runs, exported models or builtin:NAME")
    parser.add_argument("--prompts", help="file with one prompt a line")
    parser.add_argument("--out", default="runs/report", help="folder for the report")
    add_sampling_arguments(parser)
    arguments = parser.parse_args(argv)
    prompts = read_prompts(arguments.prompts) if arguments.prompts else list(KEPT_CONCEPTS)
    seeds = [arguments.seed + i for i in range(len(prompts))]

    folder = epath.Path(arguments.out)
    folder.mkdir(parents=True, exist_ok=True)
    columns, facts = [], []
    for name in arguments.models:
        generator = Generator(name, **sampling_changes(arguments))
        drawn = generator.draw(prompts, seeds)
        columns.append(list(tqdm(drawn, total=len(prompts), desc=name)))
        facts.append(
            [name, generator.step, generator.fingerprints["weights"][:12], _settings(generator)]
        )
    rows = [
        (prompt, [Picture(column[i], f"seed {seeds[i]}") for column in columns])
        for i, prompt in enumerate(prompts)
    ]
    sections: list[Section] = [
        Pictures("Pictures", arguments.models, rows, note="A row shares its prompt and its noise."),
        Table("Models", ["model", "step", "weights", "sampling"], facts),
    ]
    charts = _curves(arguments.models)
    if charts:
        sections.append(charts)
    index = write_report(
        folder / "index.html",
        " against ".join(arguments.models),
        sections,
        subtitle=f"{len(prompts)} prompts, one picture each",
    )
    with (folder / "grid.png").open("wb") as file:
        paired = np.stack([column[i] for i in range(len(prompts)) for column in columns])
        captions = [prompt for prompt in prompts for _ in columns]
        wide = len(columns) * max(1, round(8 / len(columns)))
        grid(paired, captions, columns=wide, scale=2).save(file, "PNG")
    print(f"report: {index}")
    return 0


def _settings(generator: Generator) -> str:
    sampling = generator.config.sampling
    return f"{sampling.sampler}, {sampling.steps} steps, guidance {sampling.guidance_scale:g}"


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
