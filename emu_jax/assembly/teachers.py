"""From a config to the teachers of feedback learning."""

from functools import partial

from emu_jax.assembly.networks import frozen_arrays, module
from emu_jax.assembly.segmentation import trained_segmentation
from emu_jax.nn.functional import Network
from emu_jax.nn.perceptual import PACKAGE, Vgg16, load_lpips
from emu_jax.parallel.placement import Placement
from emu_jax.tasks.base import Frozen
from emu_jax.tasks.teachers import Structure, Style


def make_structure(on: Placement, *, path: str) -> tuple[Structure, Frozen]:
    """A segmenter's run, exported model or builtin:NAME."""
    del on  # a small network: nothing is sharded inside
    segmentation, weights, _ = trained_segmentation(path)
    return Structure(segmentation), weights


def make_style(on: Placement, *, path: str, blocks: tuple[float, ...]) -> tuple[Style, Frozen]:
    """VGG-16 of a file or folder as for LPIPS, or of the installed package."""
    del on
    network = Network(partial(module, Vgg16, {}))
    params = {
        name.removeprefix("net/"): x
        for name, x in load_lpips(path).items()
        if name.startswith("net/")
    }
    return Style(network, tuple(blocks)), frozen_arrays(path or PACKAGE, params)
