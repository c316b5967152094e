"""The base of tasks that train a generator by other losses than its own alone."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import jax

from emu_jax.nn.functional import Params
from emu_jax.tasks.base import Task
from emu_jax.tasks.generation import Generation


@dataclass(frozen=True, kw_only=True)
class GeneratorTask(Task):
    """The parameters of the task are those of ``base``."""

    base: Generation

    @property
    def generator(self) -> Generation:
        return self.base

    def init(self, key: jax.Array) -> tuple[Params, Params]:
        return self.base.init(key)

    def prepare(self, frozen: Mapping[str, Params] | None) -> Self:
        return replace(self, base=self.base.prepare(frozen))
