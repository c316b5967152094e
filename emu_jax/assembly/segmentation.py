"""From a config to the segmentation task."""

from functools import partial

from flax import nnx
from ml_collections import ConfigDict

from emu_jax.assembly.codecs import make_codec
from emu_jax.assembly.groups import make_groups
from emu_jax.assembly.networks import compute_dtype, module
from emu_jax.data.mixture import Vocabulary
from emu_jax.errors import UserError
from emu_jax.nn.functional import Network
from emu_jax.nn.resnet50 import DEPTHS, ResNet
from emu_jax.nn.solo import SmallBackbone, Solo
from emu_jax.parallel.placement import Placement
from emu_jax.tasks.segmentation import Segmentation
from emu_jax.tasks.solo import RANGES

_ALL = ((0.0, float("inf")),)  # of a single level


def make_segmentation(config: ConfigDict, on: Placement) -> Segmentation:
    del on  # small networks: nothing is sharded inside
    labeled = config.labeled
    if labeled.round_trip and "codec" not in config:
        raise UserError(
            f"labeled.round_trip is {labeled.round_trip}, which needs a codec: set codec.path to a "
            "trained autoencoder, or labeled.round_trip to 0."
        )
    codec, frozen = make_codec(config.codec) if "codec" in config else (None, {})
    classes = tuple(labeled.classes)
    return Segmentation(
        network=Network(partial(_solo, config.solo, len(classes))),
        column=labeled.column,
        classes=Vocabulary(classes, labeled.most),
        ranges=RANGES if len(config.solo.grids) > 1 else _ALL,
        score=labeled.score,
        agnostic=labeled.agnostic,
        codec=codec,
        round_trip=labeled.round_trip,
        groups=make_groups(config),
        frozen=frozen,
        compute_dtype=compute_dtype(config),
    )


def _solo(section: ConfigDict, classes: int, rngs: nnx.Rngs) -> Solo:
    arguments = section.to_dict()
    kind, widths = arguments.pop("backbone"), arguments.pop("widths")
    if kind == "small":
        backbone = module(SmallBackbone, dict(widths=widths, groups=section.groups), rngs)
        widths = widths[1:]
    else:
        backbone = ResNet(DEPTHS[kind], rngs=rngs)
        widths = (256, 512, 1024, 2048)
    arguments |= dict(backbone=backbone, widths=widths, classes=classes)
    return module(Solo, arguments, rngs)
