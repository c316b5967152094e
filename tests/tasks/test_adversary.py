"""The losses of a reward that learns against a generator, with a reward of known scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.nn.functional import Network
from emu_jax.tasks.adversary import Adversary


class Brightness:
    """The score is ``gain`` times the mean value of an image, plus ``bias``."""

    def score(self, params, image, text):
        means = jnp.mean(image, (1, 2, 3))
        return jnp.stack([jnp.zeros_like(means), params["gain"] * means + params["bias"]], 1)


def adversary(**options):
    network = Network(lambda rngs: None)  # the reward above has none
    return Adversary(Brightness(), network, output=1, **options)


PARAMS = {"gain": jnp.float32(2.0), "bias": jnp.float32(0.3)}
DRAWN = jnp.full((3, 4, 4, 3), -0.5).at[0].set(-4.0)  # the first is clipped to -1
REAL = jnp.full((3, 4, 4, 3), 0.25).at[1].set(-0.75)


def test_the_generator_is_asked_for_a_higher_raw_score():
    loss, slope = jax.value_and_grad(lambda x: adversary().loss(PARAMS, x, {}))(DRAWN)
    assert float(loss) == pytest.approx(-(2 * (-1 - 0.5 - 0.5) / 3 + 0.3))
    assert not slope[0].any()  # outside the range of pixels
    np.testing.assert_allclose(slope[1:], -2 / (3 * 4 * 4 * 3), rtol=1e-5)


def test_its_own_loss_is_the_cross_entropy_of_real_and_drawn_images():
    scores = dict(drawn=np.array([-1.7, -0.7, -0.7]), real=np.array([0.8, -1.2, 0.8]))
    chance = {name: 1 / (1 + np.exp(-x)) for name, x in scores.items()}
    expected = -np.mean(np.log(chance["real"]) + np.log(1 - chance["drawn"]))
    loss, logged = adversary().own_loss(PARAMS, DRAWN, REAL, {})
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert {name: float(x) for name, x in logged.items()} == pytest.approx(
        dict(real=scores["real"].mean(), drawn=scores["drawn"].mean(), accuracy=5 / 6)
    )


def test_the_penalty_is_the_slope_at_real_images():
    plain, _ = adversary().own_loss(PARAMS, DRAWN, REAL, {})
    loss, logged = adversary(r1=10.0).own_loss(PARAMS, DRAWN, REAL, {})
    slope = 2.0 / (4 * 4 * 3)  # of every value
    assert float(logged["r1"]) == pytest.approx(4 * 4 * 3 * slope**2, rel=1e-5)
    assert float(loss - plain) == pytest.approx(5 * 4 * 4 * 3 * slope**2, rel=1e-4)
    # It has a gradient in the parameters: d/dgain of gain^2 / 48.
    gradient = jax.grad(
        lambda params: adversary(r1=10.0).own_loss(params, DRAWN, REAL, {})[1]["r1"]
    )(PARAMS)
    assert float(gradient["gain"]) == pytest.approx(2 * 2.0 / 48, rel=1e-4)
