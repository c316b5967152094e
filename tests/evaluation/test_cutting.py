"""Subjects cut out without a network: drawings on plain ground, things in boxes, stickers."""

import numpy as np
import pytest
from PIL import Image

from emu_jax.assembly.stickers import SIDE, sheet, sticker
from emu_jax.assembly.subject import Subject
from emu_jax.errors import UserError
from emu_jax.evaluation.cutting import part_at, subject_on_plain
from emu_jax.evaluation.grabcut import cut_in_box


def disc(size=64, radius=20, center=None):
    y, x = np.mgrid[:size, :size]
    cy, cx = center or (size // 2, size // 2)
    return (x - cx) ** 2 + (y - cy) ** 2 < radius**2


def drawing(mask, noise=8):
    """A red thing with a white eye on nearly white ground, and a speck."""
    random = np.random.default_rng(0)
    image = np.full((*mask.shape, 3), 250) - random.integers(0, noise + 1, (*mask.shape, 3))
    image[mask] = (200, 30, 30)
    image[30:34, 30:34] = 250
    image[3, 3] = 0
    return image.astype(np.uint8)


def overlap(a, b):
    return (a & b).sum() / (a | b).sum()


def test_a_thing_on_plain_ground_is_cut_out_with_what_it_encloses():
    mask = disc()
    np.testing.assert_array_equal(subject_on_plain(drawing(mask)), mask)
    two = disc(radius=8, center=(16, 16)) | disc(radius=8, center=(45, 45))
    found = subject_on_plain(drawing(two))
    assert part_at(found, 45, 45).sum() == disc(radius=8, center=(45, 45)).sum()
    with pytest.raises(UserError, match="the pixel 2,60 belongs to the background"):
        part_at(found, 2, 60)


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8), "not plain: only"),
        (np.full((32, 32, 3), 255, np.uint8), r"covers 0\.0%"),
    ],
)
def test_what_cannot_be_cut_out_is_said(image, why):
    with pytest.raises(UserError, match=why):
        subject_on_plain(image)


def test_a_thing_in_a_box_is_cut_out_of_colored_noise():
    random = np.random.default_rng(1)
    mask = disc(90, 25, (40, 50))
    image = random.normal((60, 120, 60), 25, (90, 90, 3))
    image[mask] = random.normal((150, 60, 140), 25, (90, 90, 3))[mask]
    image = np.clip(image, 0, 255).astype(np.uint8)
    assert overlap(cut_in_box(image, (20, 10, 80, 70)), mask) > 0.95
    assert not cut_in_box(np.full((20, 20, 3), 9, np.uint8), (0, 0, 20, 20)).any()


def test_where_a_subject_comes_from(tmp_path):
    mask = disc()
    image = Image.fromarray(drawing(mask))
    Image.fromarray((255 * disc(radius=5)).astype(np.uint8)).save(tmp_path / "mask.png")
    clear = image.convert("RGBA")
    clear.putalpha(Image.fromarray((255 * disc(radius=9)).astype(np.uint8)))
    expected = (
        (Subject(mask=str(tmp_path / "mask.png")), image, disc(radius=5)),
        (Subject(), image, mask),
        (Subject(), clear, disc(radius=9)),
        (Subject(click=(32, 32)), clear, disc(radius=9)),
        (Subject(box=(0, 0, 32, 64)), image, mask & (np.arange(64) < 32)),
    )
    for subject, given, found in expected:
        np.testing.assert_array_equal(subject.of(given, "x.png"), found.astype(np.float32))
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    for subject, given, why in (
        (Subject(), noise, "x.png cannot be cut out by itself: the background is not plain"),
        (Subject(click=(64, 0)), image, "64,0 is outside x.png, which has 64 x 64"),
        (Subject(click=(0, 0)), image, "belongs to the background; click on the subject"),
        (Subject(mask=str(tmp_path / "mask.png")), noise, "64 x 64 pixels, but x.png has 32 x 32"),
    ):
        with pytest.raises(UserError, match=why):
            subject.of(given, "x.png")


def test_a_sticker_has_a_white_rim_on_nothing():
    found = sticker(drawing(disc()), rim=12)
    assert found.shape == (SIDE, SIDE, 4)
    alpha, middle = found[..., 3], SIDE // 2
    assert alpha[0, 0] == 0 and alpha[middle, middle] == 255
    # Along the middle row, from the left: nothing, the rim, the thing, which fills the room.
    row = found[middle]
    first = int(np.argmax(row[:, 3] > 127))
    thing = int(np.argmax((row[:, 3] > 127) & (row[:, 1] < 128)))
    # The enlarged edge of the drawing itself is some eight pixels wide.
    assert 2 <= first <= 6 and 11 <= thing - first <= 20
    assert (row[first : first + 11, :3] > 250).all()
    assert 0 < (alpha % 255 != 0).mean() < 0.02  # its edge is antialiased
    frames = sheet([found] * 3)
    assert {frame.size for frame in frames} == {(320, 320)}
    assert np.abs(np.asarray(frames[0]).astype(int) - frames[2]).max() > 100
