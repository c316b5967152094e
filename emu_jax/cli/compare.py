"""``emu-jax compare A B ...``: images of several models from the same prompts and the same noise.

Writes one self-contained HTML file, a JSON file with the same figures and a grid of the images.
Without ``--prompts`` the prompts are kept concepts: those of pre-training that quality-tuning does
not contain. A judge (``--judge=""``: none) evaluates every model; intervals are 95 %, over prompts.
"""

import argparse
import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from tqdm import tqdm

from emu_jax.assembly import parts
from emu_jax.assembly.cascade import open_generator, stages_of
from emu_jax.assembly.judge import SHIPPED, Judge, open_selection, yardstick
from emu_jax.cli.sample import add_sampling_arguments, positive, read_prompts, sampling_changes
from emu_jax.data.source import DEFAULT_DATA_DIR
from emu_jax.evaluation import comparison
from emu_jax.evaluation.assessment import assess
from emu_jax.evaluation.comparison import REAL, Drawn
from emu_jax.evaluation.curves import METRICS_FILE
from emu_jax.evaluation.grids import grid
from emu_jax.evaluation.prompts import KEPT_CONCEPTS
from emu_jax.evaluation.references import Sets
from emu_jax.evaluation.report import Section, write_report

_SHOWN = len(KEPT_CONCEPTS)  # rows of images in the report
_NAMED = 3  # models in the title; more are counted


def main(argv: Sequence[str]) -> int:
    return report(argv, "compare", __doc__, "runs/report")


def report(argv: Sequence[str], program: str, description: str | None, default_out: str) -> int:
    """The whole command, which ``compare`` and ``evaluate`` share."""
    parser = argparse.ArgumentParser(prog=f"emu-jax {program}", description=description)
    parser.add_argument("models", nargs="+", help="runs, exported models or builtin:NAME")
    parser.add_argument("--prompts", help="file with one prompt per line")
    parser.add_argument(
        "--count", type=positive, default=100, help="number of prompts without --prompts"
    )
    parser.add_argument("--judge", default=SHIPPED, help=f"default {SHIPPED}; empty: none")
    parser.add_argument("--data_dir", default=DEFAULT_DATA_DIR)
    for name, what in (
        ("captions", "whose captions are the prompts without --prompts"),
        ("needles", "of quality-tuning"),
        ("haystack", "with the finish of pre-training"),
        ("kept", "for the loss, as in validation"),
    ):
        default = getattr(Sets, name)
        parser.add_argument(f"--{name}", default=default, help=f"images {what}; {default}")
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
    folder = epath.Path(arguments.out)
    record: dict[str, Any] = {"prompts": prompts}
    labels = _labels(arguments.models)
    sections = [comparison.image_table(drawn, labels, prompts[:_SHOWN], arguments.seed)]
    if judge and by:
        shown = [*drawn, *([Drawn(REAL, list(by.real), {})] if by.real else [])]
        found = {
            model.name: assess(model.images, judge.embed_images(model.images), by)
            for model in shown
        }
        judged, verdicts, table = comparison.judged(found, by, labels)
        sections += judged
        for model in shown:
            label = labels.get(model.name, model.name)
            sections.append(comparison.copies(model, label, found[model.name], by))
        record |= {"judge": {"path": judge.name, "weights": judge.fingerprint}, **verdicts}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "figures.md").write_text(table)
        print(table, end="")
    record["models"] = {model.name: model.facts for model in drawn}
    sections += [comparison.costs(drawn, labels), *_training(drawn)]
    index = write_report(
        folder / "index.html",
        _title([labels[name] for name in arguments.models]),
        sections,
        subtitle=f"{len(prompts)} prompts, one image each",
    )
    (folder / f"{program}.json").write_text(json.dumps(record, indent=1))
    with (folder / "grid.png").open("wb") as file:
        rows = range(min(_SHOWN, len(prompts)))
        paired = np.stack([model.images[i] for i in rows for model in drawn])
        captions = [prompts[i] for i in rows for _ in drawn]
        wide = len(drawn) * max(1, round(8 / len(drawn)))
        grid(paired, captions, columns=wide, scale=2).save(file, "PNG")
    print(f"report: {index}")
    return 0


def _draw(name: str, prompts: Sequence[str], kept: str, arguments: argparse.Namespace) -> Drawn:
    generator = open_generator(name, **sampling_changes(arguments))
    seeds = [arguments.seed + i for i in range(len(prompts))]
    pictures = generator.draw(prompts, seeds)
    images = [next(pictures)]  # the first batch includes compilation and is not timed
    start, first = time.monotonic(), generator.batch_size
    images += list(tqdm(pictures, total=len(prompts) - 1, desc=name))
    late = len(prompts) - first
    seconds = (time.monotonic() - start) / late if late > 0 else None
    facts = {
        "step": generator.step,
        "chosen": generator.chosen,
        "weights": generator.fingerprints["weights"],
        "sampling": generator.config.sampling.to_dict(),
        **generator.costs(),
        "seconds": seconds,
        "objectives": [_objective(one.config) for one in getattr(generator, "stages", [generator])],
        "kept_loss": generator.loss(open_selection(kept, arguments.data_dir)) if kept else None,
    }
    return Drawn(name, images, facts)


def _training(drawn: Sequence[Drawn]) -> list[Section]:
    """The curves of those models and stages of cascades that are runs, each run once."""
    runs, chosen, objectives = {}, {}, {}
    for model in drawn:
        stages = stages_of(model.name)
        measured = model.facts.get("objectives") or [""] * len(stages)
        for i, (stage, objective) in enumerate(zip(stages, measured, strict=True)):
            name = stage.split("@")[0]
            folder = epath.Path(parts.locate(name))
            if (folder / METRICS_FILE).exists():
                runs[name], objectives[name] = folder, objective
                if model.facts["chosen"] and i == 0:  # that of a cascade is of its first stage
                    chosen[name] = model.facts["chosen"]
    labels = comparison.short_names(runs)
    return [comparison.training(runs, labels, chosen, objectives)] if runs else []


def _labels(names: Sequence[str]) -> dict[str, str]:
    """Short names of models; a cascade is named by its stages."""
    short = comparison.short_names(stage for name in names for stage in stages_of(name))
    return {name: "+".join(short[stage] for stage in stages_of(name)) for name in names}


def _title(labels: Sequence[str]) -> str:
    if len(labels) == 1:
        return f"Evaluation of {labels[0]}"
    few = len(labels) <= _NAMED
    return f"Comparison of {' and '.join(labels) if few else f'{len(labels)} models'}"


def _objective(config: Any) -> str:
    """What the losses of a generator measure; only losses of one objective have a common axis."""
    process, codec = config.process, config.codec.get("path", "") or "pixels"
    if process.get("kind") == "masking":
        return f"masked tokens of {codec}, {config.data.image_size} px"
    return f"{process.get('prediction')} prediction in {codec}, {config.data.image_size} px"
