"""Distances to the real image of a prompt in one dimension alone, on images made for it."""

import numpy as np
import pytest

from emu_jax.evaluation import dimensions
from emu_jax.evaluation.measuring import Batch

SIDE = 32
METRICS = ("palette_distance", "placement_distance", "luma_distance", "detail_distance")


def square(left=8, color=(200, 40, 40), stripes=0):
    """A square of 8 x 8 pixels on white; every second column can be darker."""
    image = np.full((SIDE, SIDE, 3), 255, np.uint8)
    image[8:16, left : left + 8] = color
    image[8:16, left : left + 8 : 2] -= np.uint8(stripes)
    return image


def distances(image, original=None):
    batch = Batch([image], [""], [square() if original is None else original])
    return {name: float(getattr(dimensions, name)(batch)[0]) for name in METRICS}


def test_an_image_is_at_no_distance_from_itself():
    assert distances(square()) == dict.fromkeys(METRICS, 0.0)
    white = np.full((SIDE, SIDE, 3), 255, np.uint8)
    assert distances(white, white) == dict.fromkeys(METRICS, 0.0)
    assert all(np.isfinite(x) for x in distances(white).values())


def test_each_sees_its_own_change():
    moved = distances(square(left=16))
    # The center, the left and the right edge move by a quarter of the canvas, three others stay.
    assert moved["placement_distance"] == pytest.approx(3 * 0.25 / 6)
    assert moved["palette_distance"] == moved["luma_distance"] == 0
    assert moved["detail_distance"] == pytest.approx(0, abs=1e-9)

    other = distances(square(color=(40, 40, 200)))
    assert other["palette_distance"] == 1 and other["placement_distance"] == 0
    dark = distances(square(color=(200 - 64, 0, 0)))
    luma = 0.2126 * 64 + 0.7152 * 40 + 0.0722 * 40
    assert dark["luma_distance"] == pytest.approx(luma / 255)

    rough = distances(square(stripes=30))
    assert rough["detail_distance"] > 0.1 and rough["placement_distance"] == 0
