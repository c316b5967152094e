"""Models drawn side by side and measured: one HTML report with its data beside it."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8

from emu_jax.assembly.cascade import open_generator, stages_of
from emu_jax.assembly.judge import Judge, open_selection, read_set, yardstick
from emu_jax.assembly.models import locate
from emu_jax.assembly.segmenter import open_reader
from emu_jax.errors import UserError
from emu_jax.evaluation import comparison
from emu_jax.evaluation.assessment import assess, per_image
from emu_jax.evaluation.categories import Groups, broken_down, by_figure
from emu_jax.evaluation.comparison import REAL, Drawn
from emu_jax.evaluation.contents import asked_by, contents, read, summary
from emu_jax.evaluation.curves import METRICS_FILE
from emu_jax.evaluation.distances import read_statistics
from emu_jax.evaluation.grids import grid
from emu_jax.evaluation.measuring import Images, against, open_metrics, reads_references
from emu_jax.evaluation.metrics import Statistics
from emu_jax.evaluation.prompt_sets import PromptSet
from emu_jax.evaluation.prompts import KEPT_CONCEPTS, kept_prompts
from emu_jax.evaluation.references import Sets
from emu_jax.evaluation.report import Section, write_report
from emu_jax.progress import compiling, watch

_SHOWN = len(KEPT_CONCEPTS)  # rows of images in the report
_NAMED = 3  # models in the title; more are counted


def compare(
    models: Sequence[str],
    out: str,
    sets: Sets,
    *,
    name: str = "compare",
    prompts: PromptSet | None = None,
    count: int | None = None,
    by: str = "",
    judge: str = "",
    parser: str | None = "",
    metrics: Sequence[str] = (),
    weights: str = "",
    seed: int = 0,
    changes: Mapping[str, Any],
) -> epath.Path:
    """Draws the same prompts with the same noise by every model and writes the report into ``out``:
    ``index.html``, ``NAME.json`` with the same figures, ``figures.md``, ``grid.png``.

    ``prompts`` None: ``count`` captions of ``sets``, by default at most 100. An empty name of a set
    leaves it out: without captions the prompts are everyday concepts, without ``kept`` no loss is
    measured. ``judge`` "": no measurements of images but those of ``metrics``, whose networks are
    in the folder ``weights``. ``by`` is the column of the prompts by which figures are broken down,
    by default :meth:`PromptSet.categories`. A ``parser`` reads whether images show what their
    prompts ask for (:func:`open_reader`). ``changes`` are sampling settings. Returns the report's
    file.

    The images of all models are kept in memory.
    """
    if prompts is not None and not len(prompts):
        raise UserError("There are no prompts: name some, or None for the captions of a set.")
    asked = count if prompts is None else len(prompts)
    if judge and asked is not None and asked < 2:
        raise UserError(
            f"A judge needs 2 prompts or more for its intervals, not {asked}: add prompts, or "
            'compare without a judge (--judge="").'
        )
    if prompts is None and (judge or sets.captions):
        prompts = kept_prompts(open_selection(sets.captions, sets.data_dir), count)
    prompts = prompts or PromptSet(KEPT_CONCEPTS)
    groups = Groups.of(prompts, by)
    meters = open_metrics(metrics, weights)  # Before images are drawn: weights may be missing.
    wanted = asked_by(prompts.columns)
    reader = open_reader(parser, wanted, weights)
    scorer = Judge(judge) if judge else None
    yard = yardstick(scorer, sets, prompts) if scorer else None
    texts = list(prompts.prompts)
    drawn = [_draw(model, texts, sets.kept, sets.data_dir, seed, changes) for model in models]
    folder = epath.Path(out)
    record: dict[str, Any] = {"prompts": texts}
    labels = _labels(models)
    real = list(yard.real or ()) if yard else _real_images(prompts, drawn[0])
    shown = [*drawn, *([Drawn(REAL, real, {})] if real else [])]
    sections = [comparison.image_table(shown, labels, texts[:_SHOWN], seed)]
    tables, columns = [], {}
    if scorer and yard:
        found = {
            model.name: assess(model.images, scorer.embed_images(model.images), yard)
            for model in shown
        }
        judged, verdicts, table = comparison.judged(found, yard, labels)
        sections += judged
        columns = by_figure({name: per_image(one) for name, one in found.items()})
        for model in shown:
            label = labels.get(model.name, model.name)
            sections.append(comparison.copies(model, label, found[model.name], yard))
        record |= {"judge": {"path": scorer.name, "weights": scorer.fingerprint}, **verdicts}
        tables.append(table)
    if metrics:
        meters = against(_references(metrics, sets, drawn[0]), meters)
        measured, record["metrics"], table = comparison.measured(meters, shown, labels, texts, real)
        sections += measured
        columns |= {
            metric: one["columns"] for metric, one in record["metrics"].items() if "columns" in one
        }
        tables.append(table)
    if reader:
        segmenter, colors = reader
        readings = {model.name: read(model.images, wanted, segmenter, colors) for model in shown}
        names = {model.name: comparison.label_of(model.name, labels) for model in shown}
        read_sections, shares = contents(readings, wanted, texts, names, segmenter.name, REAL)
        sections += read_sections
        own = {"path": segmenter.name, "weights": segmenter.fingerprint}
        record["contents"] = {"parser": own, **shares}
        tables.append(comparison.markdown(*summary(readings, wanted, names)))
    if columns and groups:
        section, record["categories"] = broken_down(columns, groups, labels)
        sections.append(section)
    if tables:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "figures.md").write_text("\n".join(tables))
        print("\n".join(tables), end="")
    record["models"] = {model.name: model.facts for model in drawn}
    sections += [comparison.costs(drawn, labels), *_training(drawn)]
    index = write_report(
        folder / "index.html",
        _title([labels[model] for model in models]),
        sections,
        subtitle=f"{len(texts)} prompts, one image each",
    )
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1))
    with (folder / "grid.png").open("wb") as file:
        rows = range(min(_SHOWN, len(texts)))
        paired = np.stack([model.images[i] for i in rows for model in drawn])
        captions = [texts[i] for i in rows for _ in drawn]
        wide = len(drawn) * max(1, round(8 / len(drawn)))
        grid(paired, captions, columns=wide).save(file, "PNG")
    return index


def _references(metrics: Sequence[str], sets: Sets, model: Drawn) -> Images | Statistics:
    """The references in the size of a model's images, or their published statistics; none where no
    metric reads them.
    """
    if not reads_references(metrics):
        return []
    if sets.references.endswith(".npz"):
        return read_statistics(sets.references)
    height, width, _ = model.images[0].shape
    return read_set(sets.references or sets.needles, sets.data_dir, (height, width))[0]


def _real_images(prompts: PromptSet, model: Drawn) -> list[UInt8[np.ndarray, "h w 3"]]:
    """The real images of the prompts in the size of a model's images; none if there are none."""
    height, width, _ = model.images[0].shape
    return list(prompts.real.read((height, width))) if prompts.real else []


