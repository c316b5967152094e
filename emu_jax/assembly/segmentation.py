"""From a config to the segmentation task."""

from dataclasses import replace
from functools import partial

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from emu_jax.assembly.codecs import make_codec
from emu_jax.assembly.config import read
from emu_jax.assembly.groups import make_groups
from emu_jax.assembly.models import locate
from emu_jax.assembly.networks import compute_dtype, frozen_arrays, module, untrained
from emu_jax.checkpoint.export import load_model
from emu_jax.checkpoint.foreign import described_by, require_fit
from emu_jax.checkpoint.paths import is_config_file
from emu_jax.data.mixture import Vocabulary
from emu_jax.errors import UserError
from emu_jax.nn.functional import Network
from emu_jax.nn.resnet50 import DEPTHS, ResNet
from emu_jax.nn.solo import SmallBackbone, Solo
from emu_jax.parallel.placement import ONE_DEVICE, Placement
from emu_jax.tasks.base import Frozen
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


def trained_segmentation(path: str) -> tuple[Segmentation, Frozen, ConfigDict]:
    """The task of a segmenter's run, exported model or builtin:NAME, its weights and its config. If
    the path is a config file there are shapes only, as for a codec.

    Raises:
      UserError: there is no such model, it is no segmenter, or its weights do not fit its config.
    """
    model = None if is_config_file(path) else load_model(locate(path), dtype=np.float32)
    config = ConfigDict(model.config) if model else read(path)
    if config.get("task") != "segmentation":
        raise UserError(
            f"{path} is not a parser: its task is {config.get('task')!r}; use a model of "
            "configs/parser.py."
        )
    config.labeled.round_trip = 0.0  # nothing is augmented: no codec is needed
    if "codec" in config:
        del config.codec
    with described_by(path):
        task = make_segmentation(config, ONE_DEVICE)
    shapes = task.network.shapes()
    if model is None:
        return task, Frozen(path, "none", shapes, untrained("path", path)), config
    require_fit(model.params, shapes, path)
    weights = frozen_arrays(path, model.params)
    return task, replace(weights, fingerprint=model.fingerprint), config


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
