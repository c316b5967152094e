"""Vector quantisation against torch's distances, its definition's gradients and closed forms."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from emu_jax.nn.quantizer import (
    Codebook,
    commitment,
    follow,
    fresh_codebook,
    lookup,
    nearest,
    perplexity,
    straight_through,
)

CODES, CHANNELS, DECAY = 7, 3, 0.9
KEY = jax.random.key(4)
DRAW = np.random.default_rng(0)
E = DRAW.normal(size=(CODES, CHANNELS)).astype(np.float32)
Z = DRAW.normal(size=(2, 5, 4, CHANNELS)).astype(np.float32)


def by_torch(z):
    distances = torch.cdist(torch.tensor(z.reshape(-1, CHANNELS)), torch.tensor(E))
    return distances.argmin(1).numpy().reshape(z.shape[:-1])


def test_the_nearest_code_is_torchs():
    found = np.asarray(jax.jit(nearest)(E, Z))
    np.testing.assert_array_equal(found, by_torch(Z))
    assert len(np.unique(found)) == CODES
    np.testing.assert_array_equal(lookup(E, found), E[by_torch(Z)])


def test_a_bf16_vector_is_compared_in_fp32():
    """bf16 cannot tell these two codes apart."""
    codes = jnp.array([[1.0, 100.0], [1.0, 100.1]])
    z = jnp.array([[1.0, 100.0]], jnp.bfloat16)
    assert nearest(codes, z)[0] == 0 and nearest(codes[::-1], z)[0] == 1


def test_gradients_pass_the_code_straight_through_and_commitment_pulls_z_alone():
    def loss(z, e):
        code = lookup(e, nearest(e, z))
        return jnp.sum(straight_through(z, code) ** 3), commitment(z, code)

    @jax.jit
    def both(z, e):
        return loss(z, e), jax.jacrev(lambda z, e: jnp.stack(loss(z, e)), (0, 1))(z, e)

    ids = by_torch(Z)
    (value, distance), (to_z, to_e) = both(Z, E)
    np.testing.assert_allclose(value, np.sum(E[ids] ** 3), rtol=1e-4)
    np.testing.assert_allclose(distance, np.mean((Z - E[ids]) ** 2), rtol=1e-5)
    np.testing.assert_allclose(to_z[0], 3 * E[ids] ** 2, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(to_z[1], 2 * (Z - E[ids]) / Z.size, rtol=1e-4, atol=1e-7)
    assert not np.any(to_e)


def test_codes_follow_by_moving_averages():
    """n equal batches leave g^n of what was and give 1 - g^n of the batch's count and sum."""
    count = DRAW.uniform(1, 3, CODES).astype(np.float32)
    start = Codebook(jnp.asarray(E), jnp.asarray(count), jnp.asarray(E * count[:, None]))
    ids, steps, book = by_torch(Z), 3, start
    move = jax.jit(partial(follow, decay=DECAY, dead=0.0))
    for _ in range(steps):
        book, revived = move(book, Z, ids, KEY)
        assert revived == 0
    flat = Z.reshape(-1, CHANNELS)
    n = np.bincount(ids.reshape(-1), minlength=CODES)
    s = np.stack([flat[ids.reshape(-1) == k].sum(0) for k in range(CODES)])
    kept = DECAY**steps
    expected = kept * count + (1 - kept) * n
    sums = kept * E * count[:, None] + (1 - kept) * s
    np.testing.assert_allclose(book.count, expected, rtol=1e-5)
    np.testing.assert_allclose(book.total, sums, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(book.embedding, sums / expected[:, None], rtol=1e-4, atol=1e-5)


def test_dead_codes_move_onto_vectors_of_the_batch_by_the_key():
    """Even use is 40 / 7 vectors a code; what has fallen under half of it is dead."""
    even = 40 / CODES
    count = np.full(CODES, even, np.float32)
    count[[2, 5]] = 0.4 * even
    book = Codebook(jnp.asarray(E), jnp.asarray(count), jnp.asarray(E * count[:, None]))
    ids = np.zeros(Z.shape[:-1], np.int32)  # All vectors go to code 0.
    move = jax.jit(partial(follow, decay=0.99, dead=0.5))
    after, revived = move(book, Z, ids, KEY)
    assert revived == 2
    vectors = Z.reshape(-1, CHANNELS)
    for k in (2, 5):
        near = np.abs(vectors - after.embedding[k]).max(1)
        assert near.min() < 1e-6 and after.count[k] == pytest.approx(even)
    for k in (1, 3, 4, 6):
        np.testing.assert_allclose(after.embedding[k], E[k], rtol=1e-5)
    again, _ = move(book, Z, ids, KEY)
    other, _ = move(book, Z, ids, jax.random.key(5))
    assert np.array_equal(again.embedding, after.embedding)
    assert not np.array_equal(other.embedding, after.embedding)


def test_the_first_batch_places_a_fresh_codebook():
    @jax.jit
    def first(z):
        book = fresh_codebook(KEY, CODES, CHANNELS)
        return follow(book, z, nearest(book.embedding, z), KEY, decay=0.99, dead=0.03)

    after, revived = first(50 + Z)  # So far off that one code is nearest to all of it.
    assert revived == CODES - 1 and np.all(np.abs(after.embedding - 50) < 5)


def test_perplexity_counts_the_codes_in_use():
    of = jax.jit(lambda ids: perplexity(ids, 6))
    for ids, expected in (([1] * 6, 1), (range(6), 6), ([0, 0, 0, 3, 3, 3], 2)):
        assert of(np.array(ids)) == pytest.approx(expected, rel=1e-5)
