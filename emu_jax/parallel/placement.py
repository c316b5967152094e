"""What a network is told of the devices it runs on: four callables, and no mesh."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from emu_jax.nn.attention import Attend, attend
from emu_jax.parallel.attention import make_attend
from emu_jax.parallel.convolution import Convolve, make_convolve
from emu_jax.parallel.sharding import constrain, gather

Constrain = Callable[[jax.Array], jax.Array]


@dataclass(frozen=True)
class Placement:
    """``constrain`` holds activations [b, ...] to the batch rule between blocks, ``gather`` brings
    a layer's weights together, ``attend`` computes a generator's attention, ``convolve`` its
    convolutions.
    """

    constrain: Constrain = lambda x: x
    gather: Callable[[Any], Any] | None = None
    attend: Attend = attend
    convolve: Convolve = jax.lax.conv_general_dilated


ONE_DEVICE = Placement()


def placement(mesh: Mesh, attention: str) -> Placement:
    """That of a mesh's devices, with the attention of that kind
    (:mod:`emu_jax.parallel.attention`)."""
    return Placement(
        constrain(mesh), gather(mesh), make_attend(attention, mesh), make_convolve(mesh)
    )
