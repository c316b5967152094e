"""The protocol between the trainer and a task: everything that can be trained is a task.

A task declares its parameter groups, its frozen networks and its data streams. It creates its
parameters, computes a loss for each group, and renders previews. The trainer knows nothing else:
autoencoders, generators, judges, reward models and adapters differ only behind this protocol, and
pre-training and quality-tuning are one task under two configs.

Parameters are flat dicts from path to array (:data:`emu_jax.nn.functional.Params`). ``state`` has
the same form and holds what changes without a gradient: codebook statistics, the measured scale of
a latent space.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, UInt8

from emu_jax.data.mixture import Column
from emu_jax.data.vectors import Control
from emu_jax.errors import UserError
from emu_jax.nn.conditioner import Encoded
from emu_jax.nn.functional import Params
from emu_jax.text.encoder import TextEncoder

if TYPE_CHECKING:
    from emu_jax.tasks.generation import Generation
    from emu_jax.text.vectors import VectorModel

Rows = dict[str, Any]  # one stream's part of a batch: name -> array, rows in front
Batch = Mapping[str, Rows]  # stream -> rows
Metrics = dict[str, jax.Array]
Sets = Mapping[str, Iterable[Batch]]  # validation set -> its batches
NO_SETS: Sets = MappingProxyType({})


@dataclass(frozen=True)
class Group:
    """Parameters that are updated together by one optimizer.

    ``pattern`` is a regular expression matched at the start of a path. The group is updated at the
    steps n >= ``first_step`` with n mod ``every`` = ``phase``. ``ema_decay`` None keeps no average.
    """

    pattern: str
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    first_step: int = 0
    every: int = 1
    ema_decay: float | None = None
    phase: int = 0

    def paths(self, params: Mapping[str, Any]) -> list[str]:
        """The paths of this group, sorted.

        Raises:
          UserError: the pattern matches no path.
        """
        found = sorted(path for path in params if re.match(self.pattern, path))
        if not found:
            raise UserError(
                f"The group pattern {self.pattern!r} matches no parameter; paths look like "
                f"{sorted(params)[0]!r}."
            )
        return found

    @property
    def always(self) -> bool:
        """Whether every step updates the group."""
        return self.first_step == 0 and self.every == 1

    def active(self, step: jax.Array) -> jax.Array:
        """Whether ``step`` updates the group."""
        return (step >= self.first_step) & (step % self.every == self.phase)

    def updates(self, step: Any) -> Any:
        """The number of updates before ``step``."""
        first = self.first_step + (self.phase - self.first_step) % self.every
        return jnp.maximum(0, (step - first + self.every - 1) // self.every)


@dataclass(frozen=True)
class Frozen:
    """A network that is used but not trained. A checkpoint records its source and fingerprint only.

    ``shapes`` lists its parameters; ``tensors`` streams them as (path, array) pairs, so that a
    network larger than one host's memory can be placed into its shards one tensor at a time.
    """

    source: str
    fingerprint: str
    shapes: Mapping[str, jax.ShapeDtypeStruct]
    tensors: Callable[[], Iterator[tuple[str, np.ndarray]]]
    dtype: str = "float32"


@dataclass(frozen=True)
class Latents:
    """What a cache may hold in place of a row's images.

    ``encode(frozen, image)`` computes it with the frozen networks named in ``networks``.
    ``made_from`` is everything beside images and crops that the result depends on; it becomes part
    of the cache's fingerprint.
    """

    encode: Callable[[Mapping[str, Params], UInt8[Array, "b H W 3"]], dict[str, Array]]
    networks: tuple[str, ...]
    made_from: Mapping[str, str]


class Vectors(NamedTuple):
    """A model's vectors of captions, or what ``control`` puts in their place
    (:class:`emu_jax.data.vectors.ControlVectors`).
    """

    model: "VectorModel"
    control: Control = "none"
    seed: int = 0


@dataclass(frozen=True)
class RowSpec:
    """What each row of a stream holds beside its record number and its sizes.

    ``encoders`` are the text encoders whose tokens, or cached outputs, a row holds; the weights of
    each lie in the task's frozen networks under the same name. ``latents`` None: the images of this
    stream cannot be cached. ``further`` are names of images that belong to an image
    (:data:`emu_jax.data.further.FURTHER`); rows hold them by name in ``further``. ``columns`` are
    columns of the manifest whose numbers, or numbered words, rows hold by name in ``columns``.
    ``captions`` are further columns of captions: ``captions`` of a row holds, by column, the tokens
    or cached outputs of the same encoders for the record's caption there. With ``vectors`` rows
    hold a model's vectors of the source's captions in ``vectors``, always from a cache.
    """

    encoders: Mapping[str, TextEncoder] = field(default_factory=dict)
    latents: Latents | None = None
    further: tuple[str, ...] = ()
    columns: Mapping[str, Column] = field(default_factory=dict)
    captions: tuple[str, ...] = ()
    vectors: "Vectors | None" = None


class Context(NamedTuple):
    """What every method of a task reads; a pytree.

    ``params`` are the parameters of the task: in ``loss`` those under training, elsewhere their
    averages. ``averaged()`` gives the averages to a loss. ``handed`` maps each group that came
    earlier in this step to the values that its loss handed on (zeros where the group was idle).
    """

    params: Params
    frozen: Mapping[str, Params]
    state: Params
    batch: Batch
    key: jax.Array
    step: jax.Array | int = 0
    averaged: Callable[[], Params] | None = None
    handed: Mapping[str, Any] = {}


class Loss(NamedTuple):
    """Scalar loss of one group, the new state, scalars to log, and values for later groups.

    ``handed`` exists within one step only: it is no part of a checkpoint. No gradient flows through
    it.
    """

    value: Float[Array, ""]
    state: Params
    metrics: Mapping[str, jax.Array] = {}
    handed: Any = ()


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """Something to train. ``groups`` are updated in order; a later group sees earlier updates.

    All randomness comes from the context's key.
    """

    groups: Mapping[str, Group]
    frozen: Mapping[str, Frozen]

    @property
    @abstractmethod
    def streams(self) -> Mapping[str, RowSpec]:
        """The data streams that the loss reads: name -> what its rows hold."""

    @abstractmethod
    def init(self, key: jax.Array) -> tuple[Params, Params]:
        """(parameters, state). Under ``jax.eval_shape`` it gives the shapes."""

    @property
    def starts(self) -> Mapping[str, Frozen]:
        """Prefix of parameters -> the weights that a new run starts these from, whatever
        ``init_from`` has.
        """
        return {}

    def prepare(self, frozen: Mapping[str, Params] | None) -> Self:
        """The task with everything that is computed from frozen networks, such as the null
        conditioning. With ``frozen`` None that is zeros, which is enough to plan or to time a step.
        """
        return self

    @abstractmethod
    def loss(self, group: str, context: Context) -> Loss:
        """The loss of one group."""

    def validate(self, context: Context) -> dict[str, tuple[jax.Array, jax.Array]]:
        """name -> (sum, count) over the batch's rows; the trainer adds them up over batches."""
        return {}

    def preview(self, context: Context) -> dict[str, UInt8[Array, "n h w 3"]]:
        """name -> images."""
        return {}

    def finish(
        self, context: Context, batches: Iterable[Batch], validation: Sets = NO_SETS
    ) -> Params:
        """The state after the last step, for what is measured once training is over.

        ``batches`` begins with the first training batch, ``validation`` has the batches of every
        validation set; the batch of ``context`` is empty.
        """
        return context.state

    @property
    def generator(self) -> "Generation | None":
        """The text-to-image generator that this task trains; None for other tasks."""
        return None

    @property
    def sampling_dtype(self) -> Any:
        """The dtype in which sampling holds the floating-point parameters; None: as they are."""
        return None

    def generator_params(self, params: Params, frozen: Mapping[str, Params]) -> Params:
        """The parameters of :attr:`generator`, from those of the task."""
        return params


