"""Low-rank adapters on a network's parameters (LoRA, Hu et al. 2021).

A kernel W of the base is used as

    W' = W + (alpha / rank) A B                                              (their equation 3)

with A [in, rank] drawn and B [rank, out] zero at first, so that the adapted network starts as the
base (their B A is our A B: kernels are [in, out] here). Of a convolution A keeps the window and B
is 1 x 1; of a scanned stack both have the axis of layers in front. The networks know nothing of
this: it is arithmetic on flat parameters, by path.

    .../to_q/kernel  ->  .../to_q/lora_A/kernel, .../to_q/lora_B/kernel
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from emu_jax.errors import UserError
from emu_jax.nn.functional import Params
from emu_jax.nn.stack import is_scanned

DOWN, UP = "lora_A", "lora_B"


@dataclass(frozen=True)
class Lora:
    """``pattern`` is a regular expression matched at the start of kernels' paths."""

    rank: int
    alpha: float
    pattern: str

    def __post_init__(self):
        if self.rank < 1:
            raise UserError(f"lora.rank is a whole number from 1 on (0: no lora), not {self.rank}.")

    def targets(self, shapes: Mapping[str, Any]) -> list[str]:
        """The kernels among ``shapes`` (path -> anything with a shape) to adapt, sorted.

        Raises:
          UserError: there is none.
        """
        found = sorted(p for p in shapes if p.endswith("/kernel") and re.match(self.pattern, p))
        if not found:
            kernel = next((p for p in sorted(shapes) if p.endswith("/kernel")), "none")
            raise UserError(
                f"lora.pattern {self.pattern!r} matches no kernel of this model; their paths look "
                f"like {kernel!r}."
            )
        return found

    def init(self, key: jax.Array, shapes: Mapping[str, Any]) -> Params:
        """A uniform in +-1 / sqrt(what a row of W reads), B zero; fp32."""
        adapter = {}
        for i, path in enumerate(self.targets(shapes)):
            down, up = factor_shapes(path, tuple(shapes[path].shape), self.rank)
            reads = math.prod(down[1 if is_scanned(path) else 0 : -1])
            drawn = jax.random.uniform(jax.random.fold_in(key, i), down, minval=-1.0)
            adapter[factor(path, DOWN)] = drawn / math.sqrt(reads)
            adapter[factor(path, UP)] = jnp.zeros(up)
        return adapter

    def merged(self, base: Mapping[str, Any], adapter: Mapping[str, Any]) -> Params:
        """``base`` with every W that ``adapter`` has factors of as W'; such are fp32."""
        return merge(base, adapter, self.alpha / self.rank)


def merge(base: Mapping[str, Any], adapter: Mapping[str, Any], scale: float) -> Params:
    """W + scale A B for every W of ``base`` that ``adapter`` has factors of."""
    whole = dict(base)
    for path in base:
        down = adapter.get(factor(path, DOWN)) if path.endswith("/kernel") else None
        if down is not None:
            # In full precision: what is learnt may be far smaller than what it is added to.
            delta = jnp.matmul(down, adapter[factor(path, UP)], precision="highest")
            if delta.shape != tuple(base[path].shape):
                raise UserError(
                    f"The factors of {path} make {list(delta.shape)}, and the kernel is "
                    f"{list(base[path].shape)}: they are an adapter of another model."
                )
            whole[path] = base[path].astype(jnp.float32) + scale * delta
    return whole


def factor(path: str, name: str) -> str:
    """Where the factor ``name`` of the kernel at ``path`` lies."""
    return f"{path.removesuffix('/kernel')}/{name}/kernel"


def factor_shapes(
    path: str, shape: tuple[int, ...], rank: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of A and B, for a kernel [*layers, *window, in, out]."""
    layers = shape[:1] if is_scanned(path) else ()
    window = (1,) * (len(shape) - len(layers) - 2)
    return (*shape[:-1], rank), (*layers, *window, rank, shape[-1])
