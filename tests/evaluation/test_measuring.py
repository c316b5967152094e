"""Metrics of the registry: figures, intervals and paired differences."""

from dataclasses import replace

import numpy as np
import pytest

from emu_jax.errors import UserError
from emu_jax.evaluation.distances import mmd_to, statistics
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


def test_a_metric_of_originals_pairs_every_image(images, monkeypatch):
    def darker(batch):
        pairs = zip(batch.images, batch.originals, strict=True)
        return np.array([np.mean(b.astype(float) - a) for a, b in pairs])

    monkeypatch.setitem(METRICS, "darker", Metric(darker, "images and originals", "neither"))
    meter = make_meters(["darker"])["darker"]
    dark = [image - image // 2 for image in images]
    want = [np.mean(image // 2) for image in images]
    np.testing.assert_allclose(meter.rows(dark, [""] * N, images), want)
    with pytest.raises(UserError, match="real images of their prompts, and there are none"):
        meter.rows(dark, [""] * N)


def test_published_statistics_replace_references(images, monkeypatch):
    by_images = make_meters(["color_distance"], images)["color_distance"]
    rows = by_images.rows(images[:9], [""] * 9)
    found = make_meters(["color_distance"], statistics(by_images.rows(images, [""] * N)))
    assert found["color_distance"].value(rows) == pytest.approx(by_images.value(rows))
    other = replace(METRICS["color_distance"], figure=mmd_to)
    monkeypatch.setitem(METRICS, "other", other)
    with pytest.raises(UserError, match="Metric other needs reference images, not their statis"):
        make_meters(["other"], statistics(rows))


class Rows:
    """Of a network in a folder."""

    def __init__(self, weights="the default"):
        self.weights = weights

    def __call__(self, batch):
        return np.array([len(self.weights) for _ in batch.images], float)


def test_the_folder_of_weights_is_handed_on(images, monkeypatch):
    monkeypatch.setitem(METRICS, "rows", Metric(Rows, "images", "lower", np.max))
    for given, length in (("", len("the default")), ("folder", len("folder"))):
        meter = make_meters(["rows"], weights=given)["rows"]
        rows = meter.rows(images, [""] * N)
        assert meter.value(rows) == length == meter.interval(rows).value  # a figure of the set
