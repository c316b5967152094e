"""Corruption by both processes, with one key for the batch and with one key per row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.process.gaussian import GaussianProcess
from emu_jax.process.masking import MaskingProcess
from emu_jax.process.schedules import Cosine, Discrete

KEY = jax.random.key(11)
IMAGES = jax.random.normal(jax.random.key(1), (6, 4, 4, 2))
TOKENS = jax.random.randint(jax.random.key(2), (6, 4, 6), 0, 7)
CASES = {
    "cosine": (
        GaussianProcess(Cosine(), "v", noise_offset=0.5, time_density="logit_normal"),
        IMAGES,
    ),
    "discrete": (GaussianProcess(Discrete(), "eps", "index"), IMAGES),
    "masking": (MaskingProcess(7), TOKENS),
}


def noise(process, corrupted):
    """What is random in x: eps, or which tokens are masked."""
    if isinstance(process, MaskingProcess):
        return corrupted.x == process.mask
    return process.predict(corrupted.target, corrupted.x, corrupted.t).eps


@pytest.mark.parametrize("case", CASES)
def test_rows_with_equal_keys_share_time_and_noise(case):
    """Rows 0, 1, 2 and 3, 4, 5 are pairs: of the same keys, and once of the same data too."""
    process, x0 = CASES[case]
    keys = jnp.tile(jax.random.split(KEY, 3), 2)
    for data in (x0, jnp.concatenate([x0[:3], x0[:3]])):
        got = process.corrupt(keys, data)
        np.testing.assert_array_equal(got.t[:3], got.t[3:])
        assert len(np.unique(got.t)) == 3
        found = np.asarray(noise(process, got))
        np.testing.assert_allclose(found[:3], found[3:], atol=1e-4)
        for i, j in ((0, 1), (1, 2), (0, 2)):
            assert np.abs(found[i] ^ found[j] if found.dtype == bool else found[i] - found[j]).any()
    for field in got:
        np.testing.assert_array_equal(field[:3], field[3:])


@pytest.mark.parametrize("case", CASES)
def test_a_row_with_its_own_key_does_not_depend_on_the_others(case):
    process, x0 = CASES[case]
    keys = jax.random.split(KEY, len(x0))
    whole, part = process.corrupt(keys, x0), process.corrupt(keys[2:4], x0[2:4])
    moved = process.corrupt(keys[::-1], x0[::-1])
    for all_rows, some, reverse in zip(whole, part, moved, strict=True):
        np.testing.assert_array_equal(all_rows[2:4], some)
        np.testing.assert_array_equal(all_rows[::-1], reverse)


def test_the_noise_of_a_row_is_that_of_its_key():
    process, x0 = CASES["cosine"]
    keys = jax.random.split(KEY, len(x0))
    got = process.corrupt(keys, x0)
    for i, key in enumerate(keys):
        key_t, key_eps, key_offset = jax.random.split(key, 3)
        u = jax.nn.sigmoid(jax.random.normal(key_t))
        np.testing.assert_allclose(got.t[i], 1e-3 + (1 - 1e-3) * u, rtol=1e-6)
        eps = jax.random.normal(key_eps, x0.shape[1:])
        eps += 0.5 * jax.random.normal(key_offset, (1, 1, x0.shape[-1]))
        alpha, sigma = process.schedule.alpha(got.t[i]), process.schedule.sigma(got.t[i])
        np.testing.assert_allclose(got.x[i], alpha * x0[i] + sigma * eps, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_a_given_time_is_kept(case):
    process, x0 = CASES[case]
    t = jnp.linspace(0.2, 0.9, len(x0))
    for key in (KEY, jax.random.split(KEY, len(x0))):
        np.testing.assert_array_equal(process.corrupt(key, x0, t).t, t)
        np.testing.assert_array_equal(process.corrupt(key, x0, 0.5).t, np.full(len(x0), 0.5))


# t and x[:, 0, 0] (of tokens x[:2, 0]) of the first rows with KEY, before keys per row existed.
FIGURES = {
    "cosine": (
        [0.42372196912765503, 0.3611874282360077, 0.8824272751808167],
        [[0.16303086280822754, -2.4568490982055664], [0.9903833866119385, 1.4612685441970825],
         [-0.03538016229867935, 1.6606887578964233]],
    ),
    "discrete": (
        [0.3790000081062317, 0.2840000092983246, 0.9790000319480896],
        [[0.10108751058578491, -2.8204424381256104], [0.40163731575012207, 1.1955304145812988],
         [-0.22269617021083832, 1.2264347076416016]],
    ),
    "masking": (
        [0.37832772731781006, 0.2833268642425537, 0.9780206680297852],
        [[4, 7, 7, 7, 4, 7], [4, 7, 7, 4, 5, 7]],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_one_key_gives_the_figures_that_trainings_are_reproduced_with(case):
    process, x0 = CASES[case]
    got, (t, x) = process.corrupt(KEY, x0), FIGURES[case]
    np.testing.assert_allclose(got.t[:3], t, rtol=1e-6)
    found = got.x[:2, 0] if case == "masking" else got.x[:3, 0, 0]
    np.testing.assert_allclose(found, x, rtol=1e-6)
