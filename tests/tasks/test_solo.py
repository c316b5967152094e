"""SOLO's targets against the published rule written as loops, its losses and decoding in closed
form, on masks made by hand.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from emu_jax.nn.solo import Level
from emu_jax.tasks.solo import Instances, assign, decode, losses, total

CLASSES = 5


def truth(*boxes, size=(64, 64), classes=None):
    """Rectangles (top, left, bottom, right) as instances of one image; later ones lie on top."""
    image = np.zeros((1, *size), np.uint8)
    for i, (top, left, bottom, right) in enumerate(boxes, 1):
        image[0, top:bottom, left:right] = i
    labels = list(classes or range(len(boxes)))
    return Instances(jnp.asarray(image), jnp.asarray([labels]))


def published(found, grid, low, high):
    """One instance after the other; a later one overwrites cells."""
    image, classes = np.asarray(found.map[0]), np.asarray(found.classes[0])
    height, width = image.shape
    cells = np.full((grid, grid), -1)
    for n in range(len(classes)):
        mask = image == n + 1
        if classes[n] < 0 or not mask.any():
            continue
        y, x = np.nonzero(mask)
        box_h, box_w = y.max() - y.min(), x.max() - x.min()
        if not low <= np.sqrt(box_h * box_w) <= high:
            continue
        (center_y, center_x) = ndimage.center_of_mass(mask)
        edges = []
        for center, extent, length in ((center_y, box_h, height), (center_x, box_w, width)):
            half = 0.5 * extent * 0.2
            own = int(center / length // (1 / grid))
            first = max(0, int((center - half) / length // (1 / grid)))
            last = min(grid - 1, int((center + half) / length // (1 / grid)))
            edges.append(slice(max(first, own - 1), min(last, own + 1) + 1))
        cells[tuple(edges)] = n
    return cells


@pytest.mark.parametrize("grid", [8, 12])
def test_cells_are_those_of_the_published_rule(grid):
    rng = np.random.default_rng(0)
    for _ in range(20):
        boxes = []
        for _ in range(5):
            top, left = rng.integers(0, 40, 2)
            boxes.append((top, left, top + rng.integers(4, 24), left + rng.integers(4, 24)))
        found = truth(*boxes, size=(64, 80), classes=[0, 1, -1, 2, 3])
        own = assign(found, grid, (3.0, 18.0))[0]
        np.testing.assert_array_equal(own, published(found, grid, 3.0, 18.0))


def test_a_large_object_fills_at_most_three_by_three_cells():
    cells = assign(truth((0, 0, 64, 64)), 40, (0.0, 1e4))[0]
    assert np.argwhere(cells == 0).tolist() == [[i, j] for i in (18, 19, 20) for j in (18, 19, 20)]


def perfect(found, grid=8, sure=20.0):
    """Logits that are right everywhere."""
    cells = np.asarray(assign(found, grid, (0.0, 1e4))[0])
    classes = np.full((1, grid, grid, CLASSES), -sure, np.float32)
    masks = np.full((1, *found.map.shape[1:], grid * grid), -sure, np.float32)
    for i, j in np.argwhere(cells >= 0):
        classes[0, i, j, found.classes[0, cells[i, j]]] = sure
        masks[0, found.map[0] == cells[i, j] + 1, i * grid + j] = sure
    return Level(jnp.asarray(classes), jnp.asarray(masks))


EVERY = ((0.0, 1e4),)


def test_losses_in_closed_form():
    found = truth((8, 8, 24, 24), (40, 30, 60, 62))
    level = perfect(found)
    zero = losses([level], found, EVERY)
    np.testing.assert_allclose(zero, 0, atol=1e-4)
    filled = int((assign(found, 8, EVERY[0]) >= 0).sum())
    # All cells at probability 1/2: each of the 64 x 5 entries costs log 2 / 4 times its alpha.
    even = losses([level._replace(classes=jnp.zeros_like(level.classes))], found, EVERY)
    cost = (0.25 * filled + 0.75 * (64 * CLASSES - filled)) * 0.25 * np.log(2) / (filled + 1)
    np.testing.assert_allclose(even.classes, cost, rtol=1e-5)
    # A mask that is 1/2 everywhere, of an instance of A pixels: 1 - A / (4096 / 4 + A).
    even = losses([level._replace(masks=jnp.zeros_like(level.masks))], found, EVERY)
    cells = np.asarray(assign(found, 8, EVERY[0]))
    areas = [256 if n == 0 else 640 for n in cells[cells >= 0]]
    dice = np.mean([1 - area / (1024 + area) for area in areas])
    np.testing.assert_allclose(even.masks, dice, rtol=1e-5)
    np.testing.assert_allclose(total(even), even.classes + 3 * even.masks)


def test_an_image_without_instances_has_a_finite_loss_and_gradient():
    empty = truth(classes=[-1])
    level = Level(jnp.zeros((1, 8, 8, CLASSES)), jnp.zeros((1, 32, 32, 64)))
    value, gradient = jax.value_and_grad(lambda x: total(losses([x], empty, EVERY)))(level)
    assert np.isfinite(value) and all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))
    assert not np.any(gradient.masks)


def test_decoding_finds_each_instance_once():
    """Several cells and a rival of lower score describe the same instance."""
    found = truth((4, 4, 30, 30), (34, 20, 62, 60), classes=[3, 3])
    level = perfect(found)
    noisy = level.classes + jax.random.normal(jax.random.key(0), level.classes.shape)
    seen = decode([level._replace(classes=noisy)], most=12)
    kept = int((seen.score[0] > 0.5).sum())
    assert kept == 2 and set(seen.label[0, :2].tolist()) == {3}
    masks = {np.asarray(m).astype(bool).tobytes() for m in seen.mask[0, :2]}
    assert masks == {np.asarray(found.map[0] == i).tobytes() for i in (1, 2)}


def test_instances_of_two_classes_may_overlap():
    found = truth((4, 4, 40, 40), (34, 20, 62, 60), classes=[3, 1])
    seen = decode([perfect(found)], most=12)
    assert sorted(seen.label[0][seen.score[0] > 0.5].tolist()) == [1, 3]


def test_cells_of_one_instance_do_not_displace_others():
    """There are more cells than instances that may be found, and all are candidates."""
    boxes = [(top, left, top + 20, left + 19) for top in (2, 40) for left in (1, 22, 43)]
    found = truth(*boxes, classes=[2] * 6)
    assert int((assign(found, 8, EVERY[0]) >= 0).sum()) > 6
    seen = decode([perfect(found)], most=6)
    assert len({np.asarray(mask).tobytes() for mask in seen.mask[0]}) == 6
    assert np.all(seen.score > 0.5)


def test_an_agnostic_decoder_gives_an_instance_one_class():
    found = truth((4, 4, 30, 30), (34, 20, 62, 60), classes=[3, 1])
    level = perfect(found)
    doubted = level.classes.at[..., 4].set(level.classes[..., 3] - 1)
    for agnostic, labels in ((False, [1, 3, 4]), (True, [1, 3])):
        seen = decode([level._replace(classes=doubted)], most=12, agnostic=agnostic)
        assert sorted(seen.label[0][seen.score[0] > 0.5].tolist()) == labels
