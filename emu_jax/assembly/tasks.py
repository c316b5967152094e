"""From a config to its task, ready to run.

A task outside this package is added by its config file, which calls :func:`register`.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from emu_jax.assembly.adapters import make_adapters
from emu_jax.assembly.models import open_model
from emu_jax.assembly.networks import untrained
from emu_jax.assembly.sections.runs import TASKS, Run, TaskKind
from emu_jax.checkpoint.paths import is_config_file
from emu_jax.checkpoint.safetensors_io import place
from emu_jax.errors import UserError
from emu_jax.nn.functional import Params
from emu_jax.nn.lora import merge
from emu_jax.nn.stack import relaid
from emu_jax.parallel.placement import ONE_DEVICE, Placement, placement
from emu_jax.parallel.sharding import shard_params
from emu_jax.tasks.adapting import BASE, Adapted, base_shapes
from emu_jax.tasks.base import Frozen, Task, encoders_of


def register(name: str, make: Callable[[ConfigDict, Placement], Task], schema: type[Run]) -> None:
    """Adds a task: what makes it from a config, and the keys of that config."""
    TASKS[name] = TaskKind(schema, make)


def make_task(config: ConfigDict, on: Placement = ONE_DEVICE) -> Task:
    """The task of a config, on one device or as ``on`` says; ``prepare`` has not been called."""
    if config.task not in TASKS:
        raise UserError(
            f"config.task is {config.task!r}; use one of {', '.join(TASKS)}, or import the file "
            "that registers it."
        )
    task, adapters = TASKS[config.task].make(config, on), make_adapters(config)
    if not adapters:
        return task
    frozen = {BASE: adapted_base(config, base_shapes(task, adapters)), **task.frozen}
    return Adapted(task=task, adapters=adapters, groups=task.groups, frozen=frozen)


def open_task(
    config: ConfigDict,
    mesh: Mesh,
    attention: str = "auto",
    adapters: Mapping[str, Params] = MappingProxyType({}),
    strict: bool = False,
) -> tuple[Task, dict[str, Params]]:
    """A config's task, ready to run, and its frozen networks in their shards.

    ``adapters``: low-rank factors of frozen networks by their names, merged into them. ``strict``
    is that of :func:`placement`.

    ``attention`` is not taken from the config: a model may draw on other devices than those that it
    was trained on.
    """
    task = make_task(config, placement(mesh, attention, strict))
    frozen = place_frozen(task, mesh)
    for name, factors in adapters.items():
        frozen[name] = {
            path: jax.device_put(x.astype(frozen[name][path].dtype), frozen[name][path].sharding)
            for path, x in merge(frozen[name], factors, 1.0).items()
        }
    return task.prepare(frozen), frozen


def place_frozen(task: Task, mesh: Mesh) -> dict[str, Params]:
    """A task's frozen networks, streamed into their shards."""
    return {
        name: place(network.tensors(), shard_params(dict(network.shapes), mesh), network.dtype)
        for name, network in task.frozen.items()
    }


def unused_networks(config: ConfigDict, task: Task) -> tuple[str, ...]:
    """Frozen networks that the step does not read: text encoders whose outputs are cached."""
    return tuple(encoders_of(task)) if config.data.cache_text else ()


def adapted_base(config: ConfigDict, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> Frozen:
    """The model that ``init_from`` names, which stays as it is while an adapter of it trains.

    A config file in its place gives shapes only, as for a codec: enough to plan a step.

    Raises:
      UserError: no such model, or its parameters do not have ``shapes``.
    """
    if not config.init_from:
        raise UserError("An adapter needs init_from: the trained model that is adapted.")
    if config.init_skip:
        raise UserError(
            "init_skip starts parameters anew, which an adapter would leave so: set one of the two."
        )
    return whole_model(config.init_from, shapes, config.lora.dtype)


def whole_model(
    source: str, shapes: Mapping[str, jax.ShapeDtypeStruct], dtype: str = "float32"
) -> Frozen:
    """The model ``source`` with parameters of ``shapes``, frozen; of a config file shapes only.

    Raises:
      UserError: no such model, or its parameters do not have ``shapes``.
    """
    if is_config_file(source):
        return Frozen(source, "none", shapes, untrained("init_from", source), dtype)
    model = open_model(source)
    found = relaid(model.params, shapes)
    for path, wanted in shapes.items():
        shape = np.shape(found[path]) if path in found else None
        if shape != wanted.shape:
            there = "is not in" if shape is None else f"is {list(shape)} in"
            raise UserError(
                f"{path} {there} {source} and {list(wanted.shape)} here: the model must be as it "
                "is, so take the config that it was trained with."
            )
    base = {path: found[path] for path in shapes}
    return Frozen(source, model.fingerprint, shapes, lambda: iter(base.items()), dtype)
