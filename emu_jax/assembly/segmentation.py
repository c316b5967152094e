"""From a config to the segmentation tasks."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

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
from emu_jax.nn.deeplab import DeepLab
from emu_jax.nn.functional import Network
from emu_jax.nn.resnet50 import DEPTHS, ResNet
from emu_jax.nn.solo import SmallBackbone, Solo
from emu_jax.parallel.placement import ONE_DEVICE, Placement
from emu_jax.tasks.base import Frozen
from emu_jax.tasks.segmentation import Segmentation
from emu_jax.tasks.semantic import Labels, SemanticSegmentation
from emu_jax.tasks.solo import RANGES

_ALL = ((0.0, float("inf")),)  # of a single level


def make_segmentation(config: ConfigDict, on: Placement) -> Segmentation:
    del on  # small networks: nothing is sharded inside
    labeled = config.labeled
    classes = tuple(labeled.classes)
    return Segmentation(
        network=Network(partial(_solo, config.solo, len(classes))),
        column=labeled.column,
        classes=Vocabulary(classes, labeled.most),
        ranges=RANGES if len(config.solo.grids) > 1 else _ALL,
        score=labeled.score,
        agnostic=labeled.agnostic,
        **reading(config, "labeled"),
    )


def make_semantic(config: ConfigDict, on: Placement) -> SemanticSegmentation:
    del on
    labeled = config.labeled
    words = tuple(labeled.classes)
    vocabulary = None if labeled.mask else Vocabulary(words, labeled.most)
    return SemanticSegmentation(
        network=deeplab(labeled.mask or 1 + len(words), config.deeplab.to_dict()),
        labels=Labels(labeled.column, vocabulary, tuple(range(1, len(words) + 1))),
        **reading(config, "labeled"),
    )


def reading(config: ConfigDict, section: str) -> dict[str, Any]:
    """What tasks that read images share; ``section`` has their ``round_trip``."""
    share = config[section].round_trip
    if share and "codec" not in config:
        raise UserError(
            f"{section}.round_trip is {share}, which needs a codec: set codec.path to a trained "
            f"autoencoder, or {section}.round_trip to 0."
        )
    codec, frozen = make_codec(config.codec) if "codec" in config else (None, {})
    return dict(
        codec=codec,
        round_trip=share,
        groups=make_groups(config),
        frozen=frozen,
        compute_dtype=compute_dtype(config),
    )


def deeplab(labels: int, arguments: Mapping[str, Any]) -> Network:
    return Network(partial(module, DeepLab, {**arguments, "classes": labels}))


def trained_segmentation(path: str) -> tuple[Segmentation, Frozen, ConfigDict]:
    """The task of a segmenter's run, exported model or builtin:NAME, its weights and its config. If
    the path is a config file there are shapes only, as for a codec.

    Raises:
      UserError: there is no such model, it is no segmenter, or its weights do not fit its config.
    """
    return _trained(path, "segmentation", make_segmentation)


def trained_semantic(path: str) -> tuple[SemanticSegmentation, Frozen, ConfigDict]:
    """The same for a segmenter of pixels."""
    return _trained(path, "semantic_segmentation", make_semantic)


def _trained(path: str, kind: str, make: Callable[..., Any]) -> tuple[Any, Frozen, ConfigDict]:
    model = None if is_config_file(path) else load_model(locate(path), dtype=np.float32)
    config = ConfigDict(model.config) if model else read(path)
    if config.get("task") != kind:
        of = "" if kind == "segmentation" else ":network=deeplab"
        raise UserError(
            f"{path} is not a parser: its task is {config.get('task')!r}, not {kind}; use a model "
            f"of configs/parser.py{of}."
        )
    config.labeled.round_trip = 0.0  # nothing is augmented: no codec is needed
    if "codec" in config:
        del config.codec
    with described_by(path):
        task = make(config, ONE_DEVICE)
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
