"""Metrics of appearance against closed forms."""

import numpy as np
import pytest

from emu_jax.evaluation.appearance import color_statistics, colorfulness, contrast, sharpness
from emu_jax.evaluation.measuring import Batch

RED, WHITE, BLACK = (255, 0, 0), (255, 255, 255), (0, 0, 0)


def halves(left, right):
    """An image of 8 x 6 pixels, its halves in two colors."""
    image = np.empty((8, 6, 3), np.uint8)
    image[:, :3], image[:, 3:] = left, right
    return image


def of(measure, *images):
    return measure(Batch(images, [""] * len(images))).tolist()


def test_contrast_is_the_deviation_of_luma():
    assert of(contrast, halves(WHITE, BLACK), halves(RED, RED)) == pytest.approx([0.5, 0.0])


def test_sharpness_is_the_variance_of_the_laplacian():
    # The Laplacian is 1 in a column at one side of the edge, -1 at the other, and 0 in the rest.
    edge, plain = of(sharpness, halves(BLACK, WHITE), halves(RED, RED))
    assert edge == pytest.approx(2 / 6) and plain == 0
    gray = np.repeat(np.random.default_rng(0).integers(0, 256, (5, 7, 1)), 3, 2).astype(np.uint8)
    y = np.pad(gray[..., 0] / 255, 1, "edge")
    laplacian = y[:-2, 1:-1] + y[2:, 1:-1] + y[1:-1, :-2] + y[1:-1, 2:] - 4 * y[1:-1, 1:-1]
    assert of(sharpness, gray) == pytest.approx([laplacian.var()])


def test_colorfulness_is_the_papers():
    # rg = 255 and yb = 127.5 everywhere; then in one half, which gives half of both and deviations.
    plain = 0.3 * np.hypot(255, 127.5)
    half = np.hypot(127.5, 63.75) + 0.3 * np.hypot(127.5, 63.75)
    found = of(colorfulness, halves(RED, RED), halves(RED, WHITE), halves(BLACK, WHITE))
    assert found == pytest.approx([plain, half, 0.0])


def test_color_statistics_are_means_and_deviations():
    (found,) = of(color_statistics, halves(RED, WHITE))
    assert found == pytest.approx([1, 0.5, 0.5, 0, 0.5, 0.5])
