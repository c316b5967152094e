"""What a config's training step costs, for those who plan it, time it or compare it."""

from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from emu_jax.assembly import parts
from emu_jax.planning.flops import step_flops
from emu_jax.planning.inputs import train_batch
from emu_jax.tasks.base import Batch, Task
from emu_jax.training.state import TrainState, abstract_state


def model_flops(
    config: ConfigDict, state: TrainState, frozen: Mapping[str, Any], batch: Batch
) -> float:
    """FLOPs of the config's step: of its mathematics, with attention not padded to any tiles."""
    return sum(step_flops(parts.make_task(config), state, frozen, batch).values())


def step_batch(config: ConfigDict, task: Task, frozen: Mapping[str, Any], mesh: Mesh) -> Batch:
    """The abstract batch of the config's training stream."""
    return train_batch(
        task,
        parts.stream_spec(config),
        frozen,
        mesh,
        cached_latents=config.data.cache_latents,
        cached_text=config.data.cache_text,
    )


def training_flops(config: ConfigDict, task: Task, frozen: Mapping[str, Any], mesh: Mesh) -> float:
    """FLOPs of a step a picture, from caches where the config has them."""
    config = ConfigDict(config.to_dict())
    config.train.batch_size = mesh.size  # of its own batch the devices may have no equal shares
    batch = step_batch(config, task, frozen, mesh)
    return model_flops(config, abstract_state(task, mesh), frozen, batch) / mesh.size
