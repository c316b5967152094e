"""Self-attention guidance: away from an image that is blurred where the network looks (Hong et al.
2023, arXiv:2210.00939).

x0 and eps are the prediction at x without a condition (without classifier-free guidance: under the
condition). a is how much attention each position of the U-Net's middle block gets: the mean over
heads, the sum over queries, so that it is 1 on average. With the scale s,

    x0' = blur(x0) where a > 1, else x0                                                    (1)
    x'  = alpha x0' + sigma eps                                                            (2)
    eps_guided = eps_cfg + s (eps - eps(x'))                                               (3)

eps_cfg is the result of classifier-free guidance; eps(x') is predicted without a condition too. The
blur is Gaussian, of deviation 1 and 9 wide, with reflected edges, in the space of x: on latents as
published. The mask is enlarged to x by repetition.

(3) holds for every prediction of the network: what it says about x0 follows from x, which both
sides of (2) decompose,

    x0_guided = x0_cfg + s (x0' - x0(x'))                                                  (4)

so nothing is divided by alpha, which may be 0. For a network that predicts eps this is the pipeline
of diffusers. That pipeline adds differences of outputs for v prediction as well, which is another
guidance, because x' is not x.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from emu_jax.process.gaussian import GaussianProcess, Prediction
from emu_jax.process.guidance import Denoise, Scale, combined, paired

_DEVIATION, _RADIUS = 1.0, 4

Watched = Callable[
    [Float[Array, "b h w c"], Float[Array, " b"], Any],
    tuple[Float[Array, "b h w o"], Float[Array, "b m n"]],
]
"""A network's output, and the attention that each position of its middle block gets."""


def self_attention_guided(
    network: Watched,
    process: GaussianProcess,
    cond: PyTree[Array],
    uncond: PyTree[Array] | None,
    sag_scale: float,
    scale: Scale | Callable[[Float[Array, " b"]], Float[Array, " b"]] = 1.0,
    phi: float = 0.0,
) -> Denoise:
    """``denoise(x, t)`` with equation (3), where ``sag_scale`` is s; one more call of the network
    than :func:`guided`, whose arguments the others are.
    """

    def denoise(x: Float[Array, "b h w c"], t: Float[Array, " b"]) -> Float[Array, "b h w o"]:
        if uncond is None:
            base, attention = network(x, t, cond)
            result = base
        else:
            (output, _), (base, attention) = paired(network, cond, uncond)(x, t)
            result = combined(output, base, t, scale, phi, process.split_output)
        here = process.predict(base, x, t)
        blurred = degraded(here.x0, attention)
        alpha = process.schedule.alpha(t)[:, None, None, None]
        x_blurred = x + alpha * (blurred - here.x0)  # equation (2)
        output, _ = network(x_blurred, t, cond if uncond is None else uncond)
        there = process.predict(output, x_blurred, t)
        # An output is linear in x0 and eps, so (3) and (4) are added in its own terms.
        change = process.output(Prediction(blurred - there.x0, here.eps - there.eps), t)
        result, rest = process.split_output(result)
        result = result + sag_scale * change
        return result if rest is None else jnp.concatenate([result, rest], axis=-1)

    return denoise


def degraded(
    x0: Float[Array, "b h w c"], attention: Float[Array, "b m n"]
) -> Float[Array, "b h w c"]:
    """Equation (1)."""
    (height, width), (m, n) = x0.shape[1:3], attention.shape[1:]
    rows, columns = np.arange(height) * m // height, np.arange(width) * n // width
    mask = (attention > 1)[:, rows][:, :, columns, None]
    return jnp.where(mask, blur(x0), x0)


def blur(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """The Gaussian blur of equation (1)."""
    weights = np.exp(-0.5 * (np.arange(-_RADIUS, _RADIUS + 1) / _DEVIATION) ** 2)
    for axis in (1, 2):
        edges = [(0, 0)] * 4
        edges[axis] = (_RADIUS, _RADIUS)
        padded = jnp.pad(x, edges, mode="reflect" if x.shape[axis] > 1 else "edge")
        size = x.shape[axis]
        parts = (
            weight * jax.lax.slice_in_dim(padded, i, i + size, axis=axis)
            for i, weight in enumerate((weights / weights.sum()).tolist())
        )
        x = reduce(jnp.add, parts)
    return x
