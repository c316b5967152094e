"""Models drawn side by side and measured: one HTML report with its data beside it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from etils import epath

from emu_jax.assembly.contestants import contestants, real_images, training_curves
from emu_jax.assembly.given import NOTHING, Given
from emu_jax.assembly.judge import Judge, open_selection, read_set, yardstick
from emu_jax.assembly.segmenter import Reader, open_reader
from emu_jax.errors import UserError
from emu_jax.evaluation import comparison
from emu_jax.evaluation.assessment import Yardstick, assess, per_image
from emu_jax.evaluation.blind import blind_sheet
from emu_jax.evaluation.categories import Groups, broken_down, by_figure
from emu_jax.evaluation.comparison import REAL, Drawn
from emu_jax.evaluation.contents import Asked, asked_by, contents, read, summary
from emu_jax.evaluation.distances import read_statistics
from emu_jax.evaluation.grids import grid
from emu_jax.evaluation.measuring import Images, Meter, against, open_metrics, reads_references
from emu_jax.evaluation.metrics import Statistics
from emu_jax.evaluation.prompt_sets import PromptSet
from emu_jax.evaluation.prompts import KEPT_CONCEPTS, kept_prompts
from emu_jax.evaluation.references import Sets
from emu_jax.evaluation.report import Section, write_report
from emu_jax.text.weighting import plain

_SHOWN = len(KEPT_CONCEPTS)  # rows of images in the report
_NAMED = 3  # models in the title; more are counted


def compare(
    models: Sequence[str],
    out: str,
    sets: Sets,
    *,
    name: str = "compare",
    label: str = "",
    prompts: PromptSet | None = None,
    columns: Sequence[str] = (),
    count: int | None = None,
    images_per_prompt: int = 1,
    by: str = "",
    judge: str = "",
    parser: str | None = "",
    metrics: Sequence[str] = (),
    weights: str = "",
    seed: int = 0,
    blind: int = 0,
    given: Given = NOTHING,
    changes: Mapping[str, Any],
) -> epath.Path:
    """Draws the same prompts with the same noise by every model and writes the report into ``out``:
    ``index.html``, ``NAME.json`` with the same figures, ``figures.md``, ``grid.png``.

    ``label`` is part of the models' names. ``prompts`` None: ``count`` captions of ``sets``, by
    default at most 100. An empty name of a set leaves it out: without captions the prompts are
    everyday concepts, without ``kept`` no loss is measured. ``columns`` have another wording of the
    prompts for each model (:func:`contestants`); what measures texts reads the prompts themselves.
    ``judge`` "": no measurements of images but those of ``metrics``, whose networks are in the
    folder ``weights``. ``by`` is the column of the prompts by which figures are broken down, by
    default :meth:`PromptSet.categories`. A ``parser`` reads whether images show what their prompts
    ask for (:func:`open_reader`). ``changes`` are settings of sampling and adapters of all models.
    ``given`` are images that condition the models that take them, by default those of the prompts.
    ``blind`` images are laid out for a person, too (:func:`blind_sheet`). Returns the report's
    file.

    The images of all models are kept in memory.
    """
    asked = count if prompts is None else len(prompts)
    if asked == 0:
        raise UserError("There are no prompts: name some, or None for the captions of a set.")
    if judge and asked is not None and asked < 2:
        raise UserError(
            f"A judge needs 2 prompts or more for its intervals, not {asked}: add prompts, or "
            'compare without a judge (--judge="").'
        )
    if prompts is None and (judge or sets.captions):
        prompts = kept_prompts(open_selection(sets.captions, sets.data_dir), count)
    prompts = (prompts or PromptSet(KEPT_CONCEPTS)).repeated(images_per_prompt)
    entered = contestants(models, prompts, columns, given, label)
    # The judge and the metrics read the prompts without the markup of weights.
    weighting = changes.get("prompt_weighting", "none")
    unmarked = replace(prompts, prompts=tuple(plain(prompts.prompts, weighting)))
    groups = Groups.of(prompts, by)
    meters = open_metrics(metrics, weights)  # Before images are drawn: weights may be missing.
    wanted = asked_by(prompts.columns)
    reader = open_reader(parser, wanted, weights)
    scorer = Judge(judge) if judge else None
    yard = yardstick(scorer, sets, unmarked) if scorer else None
    drawn = [one.draw(sets.kept, sets.data_dir, seed, changes) for one in entered]
    real = list((yard.real if yard else real_images(prompts, drawn[0])) or ())
    shown = [*drawn, *([Drawn(REAL, real, {})] if real else [])]
    report = _Report(shown, {one.name: one.label for one in entered}, prompts, unmarked)
    rows = range(0, len(prompts), images_per_prompt)[:_SHOWN]
    report.show(rows, seed)
    if scorer and yard:
        report.judge(scorer, yard)
    if metrics:
        references = _references(metrics, sets, drawn[0])
        report.measure(against(references, meters), real)
    if reader:
        report.read(reader, wanted)
    if groups:
        report.break_down(groups)
    report.record["models"] = {model.name: model.facts for model in drawn}
    report.sections += [comparison.costs(drawn, report.labels), *training_curves(drawn)]
    folder = epath.Path(out)
    index = report.write(folder, name, _title([one.label for one in entered]))
    _write_grid(folder / "grid.png", drawn, prompts.prompts, rows)
    if blind:
        by_model = {model.name: model.images for model in drawn}
        sheet, answers = blind_sheet(by_model, unmarked.prompts, blind, seed, images_per_prompt)
        with (folder / "blind.png").open("wb") as file:
            sheet.save(file, "PNG")
        (folder / "blind_key.json").write_text(json.dumps(answers, indent=1))
    return index


@dataclass
class _Report:
    """What a comparison has found so far: sections of the report, tables in Markdown, values per
    image by figure and model, and the record for JSON.
    """

    shown: Sequence[Drawn]  # models, and the real images where there are any
    labels: Mapping[str, str]  # of the models
    prompts: PromptSet
    unmarked: PromptSet  # without the markup of weights
    sections: list[Section] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    columns: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        self.record["prompts"] = list(self.prompts.prompts)
        if self.prompts.repeats > 1:
            self.record["images_per_prompt"] = self.prompts.repeats

    def show(self, rows: Sequence[int], seed: int) -> None:
        """Shows images, one row per prompt."""
        table = comparison.image_table(self.shown, self.labels, self.prompts.prompts, rows, seed)
        self.sections.append(table)

    def judge(self, scorer: Judge, yard: Yardstick) -> None:
        """Assesses the images by a judge."""
        found = {
            model.name: assess(model.images, scorer.embed_images(model.images), yard)
            for model in self.shown
        }
        sections, verdicts, table = comparison.judged(found, yard, self.labels)
        self.sections += sections
        for model in self.shown:
            label = self.labels.get(model.name, model.name)
            self.sections.append(comparison.copies(model, label, found[model.name], yard))
        self.columns |= by_figure({name: per_image(one) for name, one in found.items()})
        self.record["judge"] = {"path": scorer.name, "weights": scorer.fingerprint}
        self.record |= verdicts
        self.tables.append(table)

    def measure(self, meters: Mapping[str, Meter], real: Images) -> None:
        """Measures the images by metrics."""
        sections, found, table = comparison.measured(
            meters, self.shown, self.labels, self.unmarked, real
        )
        self.sections += sections
        self.columns |= {name: one["columns"] for name, one in found.items() if "columns" in one}
        self.record["metrics"] = found
        self.tables.append(table)

    def read(self, reader: Reader, asked: Mapping[int, Asked]) -> None:
        """Reads whether the images show what their prompts ask for."""
        segmenter, colors = reader
        readings = {
            model.name: read(model.images, asked, segmenter, colors) for model in self.shown
        }
        labels = {name: comparison.label_of(name, self.labels) for name in readings}
        sections, shares = contents(readings, asked, self.prompts, labels, segmenter.name, REAL)
        self.sections += sections
        parser = {"path": segmenter.name, "weights": segmenter.fingerprint}
        self.record["contents"] = {"parser": parser, **shares}
        table = summary(readings, asked, labels, self.prompts.repeats)
        self.tables.append(comparison.markdown(*table))

    def break_down(self, groups: Groups) -> None:
        """Breaks the values per image down by a column of the prompts."""
        if self.columns:
            section, self.record["categories"] = broken_down(self.columns, groups, self.labels)
            self.sections.append(section)

    def write(self, folder: epath.Path, name: str, title: str) -> epath.Path:
        """Writes the files and prints the tables."""
        if self.tables:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "figures.md").write_text("\n".join(self.tables))
            print("\n".join(self.tables), end="")
        each = self.prompts.repeats
        said = f"{len(self.prompts) // each} prompts, {each if each > 1 else 'one'} image"
        subtitle = f"{said}{'s' if each > 1 else ''} each"
        index = write_report(folder / "index.html", title, self.sections, subtitle=subtitle)
        (folder / f"{name}.json").write_text(json.dumps(self.record, indent=1))
        return index


def _write_grid(
    path: epath.Path, drawn: Sequence[Drawn], prompts: Sequence[str], rows: Sequence[int]
) -> None:
    """The images of some prompts with the models side by side."""
    paired = np.stack([model.images[i] for i in rows for model in drawn])
    captions = [prompts[i] for i in rows for _ in drawn]
    wide = len(drawn) * max(1, round(8 / len(drawn)))
    with path.open("wb") as file:
        grid(paired, captions, columns=wide).save(file, "PNG")


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


def _title(labels: Sequence[str]) -> str:
    if len(labels) == 1:
        return f"Evaluation of {labels[0]}"
    few = len(labels) <= _NAMED
    return f"Comparison of {' and '.join(labels) if few else f'{len(labels)} models'}"
