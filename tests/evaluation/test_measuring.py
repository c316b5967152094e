"""Metrics of the registry: figures, intervals and paired differences."""

import numpy as np
import pytest

from emu_jax.errors import UserError
from emu_jax.evaluation.measuring import make_meters, reads_references
from emu_jax.evaluation.metrics import difference_interval, frechet, mean_interval
from emu_jax.evaluation.registry import METRICS, Metric

N = 70  # more than one batch


@pytest.fixture
def images():
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (4, 4, 3), np.uint8) for _ in range(N)]


class PromptLength:
    """Counts its own constructions: a metric with a network reads its weights once."""

    made = 0

    def __init__(self):
        PromptLength.made += 1

    def __call__(self, batch):
        assert len(batch.images) == len(batch.prompts) <= 64
        return np.array([len(prompt) for prompt in batch.prompts], float)


def test_a_column_has_one_value_per_image_and_the_interval_of_its_mean(images, monkeypatch):
    monkeypatch.setitem(METRICS, "length", Metric(PromptLength, "images and prompts", "higher"))
    prompts = ["x" * (i % 5) for i in range(N)]
    (meter,) = make_meters(["length"]).values()
    rows = meter.rows(images, prompts)
    assert rows.tolist() == [i % 5 for i in range(N)] and PromptLength.made == 1
    assert meter.value(rows) == np.mean(rows)
    assert meter.interval(rows) == mean_interval(rows)
    assert meter.difference(rows, rows[::-1]) == difference_interval(rows, rows[::-1])


def test_a_set_is_compared_with_the_references(images):
    dark = [image // 2 for image in images]
    meter = make_meters(["color_distance"], images)["color_distance"]
    same, other = (meter.rows(one, [""] * N) for one in (images, dark))
    assert meter.value(same) == pytest.approx(0, abs=1e-9)
    assert meter.value(other) == pytest.approx(frechet(other, same)) and meter.value(other) > 0.1
    lead = meter.difference(same, other)
    assert lead.value == pytest.approx(meter.value(other)) and 0 < lead.low < lead.high
    # Both sets are resampled together: a set differs from itself by nothing.
    assert meter.difference(other, other) == (0, 0, 0)


def test_names_say_what_they_read():
    assert reads_references(["contrast", "color_distance"])
    assert not reads_references(["contrast", "sharpness"])
    with pytest.raises(UserError, match="metrics is 'fit'; use one of contrast, sharpness"):
        make_meters(["fit"])
