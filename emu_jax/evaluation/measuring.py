"""Images measured by metrics of the registry (:mod:`emu_jax.evaluation.registry`).

Images are measured in batches; what remains of a batch is one row per image. Figures are means of
rows, or distances of their set to the references, with 95 % intervals by bootstrap over prompts. A
difference of two models resamples the prompts of both together.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from emu_jax.evaluation.metrics import (
    Interval,
    difference_interval,
    mean_interval,
    statistic_interval,
)
from emu_jax.evaluation.registry import METRICS, Metric
from emu_jax.registry import loaded, look_up

Images = Sequence[UInt8[np.ndarray, "h w 3"]]
READS_REFERENCES = "images and references"
_BATCH = 64  # images measured at once
_RESAMPLES = 30  # of a distance between sets


class Batch(NamedTuple):
    """Images, and the prompt of each (empty strings for references)."""

    images: Images
    prompts: Sequence[str]


@dataclass(frozen=True)
class Meter:
    """A metric, ready to measure."""

    metric: Metric
    measure: Callable[[Batch], np.ndarray]
    statistic: Callable[[np.ndarray], float] | None = None

    def rows(self, images: Images, prompts: Sequence[str]) -> Float[np.ndarray, "n ..."]:
        """One value, or one vector of features, per image."""
        return _rows(self.measure, images, prompts)

    def value(self, rows: Float[np.ndarray, "n ..."]) -> float:
        """The figure of a set of images."""
        return float(self.statistic(rows) if self.statistic else np.mean(rows))

    def interval(self, rows: Float[np.ndarray, "n ..."]) -> Interval:
        if self.statistic is None:
            return mean_interval(rows)
        return statistic_interval(self.statistic, rows, resamples=_RESAMPLES)

    def difference(
        self, champion: Float[np.ndarray, "n ..."], challenger: Float[np.ndarray, "n ..."]
    ) -> Interval:
        """The challenger's figure minus the champion's, paired by prompt."""
        if self.statistic is None:
            return difference_interval(champion, challenger)
        pairs = np.stack([champion, challenger], axis=1)
        return statistic_interval(self._lead, pairs, resamples=_RESAMPLES)

    def _lead(self, pairs: Float[np.ndarray, "n 2 f"]) -> float:
        return self.value(pairs[:, 1]) - self.value(pairs[:, 0])


def reads_references(names: Iterable[str]) -> bool:
    """Whether any of the metrics needs references."""
    return any(_metric(name).reads == READS_REFERENCES for name in names)


def make_meters(names: Iterable[str], references: Images = ()) -> Mapping[str, Meter]:
    """The metrics called so; ``references`` are measured once.

    Raises:
      UserError: there is no such metric.
    """
    meters = {}
    for name in names:
        metric = _metric(name)
        measure = loaded(metric.measure)
        measure = measure() if isinstance(measure, type) else measure
        statistic = None
        if metric.figure is not None:
            statistic = metric.figure(_rows(measure, references, [""] * len(references)))
        meters[name] = Meter(metric, measure, statistic)
    return meters


def _metric(name: str) -> Metric:
    return look_up(METRICS, name, "metrics")


def _rows(measure: Callable[[Batch], Any], images: Images, prompts: Sequence[str]) -> np.ndarray:
    starts = range(0, len(images), _BATCH)
    parts = (slice(start, start + _BATCH) for start in starts)
    return np.concatenate([measure(Batch(images[part], prompts[part])) for part in parts])
