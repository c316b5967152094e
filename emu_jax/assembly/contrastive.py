"""From a config to the contrastive task, which trains the judge."""

from functools import partial

from ml_collections import ConfigDict

from emu_jax.assembly.encoders import frozen_encoders, make_encoders
from emu_jax.assembly.groups import make_groups
from emu_jax.assembly.networks import compute_dtype, module
from emu_jax.errors import UserError
from emu_jax.nn.contrastive import ContrastiveModel
from emu_jax.nn.functional import Network
from emu_jax.parallel.placement import Placement
from emu_jax.tasks.contrastive import Contrastive


def make_contrastive(config: ConfigDict, on: Placement) -> Contrastive:
    encoders = make_encoders(config.text)
    pooled = [encoder.pooled_width for encoder in encoders.values()]
    if len(pooled) != 1 or not pooled[0]:
        raise UserError(
            f"config.text names {', '.join(encoders) or 'no encoder'}: a judge needs exactly one "
            "text encoder, with a pooled vector."
        )
    arguments = dict(config.judge, text_width=pooled[0], constrain=on.constrain)
    return Contrastive(
        model=Network(partial(module, ContrastiveModel, arguments)),
        encoders=encoders,
        groups=make_groups(config),
        frozen=frozen_encoders(config.text, encoders),
        compute_dtype=compute_dtype(config),
    )
