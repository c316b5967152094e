"""Inception v3 as TensorFlow's FID used it (Szegedy et al. 2016; Heusel et al. 2017).

Published FID, KID and Inception Score are functions of this network's features, so its differences
from torchvision's Inception v3 count: average pooling leaves the padding out of its mean, the last
block has a maximum instead of an average, and there are 1,008 classes. Parameters are named as in
pytorch-fid's ``pt_inception-2015-12-05`` (torch-fidelity loads the same weights).
"""

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from emu_jax.nn.layers import FixedBatchNorm, linear

SIZE = 299
CLASSES = 1008
_EPS = 1e-3


class Features(NamedTuple):
    """``pooled`` is what FID and KID compare, ``logits`` what the Inception Score reads.

    The logits have no bias: TensorFlow's graph was read before it.
    """

    pooled: Float[Array, "b 2048"]
    logits: Float[Array, "b 1008"]


# A branch is a list of units (width, kernel size, stride), after a pooling or none. A tuple of two
# units at its end is a fork: both read the same map.
_AVERAGE = partial(
    nnx.avg_pool, window_shape=(3, 3), strides=(1, 1), padding="SAME", count_include_pad=False
)
_MAXIMUM = partial(nnx.max_pool, window_shape=(3, 3), strides=(1, 1), padding="SAME")
_HALVE = partial(nnx.max_pool, window_shape=(3, 3), strides=(2, 2))
_ACROSS, _DOWN = (1, 3), (3, 1)


def _block_a(pooled: int) -> dict[str, list]:
    return {
        "branch1x1": [(64, 1)],
        "branch5x5": [(48, 1), (64, 5)],
        "branch3x3dbl": [(64, 1), (96, 3), (96, 3)],
        "branch_pool": [_AVERAGE, (pooled, 1)],
    }


_BLOCK_B = {
    "branch3x3": [(384, 3, 2)],
    "branch3x3dbl": [(64, 1), (96, 3), (96, 3, 2)],
    "branch_pool": [_HALVE],
}


def _block_c(width: int) -> dict[str, list]:
    across, down = (width, (1, 7)), (width, (7, 1))
    return {
        "branch1x1": [(192, 1)],
        "branch7x7": [(width, 1), across, (192, (7, 1))],
        "branch7x7dbl": [(width, 1), down, across, down, (192, (1, 7))],
        "branch_pool": [_AVERAGE, (192, 1)],
    }


_BLOCK_D = {
    "branch3x3": [(192, 1), (320, 3, 2)],
    "branch7x7x3": [(192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2)],
    "branch_pool": [_HALVE],
}


def _block_e(pool) -> dict[str, list]:
    fork = ((384, _ACROSS), (384, _DOWN))
    return {
        "branch1x1": [(320, 1)],
        "branch3x3": [(384, 1), fork],
        "branch3x3dbl": [(448, 1), (384, 3), fork],
        "branch_pool": [pool, (192, 1)],
    }


_BLOCKS = {
    "Mixed_5b": _block_a(32),
    "Mixed_5c": _block_a(64),
    "Mixed_5d": _block_a(64),
    "Mixed_6a": _BLOCK_B,
    "Mixed_6b": _block_c(128),
    "Mixed_6c": _block_c(160),
    "Mixed_6d": _block_c(160),
    "Mixed_6e": _block_c(192),
    "Mixed_7a": _BLOCK_D,
    "Mixed_7b": _block_e(_AVERAGE),
    "Mixed_7c": _block_e(_MAXIMUM),
}


class Unit(nnx.Module):
    """Convolution without bias, batch norm, relu. A unit of stride 2 has no padding."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        *,
        padding: str | None = None,
        rngs: nnx.Rngs,
    ):
        self.conv = nnx.Conv(
            inputs,
            outputs,
            (kernel, kernel) if isinstance(kernel, int) else kernel,
            strides=stride,
            padding=padding or ("SAME" if stride == 1 else "VALID"),
            use_bias=False,
            rngs=rngs,
        )
        self.bn = FixedBatchNorm(outputs, eps=_EPS)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        return nnx.relu(self.bn(self.conv(x)))


class Mixed(nnx.Module):
    """Branches over one map, side by side in the channels of the result."""

    def __init__(self, inputs: int, branches: dict[str, list], *, rngs: nnx.Rngs):
        self._plan: list[list] = []  # of each branch: poolings, names of units, pairs of names
        self.channels = 0
        for branch, steps in branches.items():
            plan, width, several = [], inputs, len(steps) > 1 and branch != "branch_pool"
            for i, step in enumerate(steps, 1):
                if callable(step):
                    plan.append(step)
                    continue
                forked = isinstance(step[0], tuple)
                names = [
                    branch + (f"_{i}" if several else "") + letter
                    for letter in ("ab" if forked else ("",))
                ]
                units = step if forked else (step,)
                for name, unit in zip(names, units, strict=True):
                    setattr(self, name, Unit(width, *unit, rngs=rngs))
                width = sum(unit[0] for unit in units)
                plan.append(names)
            self._plan.append(plan)
            self.channels += width

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        maps = []
        for plan in self._plan:
            y = x
            for step in plan:
                if callable(step):
                    y = step(y)
                else:
                    y = jnp.concatenate([getattr(self, name)(y) for name in step], axis=-1)
            maps.append(y)
        return jnp.concatenate(maps, axis=-1)


class Inception(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs):
        self.Conv2d_1a_3x3 = Unit(3, 32, 3, 2, rngs=rngs)
        self.Conv2d_2a_3x3 = Unit(32, 32, 3, padding="VALID", rngs=rngs)
        self.Conv2d_2b_3x3 = Unit(32, 64, 3, rngs=rngs)
        self.Conv2d_3b_1x1 = Unit(64, 80, 1, rngs=rngs)
        self.Conv2d_4a_3x3 = Unit(80, 192, 3, padding="VALID", rngs=rngs)
        width = 192
        for name, branches in _BLOCKS.items():
            block = Mixed(width, branches, rngs=rngs)
            setattr(self, name, block)
            width = block.channels
        self.fc = linear(width, CLASSES, rngs=rngs)

    def __call__(self, x: Float[Array, "b 299 299 3"]) -> Features:
        """The features of images in [-1, 1]."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(_HALVE(x)))
        x = _HALVE(x)
        for name in _BLOCKS:
            x = getattr(self, name)(x)
        pooled = x.mean((1, 2))
        return Features(pooled, pooled @ self.fc.kernel[...])
