"""The cost of a config's training step: for plans, benchmarks and comparisons."""

from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from emu_jax.assembly.caches import require_cacheable
from emu_jax.assembly.streams import stream_specs
from emu_jax.assembly.tasks import make_task
from emu_jax.planning.flops import step_flops
from emu_jax.planning.inputs import training_batch
from emu_jax.tasks.base import Batch, Task
from emu_jax.training.state import TrainState, abstract_state


def model_flops(
    config: ConfigDict, state: TrainState, frozen: Mapping[str, Any], batch: Batch
) -> float:
    """FLOPs of the config's step: those of its mathematics, with attention not padded to tiles."""
    return sum(step_flops(make_task(config).prepare(None), state, frozen, batch).values())


def step_batch(config: ConfigDict, task: Task, frozen: Mapping[str, Any], mesh: Mesh) -> Batch:
    """The abstract batch of the config's training streams."""
    data = config.data
    if data.cache_latents:
        require_cacheable(config, task)
    return training_batch(
        task,
        stream_specs(config, task),
        frozen,
        mesh,
        cached_latents=data.cache_latents,
        cached_text=data.cache_text,
    )


def training_flops(config: ConfigDict, task: Task, frozen: Mapping[str, Any], mesh: Mesh) -> float:
    """FLOPs of a step per image, from caches where the config has them."""
    config = ConfigDict(config.to_dict())
    config.train.batch_size = mesh.size  # its own batch size may not divide over these devices
    for section in (config.data.get("streams") or {}).values():
        section.batch_size = mesh.size
    batch = step_batch(config, task, frozen, mesh)
    return model_flops(config, abstract_state(task, mesh), frozen, batch) / mesh.size
