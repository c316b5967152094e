"""From a config to the parameter groups of a task."""

from ml_collections import ConfigDict

from emu_jax.tasks.base import Group
from emu_jax.training.optimizers import make_optimizer


def make_groups(config: ConfigDict) -> dict[str, Group]:
    """The groups in the order of the config. A schedule counts its group's own updates."""
    groups = {}
    for name, section in config.groups.items():
        updates = (config.train.steps - section.first_step) // section.every
        transform, schedule = make_optimizer(section.optimizer.to_dict(), steps=updates)
        groups[name] = Group(
            section.pattern,
            transform,
            schedule,
            section.first_step,
            section.every,
            section.ema_decay or None,
            section.get("phase", 0),
        )
    return groups
