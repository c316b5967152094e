"""What a reward asks of images, and how images become a reward's input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from emu_jax.evaluation import preprocessing
from emu_jax.nn import resizing
from emu_jax.tasks.rewards import ALPHA, DEVIATION, MEAN, Hinge

STANDARD = {
    MEAN: jnp.array([0.5, 0.0]),
    DEVIATION: jnp.array([0.25, 1.0]),
    ALPHA: jnp.array([1.0, jnp.nan]),
}


class Redness:
    """Twice the mean red level, and nothing."""

    def score(self, params, image, text):
        red = 2 * image[..., 0].mean((1, 2))
        return jnp.stack([red, 0 * red], -1)


def test_images_are_to_reach_alpha_and_no_more():
    levels = np.array([0.1, 0.9, 0.25])  # scores 0.2, 1.8 and 0.5: standardized -1.2, 5.2 and 0
    image = jnp.broadcast_to(jnp.asarray(levels, jnp.float32)[:, None, None, None], (3, 4, 4, 3))
    hinge = Hinge(Redness())
    value, gradient = jax.value_and_grad(lambda x: hinge.loss(STANDARD, x, {}))(image)
    assert float(value) == pytest.approx((2.2 + 0 + 1) / 3, rel=1e-5)
    expected = np.zeros((3, 4, 4, 3))
    expected[[0, 2], ..., 0] = -2 / 16 / 0.25 / 3
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)
    higher = Hinge(Redness(), alpha=6.0)  # the stored one is not read
    assert float(higher.loss(STANDARD, image, {})) == pytest.approx((7.2 + 0.8 + 6) / 3, rel=1e-5)
    twice = Hinge(Redness(), alpha_scale=6.0)  # of the stored one, which is 1
    assert float(twice.loss(STANDARD, image, {})) == float(higher.loss(STANDARD, image, {}))
    assert float(Hinge(Redness(), output=1, alpha=0.5).loss(STANDARD, image, {})) == 0.5


def test_what_is_no_pixel_has_no_gradient():
    image = jnp.array([-1.5, 0.0]).reshape(2, 1, 1, 1) * jnp.ones((2, 4, 4, 3))
    gradient = jax.grad(lambda x: Hinge(Redness(), alpha=9.0).loss(STANDARD, x, {}))(image)
    assert not gradient[0].any() and gradient[1, ..., 0].all()


@pytest.mark.parametrize("shape", [(40, 61), (61, 40), (10, 13), (24, 50)])
def test_images_are_resized_as_metrics_do_it(shape):
    """Metrics that crop round to 8 bits; PIL's resizing of floats does not."""
    smooth = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    image = np.asarray(Image.fromarray(smooth).resize(shape[::-1]))
    x = jnp.asarray(image[None], jnp.float32)
    h, w = (24, int(24 * shape[1] / shape[0])) if shape[0] <= shape[1] else (
        int(24 * shape[0] / shape[1]), 24
    )  # fmt: skip
    channels = [Image.fromarray(c) for c in np.moveaxis(image.astype(np.float32), -1, 0)]
    whole = [np.asarray(c.resize((w, h), Image.Resampling.BICUBIC)) for c in channels]
    rounded = np.clip(np.rint(np.stack(whole, -1)), 0, 255).astype(np.uint8)
    crop = preprocessing.cropped([rounded], 24)[0]  # of the right size: only cut out
    found = resizing.cropped(x, 24)[0]
    np.testing.assert_allclose(np.clip(found, 0, 255), crop, atol=0.51)
    found = resizing.padded(x, 24, 0.0)
    np.testing.assert_allclose(found, preprocessing.padded([image], 24), atol=1e-2)
    same = resizing.cropped(x, min(shape))
    top, left = (round((n - min(shape)) / 2) for n in shape)
    square = image[top : top + min(shape), left : left + min(shape)]
    np.testing.assert_array_equal(same[0], square)
