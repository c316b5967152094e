import numpy as np
import pytest

from emu_jax.errors import UserError
from emu_jax.evaluation.reconstruction import psnr, ssim


@pytest.fixture
def pair():
    random = np.random.default_rng(0)
    a = random.integers(0, 256, (2, 13, 15, 3), np.uint8)
    b = np.clip(a + random.integers(-40, 41, a.shape), 0, 255).astype(np.uint8)
    return a, b


def test_psnr_of_a_known_error():
    a = np.full((2, 4, 4, 3), 100, np.uint8)
    b = a.copy()
    b[0] += 51  # a fifth of the range: 10 log10 25
    np.testing.assert_allclose(psnr(a, b), [10 * np.log10(25), 100])


def test_ssim_is_wangs_formula_in_every_whole_window(pair):
    """The definition, window by window, without any filter."""
    a, b = (images / 255 for images in pair)
    offset = np.arange(-5, 6)
    weights = np.exp(-(offset[:, None] ** 2 + offset**2) / (2 * 1.5**2))
    weights = (weights / weights.sum())[..., None]
    for i in range(2):
        values = []
        for y in range(13 - 10):
            for x in range(15 - 10):
                p, q = a[i, y : y + 11, x : x + 11], b[i, y : y + 11, x : x + 11]
                mp, mq = (weights * p).sum((0, 1)), (weights * q).sum((0, 1))
                vp, vq = (
                    (weights * (p - mp) ** 2).sum((0, 1)),
                    (weights * (q - mq) ** 2).sum((0, 1)),
                )
                cov = (weights * (p - mp) * (q - mq)).sum((0, 1))
                luminance = (2 * mp * mq + 1e-4) / (mp**2 + mq**2 + 1e-4)
                values.append(luminance * (2 * cov + 9e-4) / (vp + vq + 9e-4))
        assert ssim(*pair)[i] == pytest.approx(np.mean(values), abs=1e-9)


def test_equal_pictures_are_alike_and_others_less(pair):
    a, b = pair
    np.testing.assert_allclose(ssim(a, a), 1)
    assert (ssim(a, b) < 0.999).all()
    np.testing.assert_allclose(ssim(a, b), ssim(b, a))


@pytest.mark.usefixtures("unchecked_arrays")
@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (np.zeros((1, 12, 12, 3), np.uint8), np.zeros((2, 12, 12, 3), np.uint8), "two uint8"),
        (np.zeros((1, 12, 12, 3)), np.zeros((1, 12, 12, 3)), "float64"),
        (np.zeros((1, 10, 12, 3), np.uint8), np.zeros((1, 10, 12, 3), np.uint8), "10 x 12"),
    ],
)
def test_what_cannot_be_compared_is_said(a, b, words):
    with pytest.raises(UserError, match=words):
        ssim(a, b)