def encoders_of(task: Task) -> dict[str, TextEncoder]:
    """The text encoders of all streams by name."""
    return {name: e for spec in task.streams.values() for name, e in spec.encoders.items()}


def encoded_text(
    name: str, encoder: TextEncoder, frozen: Mapping[str, Params], rows: Rows
) -> Encoded:
    """The output of the encoder called ``name`` for the rows' texts, computed or cached."""
    if name in rows.get("text", {}):
        return jax.lax.stop_gradient(Encoded(**rows["text"][name]))
    tokens = rows["tokens"][name]
    return jax.lax.stop_gradient(encoder.apply(frozen[name], tokens["ids"], tokens["mask"]))


def images_in(batch: Batch) -> int:
    """The rows of all streams."""
    return sum(jax.tree.leaves(rows)[0].shape[0] for rows in batch.values())


def cast(tree: Any, dtype: Any) -> Any:
    """Casts every floating-point leaf, so that fp32 master parameters are gathered as bf16."""
    return jax.tree.map(
        lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )


def to_unit_range(image: jax.Array) -> jax.Array:
    """uint8 pixels to float in [-1, 1]."""
    return image.astype(jnp.float32) / 127.5 - 1.0


def to_pixels(x: jax.Array) -> jax.Array:
    """Float in [-1, 1] to uint8 pixels; values outside are clipped."""
    return jnp.round((jnp.clip(x.astype(jnp.float32), -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)
