"""The metrics that a command or a config can name: one line an entry.

    METRICS["mine"] = Metric(mine, reads="images", better="higher")

A metric measures images that belong to prompts, or compares them with a set of reference images.
The figures of the judge are not here (:mod:`emu_jax.evaluation.assessment`): they share one
embedding and rank an image among all prompts of a comparison.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from emu_jax.registry import Lazy


@dataclass(frozen=True)
class Metric:
    """What a metric measures, from what, and which values are better.

    ``measure`` takes a :class:`emu_jax.evaluation.measuring.Batch` and returns one value per image,
    [n]. It is a function, or a class that is constructed first, e.g. to read a network's weights.

    A metric that ``reads`` references returns features instead, [n, f], and has a ``figure``: from
    the features of the references to a function from features to a number.
    """

    measure: Callable[..., Any]
    reads: Literal["images", "images and prompts", "images and references"]
    better: Literal["higher", "lower", "neither"]
    figure: Callable[..., Any] | None = None


METRICS: dict[str, Metric] = {
    "contrast": Metric(Lazy("emu_jax.evaluation.appearance:contrast"), "images", "neither"),
    "sharpness": Metric(Lazy("emu_jax.evaluation.appearance:sharpness"), "images", "neither"),
    "colorfulness": Metric(Lazy("emu_jax.evaluation.appearance:colorfulness"), "images", "neither"),
    "color_distance": Metric(
        Lazy("emu_jax.evaluation.appearance:color_statistics"),
        "images and references",
        "lower",
        Lazy("emu_jax.evaluation.metrics:frechet_to"),
    ),
}
