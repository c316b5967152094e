"""The gate of feed-forward layers: the same function in the form that is faster on a device.

Modeled for a layer of SDXL on an H200 (docs/records/speed.md), the gradient takes 175 us in the
form for GPUs and 333 us in the other, which a TPU computes inside the surrounding matrix products.
"""

from collections.abc import Callable

from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array

from emu_jax.nn.transformer import GEGLU, gated, gated_in_one_pass

Gated = Callable[[Array, Array], Array]


def make_gated(mesh: Mesh) -> Gated:
    """The gate for the devices of the mesh."""
    return gated_in_one_pass if mesh.devices.flat[0].platform in ("gpu", "cuda") else gated


def gate_by(function: Gated, module: nnx.Module) -> nnx.Module:
    """The same module, with all its gates computed by ``function``."""
    for _, part in nnx.iter_modules(module):
        if isinstance(part, GEGLU):
            part.gated = function
    return module
