"""Low-rank adapters on a network's parameters (LoRA, Hu et al. 2021).

A kernel W of the base model is replaced by

    W' = W + (alpha / rank) A B                                                            (1)

(equation 3 of the paper; its B A is A B here, because our kernels are [in, out]). A [in, rank]
starts random and B [rank, out] starts at zero, so that the adapted network starts as the base. For
a convolution A has the kernel's window and B is 1 x 1; for a scanned stack both have a leading axis
of layers. The networks are unchanged: this is arithmetic on flat parameters, by path.

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
    """``pattern`` is a regular expression, matched from the start of the kernels' paths."""

    rank: int
    alpha: float
    pattern: str

    def __post_init__(self):
        if self.rank < 1:
            raise UserError(f"lora.rank is {self.rank}; use 1 or more, or 0 for no lora.")

    def targets(self, shapes: Mapping[str, Any]) -> list[str]:
        """The kernels among ``shapes`` (path -> anything with a shape) that are adapted, sorted.

        Raises:
          UserError: the pattern matches no kernel.
        """
        found = sorted(p for p in shapes if p.endswith("/kernel") and re.match(self.pattern, p))
        if not found:
            kernel = next((p for p in sorted(shapes) if p.endswith("/kernel")), "none")
            raise UserError(
                f"lora.pattern {self.pattern!r} matches no kernel of this model; use a pattern for "
                f"paths such as {kernel!r}."
            )
        return found

    def init(self, key: jax.Array, shapes: Mapping[str, Any]) -> Params:
        """A uniform in +-1 / sqrt(number of inputs of W), B zero; fp32."""
        adapter = {}
        for i, path in enumerate(self.targets(shapes)):
            down, up = factor_shapes(path, tuple(shapes[path].shape), self.rank)
            inputs = math.prod(down[1 if is_scanned(path) else 0 : -1])
            drawn = jax.random.uniform(jax.random.fold_in(key, i), down, minval=-1.0)
            adapter[factor(path, DOWN)] = drawn / math.sqrt(inputs)
            adapter[factor(path, UP)] = jnp.zeros(up)
        return adapter

    def copied(self, shapes: Mapping[str, Any]) -> dict[str, str]:
        """Nothing starts from the base's values."""
        return {}

    def merged(self, base: Mapping[str, Any], adapter: Mapping[str, Any]) -> Params:
        """``base`` with W' for every W that ``adapter`` has factors of; W' is fp32."""
        return merge(base, adapter, self.alpha / self.rank)


def merge(base: Mapping[str, Any], adapter: Mapping[str, Any], scale: float) -> Params:
    """W + scale A B for every W of ``base`` that ``adapter`` has factors of."""
    merged = dict(base)
    for path in base:
        down = adapter.get(factor(path, DOWN)) if path.endswith("/kernel") else None
        if down is not None:
            # In full precision: the learned update can be far smaller than W.
            delta = jnp.matmul(down, adapter[factor(path, UP)], precision="highest")
            if delta.shape != tuple(base[path].shape):
                raise UserError(
                    f"The factors of {path} make {list(delta.shape)}, and the kernel is "
                    f"{list(base[path].shape)}: they are an adapter of another model."
                )
            merged[path] = base[path].astype(jnp.float32) + scale * delta
    return merged


def factor(path: str, name: str) -> str:
    """The path of the factor ``name`` of the kernel at ``path``."""
    return f"{path.removesuffix('/kernel')}/{name}/kernel"


def factor_shapes(
    path: str, shape: tuple[int, ...], rank: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of A and B for a kernel [*layers, *window, in, out]."""
    layers = shape[:1] if is_scanned(path) else ()
    window = (1,) * (len(shape) - len(layers) - 2)
    return (*shape[:-1], rank), (*layers, *window, rank, shape[-1])
