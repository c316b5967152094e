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
    [n]. It is a function, or a class that is constructed first, e.g. to read a network's weights
    from the folder ``weights``.

    A metric that ``reads`` references returns features instead, [n, f], and has a ``figure``: from
    the features of the references to a function from features to a number. Without references a
    ``figure`` is that function itself.
    """

    measure: Callable[..., Any]
    reads: Literal["images", "images and prompts", "images and references", "images and originals"]
    better: Literal["higher", "lower", "neither"]
    figure: Callable[..., Any] | None = None


_INCEPTION, _DISTANCES = "emu_jax.evaluation.inception:", "emu_jax.evaluation.distances:"
_CLIP, _QUALITY = "emu_jax.evaluation.clip_metrics:", "emu_jax.evaluation.quality_metrics:"
_SET, _PAIR, _ORIGINAL = "images and references", "images and prompts", "images and originals"
_TAGS, _DIMENSIONS = "emu_jax.evaluation.tags:", "emu_jax.evaluation.dimensions:"

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
    "edge_f1": Metric(Lazy("emu_jax.evaluation.edges:edge_f1"), _ORIGINAL, "higher"),
    "palette_distance": Metric(Lazy(_DIMENSIONS + "palette_distance"), _ORIGINAL, "lower"),
    "placement_distance": Metric(Lazy(_DIMENSIONS + "placement_distance"), _ORIGINAL, "lower"),
    "luma_distance": Metric(Lazy(_DIMENSIONS + "luma_distance"), _ORIGINAL, "lower"),
    "detail_distance": Metric(Lazy(_DIMENSIONS + "detail_distance"), _ORIGINAL, "lower"),
    # Of a tagger that is trained here (configs/tagger.py).
    "fault_color": Metric(Lazy(_TAGS + "Color"), "images", "lower"),
    "fault_layout": Metric(Lazy(_TAGS + "Layout"), "images", "lower"),
    "fault_lighting": Metric(Lazy(_TAGS + "Lighting"), "images", "lower"),
    "fault_detail": Metric(Lazy(_TAGS + "Detail"), "images", "lower"),
    "fault_mean": Metric(Lazy(_TAGS + "Mean"), "images", "lower"),
    "fault_worst": Metric(Lazy(_TAGS + "Worst"), "images", "lower"),
    "finish_asked": Metric(Lazy(_TAGS + "FinishAsked"), _PAIR, "higher"),
    # Of published networks (docs/metrics.md).
    "fid": Metric(
        Lazy(_INCEPTION + "Pooled"), _SET, "lower", Lazy("emu_jax.evaluation.metrics:frechet_to")
    ),
    "kid": Metric(Lazy(_INCEPTION + "Pooled"), _SET, "lower", Lazy(_DISTANCES + "mmd_to")),
    "kid_subsets": Metric(Lazy(_INCEPTION + "Pooled"), _SET, "lower", Lazy(_DISTANCES + "kid_to")),
    "precision": Metric(
        Lazy(_INCEPTION + "Pooled"), _SET, "higher", Lazy(_DISTANCES + "precision_to")
    ),
    "recall": Metric(Lazy(_INCEPTION + "Pooled"), _SET, "higher", Lazy(_DISTANCES + "recall_to")),
    "inception_score": Metric(
        Lazy(_INCEPTION + "Logits"), "images", "higher", Lazy(_DISTANCES + "mean_inception_score")
    ),
    "fd_dinov2": Metric(
        Lazy("emu_jax.evaluation.dinov2_features:Features"),
        _SET,
        "lower",
        Lazy("emu_jax.evaluation.metrics:frechet_to"),
    ),
    "cmmd": Metric(Lazy(_CLIP + "CmmdEmbedding"), _SET, "lower", Lazy(_DISTANCES + "cmmd_to")),
    "clip_score": Metric(Lazy(_CLIP + "ClipScore"), _PAIR, "higher"),
    "laion_aesthetic": Metric(Lazy(_CLIP + "Aesthetic"), "images", "higher"),
    "pickscore": Metric(Lazy(_CLIP + "PickScore"), _PAIR, "higher"),
    "hps": Metric(Lazy(_CLIP + "Hps"), _PAIR, "higher"),
    "clip_iqa": Metric(Lazy(_CLIP + "ClipIqa"), "images", "higher"),
    "image_reward": Metric(Lazy(_QUALITY + "ImageReward"), _PAIR, "higher"),
    "musiq": Metric(Lazy(_QUALITY + "Musiq"), "images", "higher"),
    "brisque": Metric(Lazy(_QUALITY + "Brisque"), "images", "lower"),
    "lpips": Metric(Lazy("emu_jax.evaluation.lpips:ToOriginals"), _ORIGINAL, "lower"),
}
