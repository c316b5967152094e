"""The ``convolve`` that a denoiser's convolutions are computed by: XLA's own, and another on TPUs
where a device has few pictures.

A TPU computes eight rows of 128 features at a time, and its compiler lays a convolution out with
the batch's rows there. With very few it cuts pictures up to have more, copying and masking maps, or
unrolls a convolution into a program that does not fit the chip's instruction memory, which it then
compiles up to seven times over, smaller and smaller. Where the width takes the batch's place
neither happens. With four pictures that costs as much in copies as it saves.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from emu_jax.parallel.sharding import constrain

Convolve = Callable[..., Array]
# Pictures a device from which on the batch fills rows well enough.
_ENOUGH = 4


def make_convolve(mesh: Mesh) -> Convolve:
    """What takes ``jax.lax.conv_general_dilated``'s place on the mesh's devices."""
    if mesh.devices.flat[0].platform != "tpu":
        return jax.lax.conv_general_dilated
    return partial(_convolve, mesh.size, constrain(mesh))


def convolve_by(convolve: Convolve, module: nnx.Module) -> nnx.Module:
    """The module, with every convolution in it computed by ``convolve``."""
    for _, part in nnx.iter_modules(module):
        if isinstance(part, nnx.Conv):
            part.conv_general_dilated = convolve
    return module


def _convolve(
    devices: int,
    hold: Callable[[Array], Array],
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "i j c d"],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **options: Any,
) -> Float[Array, "b h2 w2 d"]:
    rows, over = divmod(x.shape[0], devices)
    grouped = kernel.shape[2] != x.shape[3]
    dilated = {*options["lhs_dilation"], *options["rhs_dilation"]} != {1}
    if rows < _ENOUGH and not (over or grouped or dilated):
        if kernel.shape[:2] == (1, 1) and set(strides) == {1} and not np.any(padding):
            return x @ kernel[0, 0]
        if kernel.shape[1] > 1:
            return by_columns(x, kernel, strides, padding, hold)
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)


def by_columns(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "i j c d"],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    hold: Callable[[Array], Array] = lambda x: x,
) -> Float[Array, "b h2 w2 d"]:
    """The convolution, with the width as its batch.

    Its axes are pictures (along which the kernel has length 1), the height, and the j columns that
    a position sees, stacked. Joined on channels they would multiply a little faster, but then a
    kernel's gradient would be summed whole on every device before it is divided. ``hold`` says
    that pictures are what devices divide, which the partitioner knows of a batch alone.
    """
    (rise, run), (vertical, horizontal), j = strides, padding, kernel.shape[1]
    x = jnp.pad(x, ((0, 0), (0, 0), horizontal, (0, 0)))
    past = x.shape[2] - j + 1
    columns = jnp.stack([x[:, :, at : at + past : run] for at in range(j)], axis=2)
    y = jax.lax.conv_general_dilated(
        hold(columns),
        kernel[None],
        (1, rise, 1),
        ((0, 0), vertical, (0, 0)),
        dimension_numbers=jax.lax.ConvDimensionNumbers(
            (3, 4, 0, 1, 2), (4, 3, 0, 1, 2), (3, 4, 0, 1, 2)
        ),
    )
    return hold(y)[:, :, 0]
