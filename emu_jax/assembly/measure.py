"""What quality-tuning is stopped by: pictures drawn and judged in the middle of training.

The loss cannot tell when a generator begins to forget, so every validation draws prompts that
tuning never shows, with the averaged weights and the same noise each time, and asks the judge.
"""

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from emu_jax.assembly.generator import Drawer
from emu_jax.assembly.judge import Judge, yardstick
from emu_jax.errors import UserError
from emu_jax.evaluation.assessment import assess
from emu_jax.evaluation.metrics import mmd
from emu_jax.evaluation.references import Sets
from emu_jax.nn.functional import Params
from emu_jax.tasks.base import Task
from emu_jax.tasks.generation import Generation
from emu_jax.training.state import TrainState, averaged


class Samples:
    """``samples/faithful``, ``finish``, ``both`` and ``mmd_needles`` of (step, state)."""

    def __init__(self, config: ConfigDict, task: Task, mesh: Mesh, frozen: Mapping[str, Params]):
        section = config.measure
        if not isinstance(task, Generation):
            raise UserError(f"config.measure draws pictures, which a {config.task} task cannot.")
        if task.low:
            raise UserError(
                "config.measure draws from texts alone, which a super-resolution stage cannot: set "
                'config.measure.judge to "".'
            )
        if jax.process_count() > 1:
            raise UserError(
                'config.measure draws on one host: on several, set config.measure.judge to "" '
                "and evaluate the checkpoints."
            )
        self._judge = Judge(section.judge)
        sets = Sets(config.data.data_dir, section.captions, section.needles, section.haystack)
        self._by = yardstick(self._judge, sets, None, section.count)
        self._seeds = list(range(len(self._by.prompts)))
        self._drawer = Drawer(task, config, mesh, frozen)

    def __call__(self, step: int, state: TrainState) -> dict[str, float]:
        drawn = self._drawer.draw_with(averaged(state), self._by.prompts, self._seeds)
        images = list(drawn)
        found = assess(images, self._judge.embed_images(images), self._by)
        return {
            "samples/faithful": float(np.mean(found.top1)),
            "samples/finish": float(np.mean(found.finished)),
            "samples/both": float(np.mean(found.top1 & found.finished)),
            "samples/mmd_needles": mmd(found.features, self._by.needles),
        }
