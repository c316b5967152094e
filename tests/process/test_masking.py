"""The masking process by its formulas: how many tokens, which, and what they cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from emu_jax.process.masking import MaskingProcess

CODES, KEY = 5, jax.random.key(2)
PROCESS = MaskingProcess(CODES)
corrupt, diffuse = jax.jit(PROCESS.corrupt), jax.jit(PROCESS.sample_forward)


def tokens(rows, *shape):
    return np.random.default_rng(0).integers(0, CODES, (rows, *shape), np.int32)


def test_training_masks_muses_share_of_each_row():
    t = np.linspace(0, 1, 9)
    x0 = tokens(9, 4, 6)
    made = corrupt(KEY, x0, t)
    count = np.sum(np.asarray(made.x) == CODES, axis=(1, 2))
    np.testing.assert_array_equal(count, np.maximum(1, np.round(24 * np.cos(np.pi / 2 * (1 - t)))))
    np.testing.assert_array_equal(np.where(made.x == CODES, x0, made.x), x0)
    np.testing.assert_array_equal(made.target, x0)


def test_times_are_uniform_and_any_place_is_masked():
    """The mean rate is 2/pi at every place; 4,000 rows have a standard error under 0.01."""
    made = corrupt(KEY, tokens(4000, 2, 3))
    share = np.mean(made.x == CODES, axis=0)
    np.testing.assert_allclose(share, 2 / np.pi, atol=0.03)
    np.testing.assert_allclose(np.quantile(made.t, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.03)


def test_the_loss_is_torchs_cross_entropy_of_masked_tokens():
    x0 = tokens(3, 2, 4)
    made = corrupt(KEY, x0, np.array([0.2, 0.5, 1.0]))
    logits = np.random.default_rng(0).normal(size=(*x0.shape, CODES)).astype(np.float32)
    each = torch.nn.functional.cross_entropy(
        torch.tensor(logits).reshape(-1, CODES),
        torch.tensor(x0).reshape(-1).long(),
        reduction="none",
    )
    masked = np.asarray(made.x) == CODES
    sums = (each.numpy().reshape(x0.shape) * masked).sum((1, 2))

    @jax.jit
    def both(logits):
        return PROCESS.loss(logits, made), jax.grad(lambda y: jnp.sum(PROCESS.loss(y, made)))(
            logits
        )

    ours, slope = both(logits)
    np.testing.assert_allclose(ours, sums / (8 * 2 / np.pi), rtol=1e-4)
    assert np.all(slope[~masked] == 0) and np.all(np.any(slope[masked] != 0, -1))


@pytest.mark.parametrize("steps", [2, 3, 12, 24])
def test_as_many_are_left_as_the_cosine_says(steps):
    """floor(N cos(pi/2 (i+1)/T)): 3 steps of 16 leave exactly 8 after the second."""
    for n in (16, 256, 4096):
        after = np.arange(1, steps + 1)
        # The cosine of a right angle is not quite 0 in floating point, nor that of pi/3 a half.
        expected = np.floor(n * np.cos(np.pi / 2 * after / steps) + 1e-9)
        found = PROCESS.masked_count(n, jnp.float32(1 - after / steps))
        np.testing.assert_array_equal(found, expected)
    assert PROCESS.masked_count(16, 1.0) == 16


def test_a_picture_masked_up_to_t_keeps_the_rest_row_by_row():
    x0, keys = tokens(4, 3, 3), jax.random.split(KEY, 4)
    x = diffuse(keys, x0, 0.5)
    assert np.all(np.sum(np.asarray(x) == CODES, axis=(1, 2)) == 6)
    np.testing.assert_array_equal(np.where(x == CODES, x0, x), x0)
    np.testing.assert_array_equal(diffuse(keys[2:3], x0[2:3], 0.5)[0], x[2])
    assert np.all(PROCESS.prior(KEY, (2, 3)) == CODES)
    np.testing.assert_array_equal(PROCESS.known_at(KEY, jnp.asarray(x0), jnp.float32(1)), x0)
