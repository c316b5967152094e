"""Images measured by metrics of the registry (:mod:`emu_jax.evaluation.registry`).

Images are measured in batches; what remains of a batch is one row per image. Figures are means of
rows, or distances of their set to the references, with 95 % intervals by bootstrap over prompts. A
difference of two models resamples the prompts of both together.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from emu_jax.errors import UserError
from emu_jax.evaluation.metrics import (
    Interval,
    Statistics,
    by_prompt,
    difference_interval,
    frechet_to,
    mean_interval,
    statistic_interval,
)
from emu_jax.evaluation.registry import METRICS, Metric
from emu_jax.registry import loaded, look_up

Images = Sequence[UInt8[np.ndarray, "_ _ 3"]]
READS_REFERENCES, READS_ORIGINALS = "images and references", "images and originals"
_BATCH = 64  # images measured at once
_RESAMPLES = 30  # of a distance between sets


class Batch(NamedTuple):
    """Images, the prompt of each (empty strings for references), and the real image of each prompt
    where there is one.
    """

    images: Images
    prompts: Sequence[str]
    originals: Images = ()


@dataclass(frozen=True)
class Meter:
    """A metric, ready to measure."""

    metric: Metric
    measure: Callable[[Batch], np.ndarray]
    statistic: Callable[[np.ndarray], float] | None = None

    def rows(
        self, images: Images, prompts: Sequence[str], originals: Images = ()
    ) -> Float[np.ndarray, "n ..."]:
        """One value, or one vector of features, per image."""
        if self.metric.reads == READS_ORIGINALS and not len(originals):
            raise UserError(
                "A metric of --metrics compares images with the real images of their prompts, and "
                "there are none: use prompts of a data set, --prompts=DATASET:CONDITION."
            )
        return _rows(self.measure, images, prompts, originals)

    def value(self, rows: Float[np.ndarray, "n ..."]) -> float:
        """The figure of a set of images."""
        return float(self.statistic(rows) if self.statistic else np.mean(rows))

    def interval(self, rows: Float[np.ndarray, "n ..."], repeats: int = 1) -> Interval:
        """The figure of a set of images, of which ``repeats`` in a row are of one prompt."""
        if self.statistic is None:
            return mean_interval(by_prompt(rows, repeats))
        return statistic_interval(self.statistic, rows, resamples=_RESAMPLES, repeats=repeats)

    def difference(
        self,
        champion: Float[np.ndarray, "n ..."],
        challenger: Float[np.ndarray, "n ..."],
        repeats: int = 1,
    ) -> Interval:
        """The challenger's figure minus the champion's, paired by prompt."""
        if self.statistic is None:
            return difference_interval(by_prompt(champion, repeats), by_prompt(challenger, repeats))
        pairs = np.stack([champion, challenger], axis=1)
        return statistic_interval(self._lead, pairs, resamples=_RESAMPLES, repeats=repeats)

    def _lead(self, pairs: Float[np.ndarray, "n 2 f"]) -> float:
        return self.value(pairs[:, 1]) - self.value(pairs[:, 0])


def reads_references(names: Iterable[str]) -> bool:
    """Whether any of the metrics needs references."""
    return any(_is_distance(_metric(name)) for name in names)


def make_meters(
    names: Iterable[str], references: Images | Statistics = (), weights: str = ""
) -> Mapping[str, Meter]:
    """The metrics called so, ready to measure. See :func:`open_metrics`."""
    return against(references, open_metrics(names, weights))


def open_metrics(names: Iterable[str], weights: str = "") -> Mapping[str, Meter]:
    """The metrics called so; those of sets have no references yet. Published networks are read from
    ``weights``, a folder (:mod:`emu_jax.evaluation.frozen`).

    Raises:
      UserError: there is no such metric, or its weights are missing or damaged.
    """
    return {name: _opened(name, weights) for name in names}


def _opened(name: str, weights: str) -> Meter:
    metric = _metric(name)
    measure = loaded(metric.measure)
    if isinstance(measure, type):
        placed = weights and "weights" in inspect.signature(measure).parameters
        try:
            measure = measure(weights=weights) if placed else measure()
        except UserError as error:
            raise UserError(f"Metric {name}: {error}") from error
    return Meter(metric, measure, None if _is_distance(metric) else loaded(metric.figure))


def against(references: Images | Statistics, meters: Mapping[str, Meter]) -> Mapping[str, Meter]:
    """The metrics with their references, which are measured once."""
    return {
        name: _against(references, name, meter) if _is_distance(meter.metric) else meter
        for name, meter in meters.items()
    }


def _against(references: Images | Statistics, name: str, meter: Meter) -> Meter:
    figure = loaded(meter.metric.figure)
    if not isinstance(references, Statistics):
        rows = _rows(meter.measure, references, [""] * len(references))
        return replace(meter, statistic=figure(rows))
    if figure is not frechet_to:
        raise UserError(
            f"Metric {name} needs reference images, not their statistics: use "
            "--references=DATASET:CONDITION."
        )
    return replace(meter, statistic=figure(references))


def _is_distance(metric: Metric) -> bool:
    return metric.reads == READS_REFERENCES


def _metric(name: str) -> Metric:
    return look_up(METRICS, name, "metrics")


def _rows(
    measure: Callable[[Batch], Any],
    images: Images,
    prompts: Sequence[str],
    originals: Images = (),
) -> np.ndarray:
    starts = range(0, len(images), _BATCH)
    parts = (slice(start, start + _BATCH) for start in starts)
    batches = (Batch(images[part], prompts[part], originals[part]) for part in parts)
    return np.concatenate([measure(batch) for batch in batches])
