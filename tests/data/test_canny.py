"""Canny's edges against a slow transcription, pixel by pixel, and on simple images."""

import numpy as np
from PIL import Image

from emu_jax.data.canny import canny, edges
from emu_jax.data.further import COMPUTED, prepare_further
from emu_jax.data.images import view


def slow(image, low, high):
    """One pixel after the other."""
    height, width, channels = image.shape
    clamp = lambda y, x: image[min(max(y, 0), height - 1), min(max(x, 0), width - 1)].astype(int)  # noqa: E731
    gradient = np.zeros((height, width, 2), int)
    for y in range(height):
        for x in range(width):
            right = sum(w * clamp(y + d, x + 1) for d, w in ((-1, 1), (0, 2), (1, 1)))
            left = sum(w * clamp(y + d, x - 1) for d, w in ((-1, 1), (0, 2), (1, 1)))
            below = sum(w * clamp(y + 1, x + d) for d, w in ((-1, 1), (0, 2), (1, 1)))
            above = sum(w * clamp(y - 1, x + d) for d, w in ((-1, 1), (0, 2), (1, 1)))
            dx, dy = right - left, below - above
            best = max(range(channels), key=lambda c: abs(dx[c]) + abs(dy[c]))
            gradient[y, x] = dx[best], dy[best]
    size = np.abs(gradient).sum(-1)
    at = lambda y, x: size[y, x] if 0 <= y < height and 0 <= x < width else 0  # noqa: E731
    weak = np.zeros((height, width), bool)
    for y in range(height):
        for x in range(width):
            (dx, dy), m = gradient[y, x], size[y, x]
            steep = np.degrees(np.arctan2(abs(dy), abs(dx)))
            if steep < 22.5:
                ridge = m > at(y, x - 1) and m >= at(y, x + 1)
            elif steep > 67.5:
                ridge = m > at(y - 1, x) and m >= at(y + 1, x)
            else:
                side = -1 if (dx < 0) != (dy < 0) else 1
                ridge = m > at(y - 1, x - side) and m > at(y + 1, x + side)
            weak[y, x] = ridge and m > low
    found = weak & (size > high)
    while True:
        grown = found.copy()
        for y, x in zip(*np.nonzero(found), strict=True):
            near = np.s_[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
            grown[near] |= weak[near]
        if np.array_equal(grown, found):
            return found
        found = grown


def test_edges_are_those_of_the_slow_form():
    rng = np.random.default_rng(0)
    for low, high in ((100, 200), (300, 700), (0, 50)):
        small = rng.integers(0, 256, (7, 9, 3), np.uint8)
        smooth = np.asarray(Image.fromarray(small).resize((36, 28), Image.Resampling.BICUBIC))
        for image in (smooth, smooth[..., :1]):
            wanted = slow(image, low, high)
            assert 0 < wanted.sum() < wanted.size
            np.testing.assert_array_equal(edges(image, low, high), wanted)


def test_a_square_has_one_line_around_it():
    image = np.full((20, 24, 3), 255, np.uint8)
    assert not edges(image).any()
    image[6:14, 8:16] = (200, 0, 0)
    found = canny(image)
    assert found.shape == image.shape and set(np.unique(found)) == {0, 255}
    rows, columns = np.nonzero(found[..., 0])
    assert {rows.min(), rows.max()} <= {5, 6, 13, 14} and {*columns} <= set(range(7, 17))
    assert (found[10, :, 0] > 0).sum() == 2  # each side is one pixel wide


def test_the_edges_of_a_row_are_those_of_its_view(tmp_path):
    """As a further image that no data set stores, in the crop and flip of its image."""
    drawn = np.full((40, 60, 3), 255, np.uint8)
    drawn[10:30, 5:20] = 0
    Image.fromarray(drawn).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    shown = view((40, 60), (32, 32), random_crop=False, flip=False, seed=0)
    image = shown.apply(Image.fromarray(drawn))
    np.testing.assert_array_equal(prepare_further(data, "canny", shown), canny(image))
    np.testing.assert_array_equal(prepare_further(data, "image", shown), image)
    assert COMPUTED.keys() == {"image", "canny"}
