"""From a config to Diffusion-DPO."""

import jax
from ml_collections import ConfigDict

from emu_jax.assembly.generation import make_generation
from emu_jax.assembly.tasks import whole_model
from emu_jax.errors import UserError
from emu_jax.parallel.placement import Placement
from emu_jax.tasks.dpo import REFERENCE, Dpo


def make_dpo(config: ConfigDict, on: Placement) -> Dpo:
    """The reference is the model that training starts from."""
    base = make_generation(config, on)
    if base.low:
        raise UserError(
            "task=dpo is for models that draw from prompts alone: set low_resolution.factor to 0."
        )
    if not config.init_from:
        raise UserError("task=dpo needs init_from: the trained model that is also the reference.")
    shapes = jax.eval_shape(lambda key: base.init(key)[0], jax.random.key(0))
    reference = whole_model(config.init_from, shapes, config.compute_dtype)
    return Dpo(
        base=base,
        votes=config.dpo.votes,
        beta=config.dpo.beta,
        groups=base.groups,
        frozen={**base.frozen, REFERENCE: reference},
    )
