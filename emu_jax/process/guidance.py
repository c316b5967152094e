"""Guidance of a sample: classifier-free guidance on outputs, clipping and thresholding on x0.

With c the network's output under the condition and u the output without it (or under a negative
prompt, which is another u), classifier-free guidance (Ho & Salimans 2022) is

    g = u + w (c - u)                                                                      (1)

w = 1 is the plain conditional model. In Muse w rises during sampling, so that the first tokens have
the diversity of the model and the last ones follow the text as closely as asked:

    w(t) = 1 + (w - 1) (1 - t)                                                             (2)

A large w widens the distribution of the output, which is visible as overexposure. Guidance rescale
(Lin et al. 2023) restores the standard deviation of c, in part:

    g' = phi g std(c) / std(g) + (1 - phi) g,   std over all of a row                      (3)

An editing model has two conditions, a text and an image. With v the output under the image alone,
u that without both and w_i the scale of the image (Brooks et al. 2022),

    g = u + w_i (v - u) + w (c - v)                                                        (4)

A large w also moves x0 out of the range of images, [-1, 1], where pixel models were never trained.
Static clipping clips x0 to it. Dynamic thresholding (Imagen) takes s = max(1, the 99.5th percentile
of a row's |x0|), clips to +-s and divides by s. Both are for pixels: latents have no such range.
DeepFloyd IF takes the 95th percentile and limits s.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from emu_jax.process.protocol import Data

Denoise = Callable[[Data, Float[Array, " b"]], Float[Array, "b *o"]]
Scale = float | Float[Array, "..."]
"""One w, or an array of them that broadcasts to the output."""
SplitOutput = Callable[
    [Float[Array, "b *o"]], tuple[Float[Array, "b *p"], Float[Array, "b *v"] | None]
]


def guide(
    cond: Float[Array, "b *o"], uncond: Float[Array, "b *o"], scale: Scale
) -> Float[Array, "b *o"]:
    """Equation (1), in fp32; ``scale`` is w."""
    cond, uncond = jnp.asarray(cond, jnp.float32), jnp.asarray(uncond, jnp.float32)
    return uncond + scale * (cond - uncond)


def rising(scale: float | Float[Array, ""]) -> Callable[[Float[Array, " b"]], Float[Array, " b"]]:
    """Equation (2) as a function of t."""
    return lambda t: 1 + (scale - 1) * (1 - t)


def rescale(
    guided: Float[Array, "b *o"], cond: Float[Array, "b *o"], phi: float | Float[Array, ""]
) -> Float[Array, "b *o"]:
    """Equation (3), in fp32; ``phi`` is in [0, 1], and the authors use 0.7."""
    guided, cond = jnp.asarray(guided, jnp.float32), jnp.asarray(cond, jnp.float32)
    whole = range(1, guided.ndim)
    ratio = jnp.std(cond, axis=whole, keepdims=True) / jnp.std(guided, axis=whole, keepdims=True)
    return phi * guided * ratio + (1 - phi) * guided


def guided(
    network: Callable[[Data, Float[Array, " b"], Any], Float[Array, "b *o"]],
    cond: PyTree[Array],
    uncond: PyTree[Array] | None,
    scale: Scale | Callable[[Float[Array, " b"]], Float[Array, " b"]],
    phi: float = 0.0,
    split: SplitOutput = lambda output: (output, None),
) -> Denoise:
    """``denoise(x, t)`` from ``network(x, t, conditioning)``, in one call for cond and uncond.

    ``scale`` is w, or a function of t that gives w (``rising``). ``split`` divides an output into
    the part that is guided and the part that is taken from cond (``Process.split_output``).

    cond and uncond are trees of [b, ...] arrays of the same shapes. The two halves of row i are
    neighbors in the doubled batch, so a batch that is sharded over devices needs no resharding.
    ``uncond=None`` evaluates the condition alone.
    """
    if uncond is None:
        return lambda x, t: network(x, t, cond)
    call = paired(network, cond, uncond)

    def denoise(x: Data, t: Float[Array, " b"]) -> Float[Array, "b *o"]:
        return combined(*call(x, t), t, scale, phi, split)

    return denoise


def paired(
    network: Callable[[Data, Float[Array, " b"], Any], PyTree[Array]],
    cond: PyTree[Array],
    uncond: PyTree[Array],
) -> Callable[[Data, Float[Array, " b"]], tuple[Any, Any]]:
    """The network's results for cond and for uncond as a function of x and t, from one call."""
    both = jax.tree.map(_interleave, cond, uncond)

    def call(x: Data, t: Float[Array, " b"]) -> tuple[Any, Any]:
        found = network(_interleave(x, x), _interleave(t, t), both)
        found = jax.tree.map(lambda y: y.reshape(x.shape[0], 2, *y.shape[1:]), found)
        return jax.tree.map(lambda y: y[:, 0], found), jax.tree.map(lambda y: y[:, 1], found)

    return call