def _draw(
    name: str,
    prompts: Sequence[str],
    kept: str,
    data_dir: str,
    seed: int,
    changes: Mapping[str, Any],
) -> Drawn:
    generator = open_generator(name, **changes)
    drawing = generator.draw_each(prompts, [seed + i for i in range(len(prompts))])
    with compiling(f"the sampler of {name}"):  # it is not part of the time
        images = [next(drawing)]
    start, first = time.monotonic(), generator.batch_size
    images += watch(drawing, name, len(prompts), start=1)
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
        "kept_loss": generator.loss(open_selection(kept, data_dir)) if kept else None,
    }
    return Drawn(name, images, facts)


def _training(drawn: Sequence[Drawn]) -> list[Section]:
    """The training curves of those models, and stages of cascades, that are runs; each run once."""
    runs, chosen, objectives = {}, {}, {}
    for model in drawn:
        stages = stages_of(model.name)
        measured = model.facts.get("objectives") or [""] * len(stages)
        for i, (stage, objective) in enumerate(zip(stages, measured, strict=True)):
            name = stage.split("@")[0]
            folder = epath.Path(locate(name))
            if (folder / METRICS_FILE).exists():
                runs[name], objectives[name] = folder, objective
                if model.facts["chosen"] and i == 0:  # of a cascade: the step of its first stage
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
    """What the losses of a generator measure; only losses of one objective share an axis."""
    process, codec = config.process, config.codec.get("path", "") or "pixels"
    if process.get("kind") == "masking":
        return f"masked tokens of {codec}, {config.data.image_size} px"
    return f"{process.get('prediction')} prediction in {codec}, {config.data.image_size} px"
