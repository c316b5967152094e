"""The low-resolution condition against torch's resizing and the closed form of its noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from emu_jax.errors import UserError
from emu_jax.tasks.upsampling import LowResolution

KEY = jax.random.key(3)
X = np.random.default_rng(0).standard_normal((2, 8, 12, 3), np.float32)


def torched(x):
    return torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("factor", [2, 4])
def test_shrinking_and_enlarging_equal_torchs(factor):
    low = LowResolution(factor)
    small = low.shrink(X)
    want = F.avg_pool2d(torched(X), factor)
    np.testing.assert_allclose(torched(small), want, atol=1e-6)
    want = F.interpolate(want, scale_factor=factor, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(torched(low.enlarge(small)), want, atol=1e-5)


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_noise_of_a_level_has_its_mean_and_variance(level):
    low = LowResolution(2)
    z = jnp.full((64, 16, 16, 3), 0.7)
    seen, told = low.augment(KEY, z, level)
    assert seen.shape == (64, 32, 32, 3)
    np.testing.assert_allclose(told, 1000 * level)
    n = seen.size
    sigma = np.sin(np.pi * level / 2)
    np.testing.assert_allclose(seen.mean(), 0.7 * np.cos(np.pi * level / 2), atol=4 / n**0.5)
    np.testing.assert_allclose(seen.std(), sigma, atol=4 / n**0.5)


def test_a_rows_noise_is_its_own_keys():
    low = LowResolution(2)
    keys = jax.random.split(KEY, 2)
    both, _ = low.augment(keys, X, 0.5)
    alone, _ = low.augment(keys[1:], X[1:], 0.5)
    np.testing.assert_array_equal(both[1:], alone)


def test_levels_in_training_are_all_and_told():
    low = LowResolution(2)
    seen, told = low.example(KEY, jnp.zeros((400, 8, 8, 3)))
    # Of nothing but noise: its deviation is the level's sine, row by row.
    np.testing.assert_allclose(
        seen.std((1, 2, 3)), np.sin(np.pi / 2 * told / 1000), atol=0.25, rtol=0.25
    )
    assert told.min() < 50 and told.max() > 950 and abs(told.mean() - 500) < 60


def test_windows_are_parts_of_their_pictures_everywhere():
    x = jnp.arange(8 * 12, dtype=jnp.float32).reshape(1, 8, 12, 1).repeat(3, -1).repeat(300, 0)
    windows = LowResolution(2, crop=4).window(KEY, x)
    assert windows.shape == (300, 4, 4, 3)
    corners = {(int(c) // 12, int(c) % 12) for c in windows[:, 0, 0, 0]}
    assert corners == {(i, j) for i in range(5) for j in range(9)}
    first = windows[0, :, :, 0]
    np.testing.assert_array_equal(first - first[0, 0], x[0, :4, :4, 0])
    np.testing.assert_array_equal(LowResolution(2).window(KEY, x), x)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LowResolution(1), "factor is 2 or more, not 1"),
        (lambda: LowResolution(2, level=1.5), "from 0 to 1, not 1.5"),
        (lambda: LowResolution(4, crop=6), "6 pixels is no multiple of 4"),
        (lambda: LowResolution(3).shrink(X), "8 x 12 do not shrink 3-fold"),
        (lambda: LowResolution(2, crop=10).window(KEY, X), "do not fit pictures of 8x12"),
    ],
)
def test_what_does_not_fit_is_refused(make, words):
    with pytest.raises(UserError, match=words):
        make()
