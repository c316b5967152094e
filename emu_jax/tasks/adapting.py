"""Generation with a frozen base and a low-rank adapter that trains (:mod:`emu_jax.nn.lora`).

The parameters of this task are the adapter's alone, so optimiser, average and checkpoints are as
small as it is; the base is one more frozen network, which a checkpoint names by path and hash.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from emu_jax.nn.functional import Params
from emu_jax.nn.lora import Lora
from emu_jax.tasks.base import Batch, Metrics
from emu_jax.tasks.generation import Generation

BASE = "base"


@dataclass(frozen=True, kw_only=True)
class AdaptedGeneration(Generation):
    """Every method takes the adapter for parameters, and ``frozen["base"]`` beside it.

    Previews draw by :meth:`generate`, so they are adapted there.
    """

    lora: Lora

    def init(self, key: jax.Array) -> tuple[Params, Params]:
        return self.lora.init(key, base_shapes(self)), {}

    def loss(
        self,
        group: str,
        params: Params,
        frozen: Mapping[str, Params],
        state: Params,
        batch: Batch,
        key: jax.Array,
        step: jax.Array,
    ) -> tuple[jax.Array, tuple[Params, Metrics]]:
        whole = self.lora.merged(frozen[BASE], params)
        return super().loss(group, whole, frozen, state, batch, key, step)

    def validate(
        self,
        params: Params,
        frozen: Mapping[str, Params],
        state: Params,
        batch: Batch,
        key: jax.Array,
    ) -> dict[str, tuple[jax.Array, jax.Array]]:
        whole = self.lora.merged(frozen[BASE], params)
        return super().validate(whole, frozen, state, batch, key)

    def generate(
        self, params: Params, frozen: Mapping[str, Params], *args: Any, **options: Any
    ) -> jax.Array:
        return super().generate(self.lora.merged(frozen[BASE], params), frozen, *args, **options)


def base_shapes(task: Generation) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a generator's own parameters, adapted or not."""
    return jax.eval_shape(lambda key: Generation.init(task, key)[0], jax.random.key(0))
