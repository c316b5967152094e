"""Vector quantization: a latent vector becomes the nearest of K codes (van den Oord et al. 2017).

    id = argmin_k |z - e_k|^2,     z_q = z + stop_gradient(e_id - z)                           (1)

The straight-through z_q has the value of the code and the gradient of z. The commitment loss, the
mean of |z - stop_gradient(e_id)|^2 over all entries, keeps the encoder near its codes.

The codes have no gradient; they follow the encoder by moving averages (appendix A.1 of the paper).
If n_k vectors of a batch have code k, and s_k is their sum,

    N_k <- g N_k + (1 - g) n_k,    m_k <- g m_k + (1 - g) s_k,    e_k = m_k / N_k              (2)

By (2) alone, a code that is nearest to no vector would never be used again. The even share is the
number of the batch's vectors divided by K. A code whose N_k falls below a given fraction of it is
moved to a random vector of the batch, and its N_k is set to the even share. A codebook starts with
N = 0, so the first batch places its codes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Codebook(NamedTuple):
    """The codes e, and N and m of equation (2)."""

    embedding: Float[Array, "k d"]
    count: Float[Array, " k"]
    total: Float[Array, "k d"]


def fresh_codebook(key: jax.Array, codes: int, channels: int) -> Codebook:
    """Random codes, with N = 0 and m = 0."""
    embedding = jax.random.normal(key, (codes, channels))
    return Codebook(embedding, jnp.zeros(codes), jnp.zeros((codes, channels)))


def nearest(embedding: Float[Array, "k d"], z: Float[Array, "*b d"]) -> Int[Array, "*b"]:
    """The number of the code nearest to each vector, in fp32; the lowest number if several are."""
    z = z.astype(jnp.float32)
    # |z|^2 is the same for every code, so it is left out. A bf16 product would confuse neighbors.
    product = jnp.einsum("...d,kd->...k", z, embedding, precision=jax.lax.Precision.HIGHEST)
    return jnp.argmin(jnp.sum(jnp.square(embedding), -1) - 2 * product, axis=-1)


def lookup(embedding: Float[Array, "k d"], ids: Int[Array, "*b"]) -> Float[Array, "*b d"]:
    """The code of each number."""
    return jnp.take(embedding, ids, axis=0)


def straight_through(z: Float[Array, "*b d"], code: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """z_q of equation (1): the value of the code; the gradient passes to z unchanged."""
    return z + jax.lax.stop_gradient(code.astype(z.dtype) - z)


def commitment(z: Float[Array, "*b d"], code: Float[Array, "*b d"]) -> Float[Array, ""]:
    """The commitment loss, a mean square in fp32; only z has a gradient."""
    return jnp.mean(jnp.square(z.astype(jnp.float32) - jax.lax.stop_gradient(code)))


def perplexity(ids: Int[Array, "*b"], codes: int) -> Float[Array, ""]:
    """exp of the entropy of the codes' use: 1 if one code is used, K if all are used equally."""
    share = jnp.bincount(ids.reshape(-1), length=codes) / ids.size
    return jnp.exp(-jnp.sum(jax.scipy.special.xlogy(share, share)))


def follow(
    codebook: Codebook,
    z: Float[Array, "*b d"],
    ids: Int[Array, "*b"],
    key: jax.Array,
    *,
    decay: float,
    dead: float,
) -> tuple[Codebook, Int[Array, ""]]:
    """(the codebook after equation (2) and revival, the number of revived codes).

    ``decay`` is g. A code is revived if its N_k is below ``dead`` times the even share.
    """
    codes, channels = codebook.embedding.shape
    z = jax.lax.stop_gradient(z).astype(jnp.float32).reshape(-1, channels)
    # A matrix product: the sums of a scatter have no fixed order on GPUs.
    member = jax.nn.one_hot(ids.reshape(-1), codes, dtype=jnp.float32)
    sums = jnp.matmul(member.T, z, precision=jax.lax.Precision.HIGHEST)
    count = decay * codebook.count + (1 - decay) * jnp.sum(member, 0)
    total = decay * codebook.total + (1 - decay) * sums
    even = len(z) / codes
    revived = count < dead * even
    target = jnp.take(z, jax.random.randint(key, (codes,), 0, len(z)), axis=0)
    count = jnp.where(revived, even, count)
    total = jnp.where(revived[:, None], even * target, total)
    return Codebook(total / count[:, None], count, total), jnp.sum(revived)
