"""Random numbers for a batch, from one key or from one key per row.

With one key per row ([b] keys) the noise of a row depends on its own key alone: the same prompt and
seed give the same image whatever else is in the batch, and on any number of devices. Rows with
equal keys get equal noise.
"""

from collections.abc import Callable, Sequence

import jax
from jaxtyping import Array, Float, Integer, Key, UInt32

RowKeys = Key[Array, " b"] | UInt32[Array, "b 2"]
Keys = Key[Array, ""] | UInt32[Array, "2"] | RowKeys
"""One key for a batch, or one per row."""


def normal(key: Keys, shape: Sequence[int]) -> Float[Array, "..."]:
    """fp32 N(0, 1) of ``shape``; with [b] keys, row i (of shape[0] = b) comes from key i."""
    return _draw(jax.random.normal, key, shape)


def uniform(key: Keys, shape: Sequence[int]) -> Float[Array, "..."]:
    """As :func:`normal`, uniform in [0, 1)."""
    return _draw(jax.random.uniform, key, shape)


def gumbel(key: Keys, shape: Sequence[int]) -> Float[Array, "..."]:
    """As :func:`normal`, Gumbel(0, 1): argmax(logits + gumbel) is a sample of softmax(logits)."""
    return _draw(jax.random.gumbel, key, shape)


def fold_in(key: Keys, data: int | Integer[Array, ""]) -> Keys:
    """``jax.random.fold_in`` for one key or for [b] keys."""
    if not _per_row(key):
        return jax.random.fold_in(key, data)
    return jax.vmap(lambda row: jax.random.fold_in(row, data))(key)


def split(key: Keys, number: int) -> tuple[Keys, ...]:
    """``jax.random.split`` for one key or for [b] keys: ``number`` results of the key's shape."""
    if not _per_row(key):
        return tuple(jax.random.split(key, number))
    return tuple(jax.vmap(lambda row: jax.random.split(row, number), out_axes=1)(key))


def _draw(distribution: Callable, key: Keys, shape: Sequence[int]) -> Float[Array, "..."]:
    if not _per_row(key):
        return distribution(key, tuple(shape))
    return jax.vmap(lambda row: distribution(row, tuple(shape[1:])))(key)


def _per_row(key: Keys) -> bool:
    typed = jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)
    return key.ndim == (1 if typed else 2)
