"""The metrics that stop quality-tuning: images drawn and judged in the middle of training.

The loss does not show when a generator begins to forget. So every validation draws prompts that
tuning never shows, with the averaged weights and the same noise each time, and the judge scores
the images.
"""

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from emu_jax.assembly.generator import Drawer
from emu_jax.assembly.judge import Judge, open_selection, yardstick
from emu_jax.errors import UserError
from emu_jax.evaluation.assessment import assess
from emu_jax.evaluation.measuring import make_meters
from emu_jax.evaluation.metrics import mmd
from emu_jax.evaluation.prompts import kept_prompts
from emu_jax.evaluation.references import Sets
from emu_jax.nn.functional import Params
from emu_jax.tasks.base import Task
from emu_jax.training.state import TrainState, averaged


class Samples:
    """``samples/faithful``, ``finish``, ``both``, ``mmd_needles`` and the config's metrics of
    (step, state).
    """

    def __init__(self, config: ConfigDict, task: Task, mesh: Mesh, frozen: Mapping[str, Params]):
        section = config.measure
        generator = task.generator
        if generator is None:
            raise UserError(
                f"config.measure draws images, which the task {config.task} cannot do: set "
                'config.measure.judge to "".'
            )
        if generator.low:
            raise UserError(
                "config.measure draws from prompts only, which a super-resolution stage cannot do: "
                'set config.measure.judge to "".'
            )
        if jax.process_count() > 1:
            raise UserError(
                'config.measure works on one host: on several, set config.measure.judge to "" '
                "and evaluate the checkpoints."
            )
        self._judge = Judge(section.judge)
        sets = Sets(config.data.data_dir, section.captions, section.needles, section.haystack)
        prompts = kept_prompts(open_selection(sets.captions, sets.data_dir), section.count)
        self._by = yardstick(self._judge, sets, prompts)
        self._meters = make_meters(section.get("metrics", ()), self._by.tuned_images)
        self._seeds = list(range(len(self._by.prompts)))
        self._drawer = Drawer(task, config, mesh, frozen)

    def __call__(self, step: int, state: TrainState) -> dict[str, float]:
        drawn = self._drawer.draw_with(averaged(state), self._by.prompts, self._seeds)
        images = list(drawn)
        found = assess(images, self._judge.embed_images(images), self._by)
        real = list(self._by.real or ())
        measured = {
            f"samples/{name}": meter.value(meter.rows(images, self._by.prompts, real))
            for name, meter in self._meters.items()
        }
        return {
            "samples/faithful": float(np.mean(found.top1)),
            "samples/finish": float(np.mean(found.finished)),
            "samples/both": float(np.mean(found.top1 & found.finished)),
            "samples/mmd_needles": mmd(found.features, self._by.needles),
            **measured,
        }
