"""One key a row makes a row independent of its neighbours."""

import jax
import numpy as np
import pytest

from emu_jax.process.noise import fold_in, normal


@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey])
def test_one_key_or_one_key_a_row(make):
    key = make(3)
    np.testing.assert_array_equal(normal(key, (4, 2)), jax.random.normal(key, (4, 2)))
    keys = jax.random.split(key, 4)
    rows = normal(keys, (4, 2))
    for i in range(4):
        np.testing.assert_array_equal(rows[i], jax.random.normal(keys[i], (2,)))
    np.testing.assert_array_equal(normal(keys[2:], (2, 2)), rows[2:])
    assert np.abs(rows[0] - rows[1]).max() > 0.1


def test_fold_in_folds_every_key():
    keys = jax.random.split(jax.random.key(0), 3)
    folded = jax.random.key_data(fold_in(keys, 7))
    np.testing.assert_array_equal(folded[1], jax.random.key_data(jax.random.fold_in(keys[1], 7)))
    one = jax.random.key_data(fold_in(keys[0], 7))
    np.testing.assert_array_equal(one, folded[0])
