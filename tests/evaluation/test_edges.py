"""The F1 of edges within one pixel."""

import numpy as np
import pytest

from emu_jax.evaluation.edges import edge_f1, f1
from emu_jax.evaluation.measuring import Batch
from emu_jax.evaluation.registry import METRICS
from emu_jax.registry import loaded


def line(column, rows=slice(2, 12)):
    found = np.zeros((16, 16), bool)
    found[rows, column] = True
    return found


@pytest.mark.parametrize(
    ("found", "wanted", "value"),
    [
        (line(5), line(5), 1.0),
        (line(6), line(5), 1.0),  # one pixel away
        (line(7), line(5), 0.0),
        (line(5, slice(2, 7)), line(5), 2 * 1 * 0.6 / 1.6),  # five of ten, and their neighbor
        (line(5) | line(10), line(5), 2 * 0.5 * 1 / 1.5),
        (line(5) & False, line(5), 0.0),
        (line(5) & False, line(5) & False, 1.0),
    ],
)
def test_it_is_the_harmonic_mean_of_both_shares(found, wanted, value):
    assert f1(found, wanted) == pytest.approx(value)


def test_images_are_compared_with_their_originals():
    square = np.full((20, 20, 3), 255, np.uint8)
    square[5:15, 5:15] = 0
    batch = Batch([square, square], ["", ""], [square, np.full_like(square, 255)])
    np.testing.assert_array_equal(edge_f1(batch), [1, 0])
    assert loaded(METRICS["edge_f1"].measure) is edge_f1
