"""Models of a comparison: their names, the wording of their prompts, and their images."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8

from emu_jax.assembly.cascade import Cascade, conditioning, open_generator, stages_of
from emu_jax.assembly.generator import Generator
from emu_jax.assembly.given import NOTHING, Given
from emu_jax.assembly.judge import open_selection
from emu_jax.assembly.models import locate
from emu_jax.errors import UserError
from emu_jax.evaluation import comparison
from emu_jax.evaluation.comparison import Drawn
from emu_jax.evaluation.curves import METRICS_FILE
from emu_jax.evaluation.prompt_sets import PromptSet
from emu_jax.evaluation.report import Section
from emu_jax.progress import compiling, watch


@dataclass(frozen=True)
class Contestant:
    """A model and the texts from which it draws the images of a comparison."""

    path: str
    name: str  # unique in its comparison
    label: str
    texts: Sequence[str]
    prompts: PromptSet  # of the comparison
    given: Given = NOTHING  # images that condition it, if it takes any

    def draw(self, kept: str, data_dir: str, seed: int, changes: Mapping[str, Any]) -> Drawn:
        """Its images, with the noise of the seeds from ``seed`` on. ``kept``: a set for the loss,
        or empty; ``changes`` are sampling settings.
        """
        generator = open_generator(self.path, **changes)
        images = conditioning(generator, _taken(self.given, generator), self.prompts)
        seeds = [seed + i for i in range(len(self.texts))]
        drawing = generator.draw_each(self.texts, seeds, images=images)
        with compiling(f"the sampler of {self.name}"):  # it is not part of the time
            images = [next(drawing)]
        start, first = time.monotonic(), generator.batch_size
        images += watch(drawing, self.name, len(self.texts), start=1)
        late = len(self.texts) - first
        facts = {
            "path": self.path,
            "step": generator.step,
            "chosen": generator.chosen,
            "weights": generator.fingerprints["weights"],
            "sampling": generator.config.sampling.to_dict(),
            **generator.costs(),
            "seconds": (time.monotonic() - start) / late if late > 0 else None,
            "objectives": [_objective(x.config) for x in getattr(generator, "stages", [generator])],
            "kept_loss": generator.loss(open_selection(kept, data_dir)) if kept else None,
        }
        return Drawn(self.name, images, facts)


def contestants(
    models: Sequence[str],
    prompts: PromptSet,
    columns: Sequence[str] = (),
    given: Given = NOTHING,
    label: str = "",
) -> list[Contestant]:
    """The models with their prompts: all the same, or worded as the model's own of ``columns``, of
    which the first is that of the prompts themselves. ``label`` is part of all names.

    Raises:
      UserError: not one column for each model, a prompt is empty, or a model is named twice.
    """
    if columns and len(columns) != len(models):
        raise UserError(
            f"--prompt_column has {len(columns)} columns for {len(models)} models: name one column "
            "for all models, or one for each."
        )
    labels = _labels(models)
    found: list[Contestant] = []
    for path, column in zip(models, columns or [""] * len(models), strict=True):
        said = ", ".join(filter(None, (column, label)))
        suffix = f" ({said})" if said else ""
        texts = _wording(prompts, column if column != next(iter(columns), "") else "")
        named = path + suffix, labels[path] + suffix
        found.append(Contestant(path, *named, texts, prompts, given))
    names = [one.name for one in found]
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise UserError(f"{twice[0]} is named twice; name every model once.")
    return found


def training_curves(drawn: Sequence[Drawn]) -> list[Section]:
    """The training curves of those models, and stages of cascades, that are runs; each run once."""
    runs, chosen, objectives = {}, {}, {}
    for model in drawn:
        stages = stages_of(model.facts["path"])
        measured = model.facts["objectives"] or [""] * len(stages)
        for i, (stage, objective) in enumerate(zip(stages, measured, strict=True)):
            name = stage.split("@")[0]
            folder = epath.Path(locate(name))
            if (folder / METRICS_FILE).exists():
                runs[name], objectives[name] = folder, objective
                if model.facts["chosen"] and i == 0:  # of a cascade: the step of its first stage
                    chosen[name] = model.facts["chosen"]
    labels = comparison.short_names(runs)
    return [comparison.training(runs, labels, chosen, objectives)] if runs else []


def real_images(prompts: PromptSet, model: Drawn) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """The real images of the prompts in the size of a model's images; none if there are none."""
    height, width, _ = model.images[0].shape
    yield from prompts.real.read((height, width)) if prompts.real else ()


def _taken(given: Given, model: Generator | Cascade) -> Given:
    """What of ``given`` a model takes; beside others in a comparison it may take less."""
    files = {name: file for name, file in given.files.items() if name in model.further}
    return Given(given.control_image if model.hint else "", files)


def _wording(prompts: PromptSet, column: str) -> Sequence[str]:
    """The prompts, or the text of each in a column; of a list its first."""
    if not column:
        return prompts.prompts
    texts = [next(iter(items), "") for items in prompts.lists(column)]
    if not all(texts):
        row = texts.index("")
        raise UserError(
            f"The column {column!r} has no text for the prompt {prompts.prompts[row]!r}: leave "
            "such prompts out by --select."
        )
    return texts


def _labels(paths: Sequence[str]) -> dict[str, str]:
    """Short names of models; a cascade is named by its stages."""
    short = comparison.short_names(stage for path in paths for stage in stages_of(path))
    return {path: "+".join(short[stage] for stage in stages_of(path)) for path in paths}


def _objective(config: Any) -> str:
    """What the losses of a generator measure; only losses of one objective share an axis."""
    process, codec = config.process, config.codec.get("path", "") or "pixels"
    if process.get("kind") == "masking":
        return f"masked tokens of {codec}, {config.data.image_size} px"
    return f"{process.get('prediction')} prediction in {codec}, {config.data.image_size} px"
