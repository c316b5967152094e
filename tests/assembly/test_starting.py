"""Images to start from: how they are placed, what stays of them, and how its edge is blended."""

import numpy as np
import pytest
from PIL import Image

from emu_jax.assembly.editing import edit_images
from emu_jax.assembly.starting import (
    Placement,
    StartImage,
    blended,
    draw_from,
    feathered,
    read_mask,
)
from emu_jax.errors import UserError


class Model:
    """Draws black images, and keeps what it was given."""

    shapes, multiple = ((32, 64), (48, 48), (64, 32)), 8

    def draw_each(self, prompts, seeds, negative="", size=None, start=None, **others):
        self.start = start
        for _ in prompts:
            yield np.zeros((*(start.size if start else size or (48, 48)), 3), np.uint8)


def photo(height=30, width=50):
    return np.random.default_rng(0).integers(1, 256, (height, width, 3), np.uint8)


def draw(source, size=None):
    model = Model()
    (image,) = draw_from(model, source, ["a fox"], [0], size=size)
    return image, model


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_all_that_stays_is_the_image_bit_for_bit(strength):
    image = photo()
    found, _ = draw(StartImage(image, strength, np.ones(image.shape[:2], np.float32)))
    np.testing.assert_array_equal(found, image)


def test_nothing_is_drawn_at_strength_0():
    image = photo(48, 48)
    found, model = draw(StartImage(image, 0.0))
    np.testing.assert_array_equal(found, image)
    assert not hasattr(model, "start")


def test_a_part_stays_and_its_edge_is_blended_inside():
    image = np.full((60, 100, 3), 200, np.uint8)
    keep = np.zeros((60, 100), np.float32)
    keep[10:50, 20:80] = 1
    found, model = draw(StartImage(image, 1.0, keep, feather=3))
    assert found.shape == image.shape
    np.testing.assert_array_equal(found[14:46, 24:76], image[14:46, 24:76])
    assert not found[:10].any() and not found[:, 80:].any()
    # d / (f + 1) for the first pixels inside, of 200
    np.testing.assert_array_equal(found[30, 18:25, 0], [0, 0, 50, 100, 150, 200, 200])
    assert model.start.keep.max() == 1 and model.start.keep.shape == model.start.size


@pytest.mark.parametrize(
    ("shape", "size", "drawn", "result"),
    [
        ((30, 50), None, (32, 64), (32, 53)),
        ((300, 100), None, (64, 32), (64, 21)),
        ((30, 50), (100, 100), (64, 104), (60, 100)),
        ((30, 50), (2**20, 20), (16, 24), (12, 20)),
    ],
)
def test_an_image_of_any_size_is_drawn_whole(shape, size, drawn, result):
    """In the shape of the nearest aspect ratio, or in one that multiples of 8 allow."""
    image = photo(*shape)
    found, model = draw(StartImage(image, 0.5), size)
    assert model.start.size == drawn and found.shape[:2] == result
    assert not model.start.keep.any()
    # Its middle is the image, and what surrounds it are the image's edges.
    source = StartImage(image, 0.5)
    middle = source.restored(model.start.image, Placement(result, drawn))
    small = Image.fromarray(image).resize(result[::-1], Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(middle, np.asarray(small))
    np.testing.assert_array_equal(model.start.image[0, -1], middle[0, -1])


def test_strength_is_a_share_of_the_steps_and_one_remains():
    start = StartImage(photo(), 0.4).placed(Placement((32, 53), (32, 64)))
    assert (start.skipped(25), start.skipped(1)) == (15, 0)
    assert StartImage(photo(), 1.0).placed(Placement((32, 53), (32, 64))).skipped(25) == 0
    assert start.shrunk(2).image.shape == (16, 32, 3) and start.shrunk(2).strength == 0.4


def test_shares_of_a_mask_and_their_mixture():
    mask = np.array([[0, 0.4, 1, 1, 1]], np.float32)
    np.testing.assert_allclose(feathered(mask, 1.0), [[0, 0, 0.5, 1, 1]])
    np.testing.assert_array_equal(feathered(np.ones((2, 2), np.float32), 5.0), 1)
    white, black = np.full((1, 5, 3), 255, np.uint8), np.zeros((1, 5, 3), np.uint8)
    np.testing.assert_array_equal(blended(white, black, mask)[0, :, 0], [0, 102, 255, 255, 255])


def test_refusals(tmp_path, unchecked_arrays):
    with pytest.raises(UserError, match="5 x 4 pixels, but the image has 50 x 30"):
        StartImage(photo(), 0.5, np.ones((4, 5), np.float32))
    with pytest.raises(UserError, match=r"strength is 1\.5"):
        StartImage(photo(), 1.5)
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(UserError, match=r"Several files are called a, such as x/a\.png"):
        edit_images("none", ["x/a.png", "y/a.jpg"], "a fox", str(tmp_path), strength=0.5)
    with pytest.raises(UserError, match=r"a\.png: not an image"):
        read_mask(tmp_path / "a.png")
