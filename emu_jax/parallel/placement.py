"""How a network runs on its devices: five functions, so that networks need no mesh."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from emu_jax.nn.attention import Attend, attend
from emu_jax.nn.transformer import gated
from emu_jax.parallel.attention import make_attend
from emu_jax.parallel.convolution import Convolve, make_convolve
from emu_jax.parallel.gates import Gated, make_gated
from emu_jax.parallel.sharding import constrain, gather

Constrain = Callable[[jax.Array], jax.Array]


@dataclass(frozen=True)
class Placement:
    """``constrain`` shards activations [b, ...] by the batch rule between blocks, ``gather``
    gathers the weights of a layer, ``attend``, ``convolve`` and ``gated`` compute the attention,
    the convolutions and the gates of a generator.
    """

    constrain: Constrain = lambda x: x
    gather: Callable[[Any], Any] | None = None
    attend: Attend = attend
    convolve: Convolve = jax.lax.conv_general_dilated
    gated: Gated = gated


ONE_DEVICE = Placement()


def placement(mesh: Mesh, attention: str, strict: bool = False) -> Placement:
    """The placement on the devices of a mesh; ``attention`` is a kind of
    :mod:`emu_jax.parallel.attention`. ``strict``: a kernel that fails its check is a UserError;
    otherwise XLA computes in its place.
    """
    return Placement(
        constrain(mesh),
        gather(mesh),
        make_attend(attention, mesh, strict),
        make_convolve(mesh, strict),
        make_gated(mesh),
    )
