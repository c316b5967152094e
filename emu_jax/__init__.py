"""Training of text-to-image generators in JAX: pre-training and quality-tuning.

import emu_jax

generator = emu_jax.load("builtin:latent_diffusion_64", steps=10)
images = generator.draw(["a red fox", "a slice of pizza"])

emu_jax.train("configs/latent_diffusion.py:size=tiny,stage=quality_tune", "runs/tuned")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from emu_jax.assembly.cascade import Cascade
    from emu_jax.assembly.generator import Generator

__all__ = ["load", "train"]


def load(path: str, *, batch_size: int = 16, **sampling: Any) -> "Generator | Cascade":
    """A trained text-to-image model, ready to draw.

    ``path`` is a run's folder, ``DIR@step``, an exported model, ``builtin:NAME``, or several of
    them joined by ``+``, a cascade. ``sampling`` overrides its sampling settings (steps,
    guidance_scale, sampler, ...).

    Raises:
      UserError: no such model, or not a text-to-image model.
    """
    from emu_jax.assembly.cascade import open_generator

    return open_generator(path, batch_size, **sampling)


def train(config: "ConfigDict | str", workdir: str) -> str:
    """Trains, or resumes the run in ``workdir``; returns why it ended: "done", "stopped: <reason>"
    or "interrupted".

    ``config`` is a config, or the path of a config file with its options.
    """
    from emu_jax.assembly.config import read
    from emu_jax.assembly.training import make_trainer, prepare

    config = read(config) if isinstance(config, str) else config
    prepare(config, workdir)
    return make_trainer(config, workdir).run()
