"""Random numbers for a batch, from one key or from one key a picture.

With one key for each picture ([b] keys) a row's noise depends on its own key alone: the same prompt
and seed give the same picture whatever else is in the batch, and on however many devices.
"""

from collections.abc import Callable, Sequence

import jax
from jaxtyping import Array, Float


def normal(key: jax.Array, shape: Sequence[int]) -> Float[Array, "..."]:
    """fp32 N(0, 1) of ``shape``; with [b] keys, row i (of shape[0] = b) comes from key i."""
    return _draw(jax.random.normal, key, shape)


def gumbel(key: jax.Array, shape: Sequence[int]) -> Float[Array, "..."]:
    """The same of Gumbel(0, 1): added to logits, the greatest is a draw from their softmax."""
    return _draw(jax.random.gumbel, key, shape)


def fold_in(key: jax.Array, data: int | jax.Array) -> jax.Array:
    """``jax.random.fold_in`` for one key or for [b] keys."""
    if not _one_a_row(key):
        return jax.random.fold_in(key, data)
    return jax.vmap(lambda row: jax.random.fold_in(row, data))(key)


def _draw(kind: Callable, key: jax.Array, shape: Sequence[int]) -> Float[Array, "..."]:
    if not _one_a_row(key):
        return kind(key, tuple(shape))
    return jax.vmap(lambda row: kind(row, tuple(shape[1:])))(key)


def _one_a_row(key: jax.Array) -> bool:
    typed = jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)
    return key.ndim == (1 if typed else 2)
