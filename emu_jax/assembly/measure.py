"""The metrics that stop tuning: images drawn and measured in the middle of training.

The loss does not show when a generator begins to forget, and a reward rises while images get worse.
So every validation draws prompts that tuning never shows, with the averaged weights and the same
noise each time. A judge scores images of single things (``samples/...``), a parser reads what
images of scenes show (``contents/...``). Neither may be what the run is trained with.

Several hosts draw the images together, each its rows of a batch; each host measures all of them,
and the first one's figures count.
"""

from collections.abc import Mapping

import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8
from ml_collections import ConfigDict

from emu_jax.assembly.generator import Drawer
from emu_jax.assembly.judge import Judge, open_selection, yardstick
from emu_jax.assembly.segmenter import open_reader
from emu_jax.errors import UserError
from emu_jax.evaluation.assessment import assess
from emu_jax.evaluation.contents import asked_by, read
from emu_jax.evaluation.measuring import make_meters
from emu_jax.evaluation.memorisation import variety
from emu_jax.evaluation.metrics import mmd
from emu_jax.evaluation.prompt_sets import PromptSet, open_prompts
from emu_jax.evaluation.prompts import kept_prompts
from emu_jax.evaluation.references import Sets
from emu_jax.nn.functional import Params
from emu_jax.parallel.distributed import of_first_process
from emu_jax.tasks.base import Task
from emu_jax.training.state import TrainState, averaged

Images = list[UInt8[np.ndarray, "h w 3"]]
OFF = 'set config.measure.judge and config.measure.parser to ""'


def measures(config: ConfigDict) -> bool:
    """Whether the validations of a run draw images."""
    return "measure" in config and bool(config.measure.judge or config.measure.parser)


class Samples:
    """The figures of (step, state): of :class:`_Judged` and :class:`_Read`, as the config has
    them. With several images of each prompt ``variety``, too: how much these differ.
    """

    def __init__(self, config: ConfigDict, task: Task, mesh: Mesh, frozen: Mapping[str, Params]):
        section = config.measure
        if task.generator is None:
            raise UserError(
                f"config.measure draws images, which the task {config.task} cannot do: {OFF}."
            )
        if task.generator.low or task.generator.further:
            raise UserError(
                "config.measure draws from prompts only, which super-resolution stages and models "
                f"that are conditioned on images cannot do: {OFF}."
            )
        data_dir = config.data.data_dir
        self._parts: dict[str, _Judged | _Read] = {}
        if section.judge:
            self._parts["samples"] = _Judged(section, data_dir)
        if section.parser:
            self._parts["contents"] = _Read(section, data_dir)
        self._drawer = Drawer(task, config, mesh, frozen)

    def __call__(self, step: int, state: TrainState) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, part in self._parts.items():
            prompts = part.prompts
            drawn = self._drawer.draw_with(
                averaged(state), list(prompts.prompts), list(range(len(prompts)))
            )
            images = list(drawn)
            figures = part(images)
            if prompts.repeats > 1:
                figures["variety"] = variety(images, prompts.repeats)
            found |= {f"{name}/{figure}": value for figure, value in figures.items()}
        return dict(zip(found, of_first_process([*found.values()]), strict=True))


class _Judged:
    """Kept concepts, as a judge sees them: ``faithful``, ``finish``, ``both``, ``copied``,
    ``mmd_needles``, and the config's metrics.
    """

    def __init__(self, section: ConfigDict, data_dir: str):
        self._judge = Judge(section.judge)
        sets = Sets(data_dir, section.captions, section.needles, section.haystack)
        kept = kept_prompts(open_selection(sets.captions, data_dir), section.count)
        self.prompts: PromptSet = kept.repeated(section.images_per_prompt)
        self._by = yardstick(self._judge, sets, self.prompts)
        self._meters = make_meters(section.get("metrics", ()), self._by.tuned_images)

    def __call__(self, images: Images) -> dict[str, float]:
        found = assess(images, self._judge.embed_images(images), self._by)
        real = list(self._by.real or ())
        return {
            "faithful": float(np.mean(found.top1)),
            "finish": float(np.mean(found.finished)),
            "both": float(np.mean(found.top1 & found.finished)),
            "copied": float(np.mean(found.copied)),
            "mmd_needles": mmd(found.features, self._by.needles),
        } | {
            name: meter.value(meter.rows(images, self._by.prompts, real))
            for name, meter in self._meters.items()
        }


class _Read:
    """Scenes, as a parser reads them: shares of images that are ``right``, and of those whose
    ``count``, ``things``, ``color`` and ``relation`` are.
    """

    def __init__(self, section: ConfigDict, data_dir: str):
        found = open_prompts(section.prompts, section.prompt_column, data_dir=data_dir)
        asked = asked_by(found.columns)
        self.prompts: PromptSet = (
            found.rows(asked).spread(section.count).repeated(section.images_per_prompt)
        )
        self._asked = asked_by(self.prompts.columns)
        reader = open_reader(section.parser, self._asked)
        assert reader is not None, "the section names a parser"
        self._reader = reader

    def __call__(self, images: Images) -> dict[str, float]:
        shares = read(images, self._asked, *self._reader).shares(self._asked)
        return {name: float(np.mean([*shown.values()])) for name, shown in shares.items()}
