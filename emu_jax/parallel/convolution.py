"""The convolution of a denoiser: XLA's own, or another form on TPUs with few images per device.

A TPU computes eight rows of 128 features at a time, and its compiler puts the batch into those
rows. With a very small batch it cuts images up to fill the rows, which copies and masks feature
maps, or it unrolls a convolution into a program that does not fit into the instruction memory of
the chip and then compiles it up to seven times, each time smaller. With the width in place of the
batch neither happens. From four images per device on, that form copies as much as it saves.
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

from emu_jax.parallel.checks import usable
from emu_jax.parallel.sharding import constrain

Convolve = Callable[..., Array]
# From this number of images per device on, the batch fills the rows well enough.
_ENOUGH = 4


def make_convolve(mesh: Mesh, strict: bool = False) -> Convolve:
    """The function that replaces ``jax.lax.conv_general_dilated`` on the devices of the mesh.

    Raises:
      UserError: the form for TPUs fails its check (:mod:`emu_jax.parallel.checks`), and ``strict``.
    """
    if mesh.devices.flat[0].platform != "tpu":
        return jax.lax.conv_general_dilated
    change = "deterministic=False" if strict else ""
    if not usable("the convolution by columns", mesh, *_compared(), change):
        return jax.lax.conv_general_dilated
    return partial(_convolve, mesh.size, constrain(mesh))


def _compared() -> tuple[Callable[..., Array], Callable[..., Array], list[np.ndarray]]:
    """The form for TPUs and XLA's own as functions of image and kernel, and values of these."""
    chance, sides = np.random.default_rng(0), [(1, 1), (1, 1)]
    sizes = ((2, 16, 16, 32), (3, 3, 32, 32))
    return (
        lambda x, kernel: by_columns(x, kernel, (1, 1), sides),
        lambda x, kernel: jax.lax.conv_general_dilated(
            *(x, kernel, (1, 1), sides), dimension_numbers=("NHWC", "HWIO", "NHWC")
        ),
        [chance.normal(size=size).astype(np.float32) for size in sizes],
    )


def convolve_by(convolve: Convolve, module: nnx.Module) -> nnx.Module:
    """The same module, with all its convolutions computed by ``convolve``."""
    for _, part in nnx.iter_modules(module):
        if isinstance(part, nnx.Conv):
            part.conv_general_dilated = convolve
    return module


def _convolve(
    devices: int,
    constrain_rows: Callable[[Array], Array],
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "i j e d"],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **options: Any,
) -> Float[Array, "b h2 w2 d"]:
    rows, rest = divmod(x.shape[0], devices)
    grouped = kernel.shape[2] != x.shape[3]
    dilated = {*options["lhs_dilation"], *options["rhs_dilation"]} != {1}
    if rows < _ENOUGH and not (rest or grouped or dilated):
        if kernel.shape[:2] == (1, 1) and set(strides) == {1} and not np.any(padding):
            return x @ kernel[0, 0]
        if kernel.shape[1] > 1:
            return by_columns(x, kernel, strides, padding, constrain_rows)
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)


def by_columns(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "i j e d"],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    constrain_rows: Callable[[Array], Array] = lambda x: x,
) -> Float[Array, "b h2 w2 d"]:
    """The convolution, with the width in place of the batch.

    Its spatial axes are the images (along which the kernel has length 1), the height, and a stack
    of the j columns under the kernel. With the columns concatenated to the channels it would be a
    little faster, but every device would sum the whole gradient of the kernel before it is sharded.
    ``constrain_rows`` shards the images over the devices: the partitioner itself shards only the
    batch of a convolution.
    """
    (stride_h, stride_w), (pad_h, pad_w), j = strides, padding, kernel.shape[1]
    x = jnp.pad(x, ((0, 0), (0, 0), pad_w, (0, 0)))
    end = x.shape[2] - j + 1
    columns = jnp.stack([x[:, :, at : at + end : stride_w] for at in range(j)], axis=2)
    y = jax.lax.conv_general_dilated(
        constrain_rows(columns),
        kernel[None],
        (1, stride_h, 1),
        ((0, 0), pad_h, (0, 0)),
        dimension_numbers=jax.lax.ConvDimensionNumbers(
            (3, 4, 0, 1, 2), (4, 3, 0, 1, 2), (3, 4, 0, 1, 2)
        ),
    )
    return constrain_rows(y)[:, :, 0]