def combined(
    cond: Float[Array, "b *o"],
    uncond: Float[Array, "b *o"],
    t: Float[Array, " b"],
    scale: Scale | Callable[[Float[Array, " b"]], Float[Array, " b"]],
    phi: float,
    split: SplitOutput,
) -> Float[Array, "b *o"]:
    """Equations (1) and (3) for two outputs at t; the arguments are those of :func:`guided`."""
    w = scale(t).reshape(-1, *(1,) * (cond.ndim - 1)) if callable(scale) else scale
    (c, rest), (u, _) = split(cond), split(uncond)
    result = guide(c, u, w)
    result = rescale(result, c, phi) if phi else result
    return result if rest is None else jnp.concatenate([result, rest], axis=-1)


def guided_by_image(
    network: Callable[[Data, Float[Array, " b"], Any], Float[Array, "b *o"]],
    conditions: tuple[PyTree[Array], PyTree[Array], PyTree[Array]],
    scale: Scale | Callable[[Float[Array, " b"]], Float[Array, " b"]],
    image_scale: float,
    split: SplitOutput = lambda output: (output, None),
) -> Denoise:
    """``denoise(x, t)`` by equation (4), in one call for the three ``conditions``: both, the image
    alone, none. The other arguments are those of :func:`guided`.
    """
    every = jax.tree.map(_interleave, *conditions)

    def denoise(x: Data, t: Float[Array, " b"]) -> Float[Array, "b *o"]:
        found = network(_interleave(x, x, x), _interleave(t, t, t), every)
        found = found.reshape(x.shape[0], 3, *found.shape[1:])
        (both, rest), (image, _), (none, _) = (split(found[:, i]) for i in range(3))
        w = scale(t).reshape(-1, *(1,) * (both.ndim - 1)) if callable(scale) else scale
        result = guide(image, none, image_scale) + w * (both - image)
        return result if rest is None else jnp.concatenate([result, rest], axis=-1)

    return denoise


def static_clip(x0: Float[Array, "b *d"]) -> Float[Array, "b *d"]:
    """x0 clipped to [-1, 1]."""
    return jnp.clip(x0, -1, 1)


def dynamic_threshold(
    x0: Float[Array, "b *d"], quantile: float = 0.995, limit: float = 0.0
) -> Float[Array, "b *d"]:
    """x0 clipped to +-s and divided by s: the given quantile of |x0| in each row, at least 1 and at
    most ``limit`` (0: no limit).
    """
    size = jnp.quantile(jnp.abs(x0), quantile, axis=tuple(range(1, x0.ndim)), keepdims=True)
    size = jnp.clip(size, 1, limit or None)
    return jnp.clip(x0, -size, size) / size


def _interleave(first: Array, *others: Array) -> Array:
    return jnp.stack([first, *others], axis=1).reshape(-1, *first.shape[1:])
