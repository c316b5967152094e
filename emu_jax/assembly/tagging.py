"""From a config to the task that learns which words apply to an image."""

from functools import partial

from ml_collections import ConfigDict

from emu_jax.assembly.networks import module
from emu_jax.assembly.segmentation import reading
from emu_jax.data.mixture import Vocabulary
from emu_jax.nn.functional import Network
from emu_jax.nn.tagger import Tagger
from emu_jax.parallel.placement import Placement
from emu_jax.tasks.tagging import Tagging


def make_tagging(config: ConfigDict, on: Placement) -> Tagging:
    del on  # a small network: nothing is sharded inside
    tags = config.tags
    arguments = {**config.tagger.to_dict(), "words": len(tags.words)}
    return Tagging(
        network=Network(partial(module, Tagger, arguments)),
        column=tags.column,
        words=Vocabulary(tuple(tags.words), tags.most),
        colour=0.0,  # the color may be what is learned, and so may be sharpness
        blur=0.0,
        noise=tags.noise,
        **reading(config, "tags"),
    )
