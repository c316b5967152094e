"""What preferences teach a reward: the loss, what validation counts, what standardizes."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.nn.conditioner import Encoded
from emu_jax.tasks.base import Context
from emu_jax.tasks.preferences import Preferences, compared
from emu_jax.tasks.rewards import ALPHA, DEVIATION, MEAN

KEY = jax.random.key(0)
DIMENSIONS = ("color", "layout")


class Levels:
    """The score of an image is its red level, and with a second output its green one."""

    def __init__(self, outputs):
        self.outputs = outputs

    def score(self, params, image, text):
        return 127.5 * (image[:, 0, 0, : self.outputs] + 1)


def make(**options):
    encoder = SimpleNamespace(
        apply=lambda params, ids, mask: Encoded(jnp.zeros((*ids.shape, 1)), mask)
    )
    return Preferences(
        reward=Levels(2 if options.get("separate") else 1),
        network=None,
        encoders={"words": encoder},
        groups={},
        frozen={},
        **options,
    )


def rows(first, second, votes, dimensions=None, valid=None):
    """Pairs of images of these (red, green) levels."""

    def images(levels):
        pixels = np.zeros((len(levels), 2, 2, 3), np.uint8)
        pixels[..., :2] = np.array(levels, np.uint8)[:, None, None]
        return jnp.asarray(pixels)

    n = len(votes)
    columns = {name: jnp.array(x)[:, None] for name, x in zip(
        ("votes", "votes_other"), np.array(votes).T, strict=True
    )}  # fmt: skip
    columns["dimension"] = jnp.array(dimensions or [0] * n)[:, None]
    return {
        "image": images(first),
        "further": {"other": images(second)},
        "columns": columns,
        "tokens": {"words": {"ids": jnp.zeros((n, 3), int), "mask": jnp.ones((n, 3), bool)}},
        "valid": jnp.array(valid or [True] * n),
    }


def context(rows, state=None):
    return Context({}, {"words": {}}, state or {}, {"train": rows}, KEY)


def test_the_loss_is_that_of_bradley_and_terry():
    scores = jnp.array([[2.0, 0.5], [0.5, 2.0], [1.0, 1.5], [1.0, 1.5]])
    losses, right = compared(scores, jnp.array([1.0, 1.0, 0.5, 0.8]))
    sigma = 1 / (1 + np.exp(-np.array([1.5, -1.5, -0.5, -0.5])))
    p = np.array([1, 1, 0.5, 0.8])
    np.testing.assert_allclose(losses, -p * np.log(sigma) - (1 - p) * np.log(1 - sigma), rtol=1e-5)
    assert right.tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    ("votes", "expected"),
    [("majority", [1, 0, 0.5, 0.5]), ("share", [0.8, 0.4, 0.5, 0.5]), ("none", [1, 1, 1, 1])],
)
def test_votes_decide_which_image_is_preferred(votes, expected):
    batch = rows([(9, 0)] * 4, [(4, 0)] * 4, [(4, 1), (2, 3), (2, 2), (0, 0)])
    np.testing.assert_allclose(make(votes=votes).preferred(batch), expected, rtol=1e-6)


def test_validation_counts_pairs_by_dimension():
    task = make(dimensions=DIMENSIONS, dimension="layout")
    levels = [(9, 0), (9, 0), (4, 0), (9, 0), (9, 0), (9, 0)]
    others = [(4, 0), (4, 0), (9, 0), (4, 0), (4, 0), (4, 0)]
    votes = [(5, 0), (1, 4), (0, 5), (2, 2), (5, 0), (5, 0)]
    batch = rows(levels, others, votes, [0, 0, 1, 1, 1, 1], [True] * 5 + [False])
    found = {name: [float(x) for x in pair] for name, pair in task.validate(context(batch)).items()}
    assert found["accuracy_color"] == [1, 2]  # the second pair is wrong
    assert found["accuracy_layout"] == found["accuracy"] == [2, 2]  # without tie and padding
    losses, _ = compared(jnp.array([[4.0, 9.0], [9, 4], [9, 4]]), jnp.array([0.0, 0.5, 1.0]))
    assert found["loss"] == pytest.approx([float(losses.sum()), 3], rel=1e-5)


def test_the_whole_loss_is_of_every_row_and_of_its_own_output():
    task = make(dimensions=DIMENSIONS, separate=True)
    batch = rows([(9, 1), (9, 3)], [(8, 5), (2, 4)], [(5, 0), (5, 0)], [0, 1])
    found = task.loss("reward", context(batch))
    losses, _ = compared(jnp.array([[9.0, 8.0], [3.0, 4.0]]), jnp.ones(2))
    assert float(found.value) == pytest.approx(float(losses.mean()), rel=1e-5)
    assert float(found.metrics["accuracy"]) == 0.5
    # Each pair is a tie by the other output: -log sigma(d) / 2 - log sigma(-d) / 2.
    whole = make(dimensions=DIMENSIONS, separate=True, indifference=2.0)
    apart = np.array([1.0 - 5, 9.0 - 2])
    ties = np.mean(np.log(2 * np.cosh(apart / 2)))
    more = float(whole.loss("reward", context(batch)).value - found.value)
    assert more == pytest.approx(2 * ties, rel=1e-5)


@pytest.mark.parametrize("separate", [False, True])
def test_standards_are_those_of_all_validation_images_of_the_dimension(separate):
    task = make(dimensions=DIMENSIONS, **(dict(separate=True) if separate else {}))
    task_state = {MEAN: jnp.zeros(1 + separate), DEVIATION: jnp.ones(1 + separate)}
    task_state[ALPHA] = jnp.full(1 + separate, jnp.nan)
    draws = np.random.default_rng(0)
    levels = draws.integers(0, 256, (2, 2, 5, 2))  # batch, image or other, pair, channel
    votes = draws.integers(0, 6, (2, 5, 2))
    votes[0, 0] = 2, 2
    dimensions = draws.integers(0, 2, (2, 5))
    valid = np.array([[True] * 5, [True, True, True, False, False]])
    batches = [
        {"train": rows(*levels[i], votes[i], dimensions[i].tolist(), valid[i].tolist())}
        for i in range(2)
    ]
    empty = context({}, task_state)._replace(batch={})
    found = task.finish(empty, iter(()), {"a": iter(batches[:1]), "b": iter(batches[1:])})
    for i in range(1 + separate):
        own = valid & ((dimensions == i) if separate else True)
        scores = np.moveaxis(levels, 1, 2)[own][..., i].astype(float)
        ahead = np.sign(votes[own][:, 0] - votes[own][:, 1])
        chosen = np.concatenate([scores[ahead > 0, 0], scores[ahead < 0, 1]])
        assert found[MEAN][i] == pytest.approx(scores.mean(), rel=1e-5)
        assert found[DEVIATION][i] == pytest.approx(scores.std(), rel=1e-5)
        expected = (chosen.mean() - scores.mean()) / scores.std()
        assert found[ALPHA][i] == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert task.finish(empty, iter(()), {}) is task_state
