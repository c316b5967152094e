"""Steering a sample: classifier-free guidance on outputs, clipping and thresholding on x0.

With c the network's output under the condition and u the one without it (or under a negative
prompt, which is just another u), classifier-free guidance (Ho & Salimans 2022) is

    g = u + w (c - u)                                                                      (1)

w = 1 is the plain conditional model. Muse's w rises over sampling, so that the first tokens are as
diverse as the model is and the last as true to the text as asked:

    w(t) = 1 + (w - 1) (1 - t)                                                             (3)

A large w widens the output's distribution, which shows as
overexposure; guidance rescale (Lin et al. 2023) gives back c's standard deviation, in part:

    g' = phi g std(c) / std(g) + (1 - phi) g,   std over all of a row                      (2)

A large w also drives x0 out of the pictures' range [-1, 1], where pixel models have never been.
Static clipping cuts x0 there. Dynamic thresholding (Imagen) takes s = max(1, the 99.5th percentile
of a row's |x0|), cuts at +-s and divides by s. Both belong to pixels: latents have no such range.
DeepFloyd IF takes the 95th percentile and holds s below a limit.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

Denoise = Callable[[Float[Array, "b *d"], Float[Array, " b"]], Float[Array, "b *o"]]
Split = Callable[[Float[Array, "b *o"]], tuple[Array, Array | None]]


def guide(
    cond: Float[Array, "b *d"], uncond: Float[Array, "b *d"], scale: float | Array
) -> Float[Array, "b *d"]:
    """Equation (1), in fp32; ``scale`` is w."""
    cond, uncond = jnp.asarray(cond, jnp.float32), jnp.asarray(uncond, jnp.float32)
    return uncond + scale * (cond - uncond)


def rising(scale: float | Array) -> Callable[[Float[Array, " b"]], Float[Array, " b"]]:
    """Equation (3), of t."""
    return lambda t: 1 + (scale - 1) * (1 - t)


def rescale(
    guided: Float[Array, "b *d"], cond: Float[Array, "b *d"], phi: float | Array
) -> Float[Array, "b *d"]:
    """Equation (2), in fp32; ``phi`` is in [0, 1], and the authors use 0.7."""
    guided, cond = jnp.asarray(guided, jnp.float32), jnp.asarray(cond, jnp.float32)
    whole = range(1, guided.ndim)
    ratio = jnp.std(cond, axis=whole, keepdims=True) / jnp.std(guided, axis=whole, keepdims=True)
    return phi * guided * ratio + (1 - phi) * guided


def guided(
    network: Callable[[Array, Array, Any], Array],
    cond: PyTree[Array],
    uncond: PyTree[Array] | None,
    scale: float | Array | Callable[[Float[Array, " b"]], Float[Array, " b"]],
    phi: float = 0.0,
    split: Split = lambda output: (output, None),
) -> Denoise:
    """``denoise(x, t)`` from ``network(x, t, conditioning)``, in one call for cond and uncond.

    ``scale`` is w, or says w of t (``rising``). ``split`` divides an output in what is guided and
    what is left as cond says it (``Process.split``).

    cond and uncond are trees of [b, ...] arrays of the same shapes. Row i's two halves are
    neighbours in the doubled batch, so a batch that is sharded over devices stays where it is.
    ``uncond=None`` runs the condition alone.
    """
    if uncond is None:
        return lambda x, t: network(x, t, cond)
    both = jax.tree.map(_interleave, cond, uncond)

    def denoise(x: Float[Array, "b *d"], t: Float[Array, " b"]) -> Float[Array, "b *d"]:
        output = network(_interleave(x, x), _interleave(t, t), both)
        output = output.reshape(x.shape[0], 2, *output.shape[1:])
        w = scale(t).reshape(-1, *(1,) * (output.ndim - 2)) if callable(scale) else scale
        (c, rest), (u, _) = split(output[:, 0]), split(output[:, 1])
        result = guide(c, u, w)
        result = rescale(result, c, phi) if phi else result
        return result if rest is None else jnp.concatenate([result, rest], axis=-1)

    return denoise


def static_clip(x0: Float[Array, "b *d"]) -> Float[Array, "b *d"]:
    """x0 cut to [-1, 1]."""
    return jnp.clip(x0, -1, 1)


def dynamic_threshold(
    x0: Float[Array, "b *d"], quantile: float = 0.995, limit: float = 0.0
) -> Float[Array, "b *d"]:
    """x0 cut at its own quantile of absolute values, held between 1 and ``limit`` (0: any), and
    scaled back.
    """
    size = jnp.quantile(jnp.abs(x0), quantile, axis=tuple(range(1, x0.ndim)), keepdims=True)
    size = jnp.clip(size, 1, limit or None)
    return jnp.clip(x0, -size, size) / size


def _interleave(first: Array, second: Array) -> Array:
    return jnp.stack([first, second], axis=1).reshape(-1, *first.shape[1:])
