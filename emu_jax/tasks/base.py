"""What the trainer knows of whatever it trains.

A task makes its parameters, says its loss for each group of them, and shows pictures. The trainer
knows nothing else: autoencoders, generators, reward models and adapters differ only behind this
protocol, and pre-training and quality-tuning are one task under two configs.

Parameters are flat dicts from path to array (:data:`emu_jax.nn.functional.Params`). ``state`` has
the same form and holds what changes without a gradient: codebook statistics, the measured scale of
a latent space.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from emu_jax.errors import UserError
from emu_jax.nn.functional import Params

Batch = dict[str, Any]
Metrics = dict[str, jax.Array]


@dataclass(frozen=True)
class Group:
    """Parameters that are updated together.

    ``pattern`` is a regular expression matched at the start of a path. The group is updated from
    ``first_step`` on, at every ``every``-th step. ``ema_decay`` None keeps no average.
    """

    pattern: str
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    first_step: int = 0
    every: int = 1
    ema_decay: float | None = None

    def paths(self, params: Mapping[str, Any]) -> list[str]:
        """The paths of this group, sorted; a pattern that finds nothing is an error."""
        found = sorted(path for path in params if re.match(self.pattern, path))
        if not found:
            raise UserError(
                f"The group pattern {self.pattern!r} matches no parameter; paths look like "
                f"{sorted(params)[0]!r}."
            )
        return found


@dataclass(frozen=True)
class Frozen:
    """A network used but not trained. A checkpoint names it by source and fingerprint only.

    ``shapes`` says what it consists of; ``tensors`` streams it as (path, array) pairs, so that a
    network larger than one host's memory can be placed into its shards one tensor at a time.
    """

    source: str
    fingerprint: str
    shapes: Mapping[str, jax.ShapeDtypeStruct]
    tensors: Callable[[], Iterator[tuple[str, np.ndarray]]]
    dtype: str = "float32"


@runtime_checkable
class Task(Protocol):
    """Something to train. ``groups`` are updated in order; a later group sees earlier updates."""

    @property
    def groups(self) -> Mapping[str, Group]: ...

    @property
    def frozen(self) -> Mapping[str, Frozen]: ...

    def init(self, key: jax.Array) -> tuple[Params, Params]:
        """(parameters, state). Under ``jax.eval_shape`` it gives the shapes."""
        ...

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
        """Scalar loss of one group, the new state, and scalars to log.

        All randomness comes from ``key``.
        """
        ...

    def validate(
        self,
        params: Params,
        frozen: Mapping[str, Params],
        state: Params,
        batch: Batch,
        key: jax.Array,
    ) -> dict[str, tuple[jax.Array, jax.Array]]:
        """name -> (sum, count) over the batch's rows; the trainer adds them up over batches."""
        ...

    def preview(
        self,
        params: Params,
        frozen: Mapping[str, Params],
        state: Params,
        batch: Batch,
        key: jax.Array,
    ) -> dict[str, jax.Array]:
        """name -> uint8 images [n, h, w, 3]."""
        ...

    def finish(
        self,
        params: Params,
        frozen: Mapping[str, Params],
        state: Params,
        batches: Iterable[Batch],
    ) -> Params:
        """The state after the last step, for what is measured once training is over."""
        ...


def cast(tree: Any, dtype: Any) -> Any:
    """Every floating-point leaf in ``dtype``: so fp32 masters are gathered as bf16 weights."""
    return jax.tree.map(
        lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )


def to_unit_range(image: jax.Array) -> jax.Array:
    """uint8 pixels to float in [-1, 1]."""
    return image.astype(jnp.float32) / 127.5 - 1.0


def to_pixels(x: jax.Array) -> jax.Array:
    """Float in [-1, 1] to uint8 pixels; values outside are clipped."""
    return jnp.round((jnp.clip(x.astype(jnp.float32), -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)
