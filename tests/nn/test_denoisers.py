"""Every kind of denoiser: it builds with the arguments of its entry and is called by one set of
names."""

import inspect
import re

import jax
import jax.numpy as jnp
import pytest

from emu_jax.nn.denoisers import DENOISERS
from emu_jax.nn.functional import Network
from emu_jax.registry import loaded

B, SIDE, CHANNELS, CODES, TEXT, VECTOR = 2, 4, 3, 7, 16, 6
TRANSFORMER = dict(width=16, depth=2, heads=2)
SIZES = {
    "unet": dict(widths=(8, 16), head_width=8, groups=4),
    "efficient_unet": dict(
        widths=(8, 16), blocks=(1, 1), attention=("none", "full"), head_width=8, groups=4
    ),
    "transformer": dict(TRANSFORMER, patch=2, mlp_width=32),
    "pixart": dict(TRANSFORMER, patch=2, span=4.0),
    "mmdit": dict(TRANSFORMER, patch=2, span=4.0, table=4),
    "token_transformer": dict(TRANSFORMER, mlp_width=32),
    "uvit": dict(
        TRANSFORMER, mlp_width=32, channels=8, embed_width=8, blocks=1, block_heads=2, scan=True
    ),
    "super_resolution_transformer": dict(TRANSFORMER, mlp_width=32, low_depth=1, block=2),
}
DATA = {
    "continuous": dict(in_channels=CHANNELS, out_channels=CHANNELS),
    "tokens": dict(codes=CODES),
    "coarse tokens": dict(codes=CODES, low_codes=5, low_side=2),
}


def test_every_kind_is_tested():
    assert SIZES.keys() == DENOISERS.keys()


@pytest.mark.parametrize("name", DENOISERS)
def test_it_builds_and_is_called_by_the_same_names_as_the_others(name):
    kind, gathered = DENOISERS[name], []

    def gather(weights):
        gathered.append(weights)
        return weights

    arguments = SIZES[name] | DATA[kind.data] | dict(context_width=TEXT, gather=gather)
    # PixArt alone takes tokens and no vector.
    arguments |= dict(vector_width=None if name == "pixart" else VECTOR, remat="block")
    arguments |= dict(attend=lambda q, k, v, mask: q, constrain=lambda x: x)
    if kind.level:
        arguments["level"] = True
    if kind.side:
        arguments["side"] = SIDE
    network = Network(lambda rngs: kind.build(**arguments, rngs=rngs))

    x = jnp.zeros((B, SIDE, SIDE, CHANNELS))
    conditioning = dict(context=jnp.zeros((B, 5, TEXT)), mask=jnp.ones((B, 5), bool))
    conditioning["vector"] = None if name == "pixart" else jnp.zeros((B, VECTOR))
    if kind.level:
        conditioning["level"] = jnp.zeros(B)
    if kind.data != "continuous":
        x = jnp.zeros((B, SIDE, SIDE), int)
    if kind.data == "coarse tokens":
        conditioning["low"] = jnp.zeros((B, 2, 2), int)
    y = jax.eval_shape(network, network.shapes(), x, timestep=jnp.zeros(B), **conditioning)
    assert y.shape == (B, SIDE, SIDE, CHANNELS if kind.data == "continuous" else CODES)
    assert gathered

    fixed = [path for path in network.shapes() if kind.fixed and re.match(kind.fixed, path)]
    assert len(fixed) == bool(kind.fixed)


@pytest.mark.parametrize("name", DENOISERS)
def test_its_entry_says_which_arguments_it_takes(name):
    kind = DENOISERS[name]
    takes = inspect.signature(loaded(kind.build).__init__).parameters
    for argument in ("level", "side", "text_width"):
        assert (argument in takes) == getattr(kind, argument), argument
