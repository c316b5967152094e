"""Vector quantisation: a latent vector becomes the nearest of K codes (van den Oord et al. 2017).

    id = argmin_k |z - e_k|^2,     z_q = z + stop_gradient(e_id - z)                           (1)

The straight-through z_q has the code's value and z's gradient. What keeps the encoder near its
codes is the commitment, the mean of |z - stop_gradient(e_id)|^2 over all entries.

The codes follow the encoder without a gradient (the same paper's appendix A.1): with n_k vectors of
a batch at code k, and s_k their sum,

    N_k <- g N_k + (1 - g) n_k,    m_k <- g m_k + (1 - g) s_k,    e_k = m_k / N_k              (2)

A code that no vector is near is lost to (2). One whose N_k falls under a share of what an evenly
used code would have, the batch's vectors over K, is put onto a vector of the batch drawn at random,
with N_k as if it were evenly used. A codebook starts with N = 0, so that its first batch places it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Codebook(NamedTuple):
    """The codes e, and N and m of (2)."""

    embedding: Float[Array, "k d"]
    count: Float[Array, " k"]
    total: Float[Array, "k d"]


def fresh_codebook(key: jax.Array, codes: int, channels: int) -> Codebook:
    """Random codes that no vector has been counted for."""
    embedding = jax.random.normal(key, (codes, channels))
    return Codebook(embedding, jnp.zeros(codes), jnp.zeros((codes, channels)))


def nearest(embedding: Float[Array, "k d"], z: Float[Array, "*b d"]) -> Int[Array, "*b"]:
    """The number of each vector's nearest code, in fp32; of equally near ones the lowest."""
    z = z.astype(jnp.float32)
    # |z|^2 is the same for every code. A bf16 product would mistake neighbours for one another.
    product = jnp.einsum("...d,kd->...k", z, embedding, precision=jax.lax.Precision.HIGHEST)
    return jnp.argmin(jnp.sum(jnp.square(embedding), -1) - 2 * product, axis=-1)


def lookup(embedding: Float[Array, "k d"], ids: Int[Array, "*b"]) -> Float[Array, "*b d"]:
    """Each number's code."""
    return jnp.take(embedding, ids, axis=0)


def straight_through(z: Float[Array, "*b d"], code: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Equation (1): the code's value, and the gradient goes to z as if there were no code."""
    return z + jax.lax.stop_gradient(code.astype(z.dtype) - z)


def commitment(z: Float[Array, "*b d"], code: Float[Array, "*b d"]) -> Float[Array, ""]:
    """The mean square distance to the codes, in fp32; its gradient moves z alone."""
    return jnp.mean(jnp.square(z.astype(jnp.float32) - jax.lax.stop_gradient(code)))


def perplexity(ids: Int[Array, "*b"], codes: int) -> Float[Array, ""]:
    """exp of the entropy of the codes' use: 1 where one is used alone, K where all are alike."""
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
    """(the codebook after (2) with g = ``decay`` and revival, how many codes were revived).

    A code is revived where N_k is under ``dead`` times an even share.
    """
    codes, channels = codebook.embedding.shape
    z = jax.lax.stop_gradient(z).astype(jnp.float32).reshape(-1, channels)
    # A product and not a scatter, whose sums have no fixed order on GPUs.
    member = jax.nn.one_hot(ids.reshape(-1), codes, dtype=jnp.float32)
    sums = jnp.matmul(member.T, z, precision=jax.lax.Precision.HIGHEST)
    count = decay * codebook.count + (1 - decay) * jnp.sum(member, 0)
    total = decay * codebook.total + (1 - decay) * sums
    even = len(z) / codes
    lost = count < dead * even
    there = jnp.take(z, jax.random.randint(key, (codes,), 0, len(z)), axis=0)
    count = jnp.where(lost, even, count)
    total = jnp.where(lost[:, None], even * there, total)
    return Codebook(total / count[:, None], count, total), jnp.sum(lost)
