"""From a config to the teachers of feedback learning."""

from functools import partial
from pathlib import Path

import jax

from emu_jax.assembly.networks import frozen_arrays, module
from emu_jax.assembly.segmentation import deeplab, trained_segmentation, trained_semantic
from emu_jax.data.coco_classes import IN_VOC, VOC
from emu_jax.data.mixture import Vocabulary
from emu_jax.errors import UserError
from emu_jax.evaluation.frozen import read_tensors, to_params
from emu_jax.nn.functional import Network
from emu_jax.nn.perceptual import PACKAGE, Vgg16, load_lpips
from emu_jax.nn.random_filters import RandomFilters
from emu_jax.nn.resnet50 import DEPTHS
from emu_jax.parallel.placement import Placement
from emu_jax.tasks.base import Frozen
from emu_jax.tasks.semantic import Labels, SemanticSegmentation
from emu_jax.tasks.teachers import Segmenter, Style

RANDOM = "random"  # in place of a path
_FILES = (".pth", ".pt", ".safetensors")


def make_structure(on: Placement, *, path: str) -> tuple[Segmenter, Frozen]:
    """A segmenter's run, exported model or builtin:NAME."""
    del on  # a small network: nothing is sharded inside
    segmentation, weights, config = trained_segmentation(path)
    return Segmenter(segmentation, config.data.image_size), weights


def make_layout(
    on: Placement, *, path: str, column: str, classes: tuple[str, ...], most: int
) -> tuple[Segmenter, Frozen]:
    """A run or exported model of a segmenter of pixels, or torchvision's file of DeepLab-V3.

    Raises:
      UserError: there is no such model, or a file's outputs are not labels of ``classes``.
    """
    del on
    if not path.endswith(_FILES):
        segmentation, weights, config = trained_semantic(path)
        return Segmenter(segmentation, config.data.image_size), weights
    tensors = {
        name: x
        for name, x in read_tensors(Path(path).expanduser()).items()
        if not name.startswith("aux_classifier.")  # only its training has a second head
    }
    if "classifier.4.weight" not in tensors:
        raise UserError(f"{path} is no DeepLab-V3 of torchvision: it has no classifier.4.weight.")
    outputs = len(tensors["classifier.4.weight"])
    depth = "resnet101" if any(x.startswith("backbone.layer3.22.") for x in tensors) else "resnet50"
    network = deeplab(outputs, {"depths": DEPTHS[depth]})
    params = to_params(network, tensors, path)
    numbers = tuple(range(1, len(classes) + 1))
    if outputs == len(VOC):  # trained on COCO's images: its other classes are background
        names = (IN_VOC.get(word, word) for word in classes)
        numbers = tuple(VOC.index(name) if name in VOC else 0 for name in names)
    elif classes and outputs != len(classes) + 1:
        raise UserError(
            f"{path} gives {outputs} labels, and teachers.layout.classes has {len(classes)} names: "
            "name one less than the labels, or none, to use the labels of mask."
        )
    labels = Labels(column, Vocabulary(tuple(classes), most) if classes else None, numbers)
    task = SemanticSegmentation(network=network, labels=labels, groups={}, frozen={})
    return Segmenter(task), frozen_arrays(path, params)


def make_style(on: Placement, *, path: str, blocks: tuple[float, ...]) -> tuple[Style, Frozen]:
    """VGG-16 of a file or folder as for LPIPS, or of the installed package; or random filters."""
    del on
    if path == RANDOM:
        network = Network(partial(module, RandomFilters, {}))
        return Style(network, tuple(blocks)), frozen_arrays(RANDOM, network.init(jax.random.key(0)))
    network = Network(partial(module, Vgg16, {}))
    params = {
        name.removeprefix("net/"): x
        for name, x in load_lpips(path).items()
        if name.startswith("net/")
    }
    return Style(network, tuple(blocks)), frozen_arrays(path or PACKAGE, params)
