import numpy as np
import pytest

from emu_jax.errors import UserError
from emu_jax.evaluation import memorisation
from emu_jax.evaluation.memorisation import (
    copy_bound,
    descriptors,
    memorised,
    mirrored,
    nearest,
    variety,
)


def pictures(n, seed=0, size=32):
    """Coarse random pictures: every two of them differ in shapes and colours."""
    coarse = np.random.default_rng(seed).integers(0, 256, (n, 4, 4, 3), np.uint8)
    return coarse.repeat(size // 4, 1).repeat(size // 4, 2)


def noisy(images, seed=0):
    noise = np.random.default_rng(seed).normal(0, 8, images.shape)
    return np.clip(images + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("h", "w", "side"), [(32, 16, 16), (20, 30, 8), (5, 7, 16)])
def test_a_descriptor_is_the_mean_over_areas(h, w, side):
    images = np.random.default_rng(0).integers(0, 256, (3, h, w, 3), np.uint8)
    fine = images.repeat(side, 1).repeat(side, 2) / 255  # every area is now whole pixels
    expected = fine.reshape(3, side, h, side, w, 3).mean((2, 4)).reshape(3, -1)
    np.testing.assert_allclose(descriptors(images, side), expected, atol=1e-6)


def test_the_mirror_commutes_with_the_descriptor():
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), np.uint8)
    np.testing.assert_allclose(
        mirrored(descriptors(images)), descriptors(images[:, :, ::-1]), atol=1e-6
    )


def test_nearest_is_its_double_loop(monkeypatch):
    monkeypatch.setattr(memorisation, "_CHUNK", 4)  # the last chunk is a part of one
    queries, references = descriptors(pictures(11), 4), descriptors(pictures(7, seed=1), 4)
    found = nearest(queries, references)
    for query, distance, index in zip(queries, *found, strict=True):
        both = [
            min(np.sqrt(np.mean((query - x) ** 2)) for x in (r, mirrored(r[None])[0]))
            for r in references
        ]
        assert index == np.argmin(both)
        assert distance == pytest.approx(min(both), rel=1e-5)


def test_equal_pictures_are_at_no_distance_at_all():
    references = descriptors(noisy(pictures(20)))
    distance, index = nearest(mirrored(references), references)
    np.testing.assert_array_equal(distance, 0)
    np.testing.assert_array_equal(index, np.arange(20))


def test_near_copies_are_found_mirrored_too_and_others_are_not():
    tuned = pictures(40)
    references = descriptors(tuned)
    bound = copy_bound(descriptors(pictures(300, seed=1)), references)
    copies = noisy(np.concatenate([tuned[:10], tuned[10:20, :, ::-1]]))
    distance, index = nearest(descriptors(copies), references)
    assert memorised(distance, bound).all()
    np.testing.assert_array_equal(index, np.arange(20))
    others = np.concatenate([pictures(50, seed=2), 255 - tuned, tuned[:, ::-1]])
    assert memorised(nearest(descriptors(others), references).distance, bound).mean() < 0.04


def test_the_bound_lets_one_real_picture_in_a_hundred_through():
    references = descriptors(pictures(100), 4)
    seen, unseen = (descriptors(pictures(1000, seed=seed), 4) for seed in (1, 2))
    bound = copy_bound(seen, references)
    assert memorised(nearest(seen, references).distance, bound).sum() == 10
    assert 0.004 < memorised(nearest(unseen, references).distance, bound).mean() < 0.02
    assert bound < copy_bound(seen, references, quantile=0.1)


def test_variety_is_the_distance_of_images_of_one_prompt():
    black, white = np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 255, np.uint8)
    assert variety([black] * 3 + [white] * 3, 3) == 0
    assert variety([black, white, black, black], 2) == 0.5
    assert variety([black, white, white], 3) == np.float32(2 / 3)


@pytest.mark.usefixtures("unchecked_arrays")
def test_what_cannot_be_compared_is_refused():
    with pytest.raises(UserError, match="uint8"):
        descriptors(np.zeros((1, 8, 8, 3), np.float32))
    one, none = descriptors(pictures(1)), descriptors(pictures(0))
    with pytest.raises(UserError, match="no reference image"):
        nearest(one, none)
    with pytest.raises(UserError, match="real images"):
        copy_bound(none, one)
