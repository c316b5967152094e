"""Any task with a frozen base and trained adapters: low-rank factors, a text adapter, a control
network.

The parameters of this task are those of the adapters only, so the optimizer state, the average and
the checkpoints are as small as the adapters. The base is one more frozen network, which a
checkpoint records by path and fingerprint.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, Self

import jax

from emu_jax.errors import UserError
from emu_jax.nn.functional import Params
from emu_jax.tasks.base import NO_SETS, Batch, Context, Frozen, Loss, RowSpec, Sets, Task

if TYPE_CHECKING:
    from emu_jax.tasks.generation import Generation

BASE = "base"


class Adapter(Protocol):
    """Parameters that adapt a base: merged into the base's parameters (low-rank factors), or added
    to them under paths of their own (a network that the task uses in addition).
    """

    def init(self, key: jax.Array, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> Params:
        """Fresh parameters for a base of these shapes. They leave the base's output unchanged."""
        ...

    def merged(self, base: Params, adapter: Params) -> Params:
        """The parameters that the task reads. Entries of ``adapter`` that belong to another
        adapter are left alone.
        """
        ...

    def copied(self, shapes: Mapping[str, Any]) -> dict[str, str]:
        """Path of a parameter -> path of the base's parameter whose value it starts from; for a
        task of these shapes.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Adapted(Task):
    """``task`` with ``adapters`` applied to ``frozen["base"]`` one after the other.

    ``frozen`` holds the base and the frozen networks of ``task``; ``groups`` match paths of the
    adapters.
    """

    task: Task
    adapters: Mapping[str, Adapter]

    @property
    def streams(self) -> Mapping[str, RowSpec]:
        return self.task.streams

    @property
    def generator(self) -> "Generation | None":
        return self.task.generator

    def generator_params(self, params: Params, frozen: Mapping[str, Params]) -> Params:
        return self.task.generator_params(self.merged(params, frozen), frozen)

    def merged(self, params: Params, frozen: Mapping[str, Params]) -> Params:
        """The parameters of ``task``."""
        whole = frozen[BASE]
        for adapter in self.adapters.values():
            whole = adapter.merged(whole, params)
        return whole

    def init(self, key: jax.Array) -> tuple[Params, Params]:
        shapes, state = jax.eval_shape(self.task.init, key)
        params: Params = {}
        for i, (name, adapter) in enumerate(self.adapters.items()):
            found = adapter.init(jax.random.fold_in(key, i) if i else key, shapes)
            taken = sorted(params.keys() & found.keys())
            if taken:
                raise UserError(
                    f"The adapter {name} has a parameter {taken[0]} that another adapter also has; "
                    "give them different patterns."
                )
            params |= found
        # Compiled, so that the base's fresh parameters are never made.
        return params, jax.jit(lambda key: self.task.init(key)[1])(key) if state else {}

    @property
    def starts(self) -> Mapping[str, Frozen]:
        """The base's values that adapters start from, by the first part of their paths."""
        shapes = jax.eval_shape(self.task.init, jax.random.key(0))[0]
        base, copies = self.frozen[BASE], {}
        for adapter in self.adapters.values():
            for path, source in adapter.copied(shapes).items():
                prefix, _, rest = path.partition("/")
                copies.setdefault(prefix, {})[source] = rest
        return {prefix: _copied(base, names) for prefix, names in copies.items()}

    def prepare(self, frozen: Mapping[str, Params] | None) -> Self:
        return replace(self, task=self.task.prepare(frozen))

    def loss(self, group: str, context: Context) -> Loss:
        return self.task.loss(group, self._whole(context))

    def validate(self, context: Context) -> dict[str, tuple[jax.Array, jax.Array]]:
        return self.task.validate(self._whole(context))

    def preview(self, context: Context) -> dict[str, Any]:
        return self.task.preview(self._whole(context))

    def finish(
        self, context: Context, batches: Iterable[Batch], validation: Sets = NO_SETS
    ) -> Params:
        return self.task.finish(self._whole(context), batches, validation)

    def _whole(self, context: Context) -> Context:
        """The context of ``task``."""
        averages = context.averaged
        return context._replace(
            params=self.merged(context.params, context.frozen),
            averaged=averages and (lambda: self.merged(averages(), context.frozen)),
        )


def _copied(base: Frozen, names: Mapping[str, str]) -> Frozen:
    """The parameters ``names`` of ``base``, renamed."""
    return replace(
        base,
        shapes={new: base.shapes[old] for old, new in names.items()},
        tensors=lambda: ((names[path], x) for path, x in base.tensors() if path in names),
    )


def base_shapes(task: Task, adapters: Mapping[str, Adapter]) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a task's own parameters, without those that an adapter brings."""
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda key: task.init(key)[0], key)
    brought: set[str] = set()
    for adapter in adapters.values():
        brought |= jax.eval_shape(lambda key, own=adapter: own.init(key, shapes), key).keys()
    return {path: x for path, x in shapes.items() if path not in brought}
