"""A judge's assessment of a model's images, in figures.

    faithful   among all prompts, the judge ranks the image's own prompt first
    finish     a probe, fitted to real images of other things, classifies it as finished like the
               needles
    both       faithful and finished: the goal of quality-tuning
    distances  Frechet and kernel distance from the features of the images to those of the needles
               and of the haystack
    copied     nearer to a needle than different real images come
    contrast   the standard deviation of an image's luma, which noise offset widens
    spread     of several images of a prompt: their mean distance from each other

A judge is a small network with errors of its own: its figures for real images of the same prompts
stand beside those of the models and show how far to trust it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from emu_jax.evaluation.appearance import contrast
from emu_jax.evaluation.measuring import Batch
from emu_jax.evaluation.memorisation import descriptors, memorised, nearest
from emu_jax.evaluation.metrics import (
    Duel,
    Interval,
    Probe,
    Values,
    by_prompt,
    duel,
    frechet_to,
    mean_interval,
    mmd_interval,
    share_difference_interval,
    share_interval,
    statistic_interval,
    top_k,
)
from emu_jax.nn.contrastive import ImageEmbedding

SHARES = ("faithful", "faithful_top5", "finish", "both", "copied")  # figures in [0, 1]
_MARGIN = 0.1  # difference of probabilities; less is a tie


@dataclass(frozen=True)
class Yardstick:
    """What is the same for all models: prompts, their embeddings, references. ``scale`` is the
    judge's inverse temperature; ``real`` has a real image of every prompt, if there are any.
    ``repeats`` rows in a row are of one prompt."""

    prompts: Sequence[str]
    texts: Float[np.ndarray, "n d"]
    scale: float
    probe: Probe
    needles: Float[np.ndarray, "m f"]
    haystack: Float[np.ndarray, "k f"]
    tuned: Float[np.ndarray, "r v"]
    tuned_images: Sequence[UInt8[np.ndarray, "_ _ 3"]]
    bound: float
    real: Sequence[UInt8[np.ndarray, "_ _ 3"]] | None = None
    repeats: int = 1


@dataclass(frozen=True)
class Assessment:
    """One row per image in the order of the prompts. ``belief`` is the judge's probability of the
    right prompt among all, ``finish`` the probe's probability of the needles' finish."""

    top1: Bool[np.ndarray, " n"]
    top5: Bool[np.ndarray, " n"]
    belief: Float[np.ndarray, " n"]
    finish: Float[np.ndarray, " n"]
    features: Float[np.ndarray, "n f"]
    distance: Float[np.ndarray, " n"]
    nearest: Int[np.ndarray, " n"]
    copied: Bool[np.ndarray, " n"]
    contrast: Float[np.ndarray, " n"]

    @property
    def finished(self) -> Bool[np.ndarray, " n"]:
        return self.finish > 0.5


def assess(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]], embedded: ImageEmbedding, by: Yardstick
) -> Assessment:
    """``images[i]`` was drawn for ``by.prompts[i]``; ``embedded`` are the judge's embeddings."""
    features = np.asarray(embedded.features, np.float64)
    first: dict[str, int] = {}  # prompt -> its first row; a repeated prompt is not its own rival
    for row, prompt in enumerate(by.prompts):
        first.setdefault(prompt, row)
    texts = np.asarray(by.texts, np.float64)[list(first.values())]
    similarity = np.asarray(embedded.embedding, np.float64) @ texts.T
    number = {prompt: i for i, prompt in enumerate(first)}
    rows, truth = np.arange(len(by.prompts)), np.array([number[prompt] for prompt in by.prompts])
    scores = np.exp(by.scale * (similarity - similarity.max(1, keepdims=True)))
    distance, index = nearest(descriptors(np.stack(images)), by.tuned)
    return Assessment(
        top1=top_k(similarity, truth, 1),
        top5=top_k(similarity, truth, 5),
        belief=scores[rows, truth] / scores.sum(1),
        finish=by.probe.probability(features),
        features=features,
        distance=distance,
        nearest=index,
        copied=memorised(distance, by.bound),
        contrast=contrast(Batch(images, by.prompts)),
    )


def per_image(found: Assessment) -> dict[str, Values]:
    """The figures that are means over images, before their mean; shares are of type bool."""
    return {
        "faithful": found.top1,
        "faithful_top5": found.top5,
        "finish": found.finished,
        "both": found.top1 & found.finished,
        "copied": found.copied,
        "contrast": found.contrast,
    }


def spread(found: Assessment, repeats: int) -> Float[np.ndarray, " n"]:
    """How far each image is from the other images of its prompt, in the judge's features: the mean
    distance. It falls where a generator draws one image again and again.
    """
    x = found.features.reshape(-1, repeats, found.features.shape[-1])
    apart = np.linalg.norm(x[:, :, None] - x[:, None], axis=-1)
    return (apart.sum(-1) / (repeats - 1)).ravel()


def figures(found: Assessment, by: Yardstick) -> dict[str, Interval]:
    """All figures with their 95 % intervals over prompts."""
    values = {key: by_prompt(x, by.repeats) for key, x in per_image(found).items()}
    sets = {"needles": by.needles, "haystack": by.haystack}
    distances = {
        f"frechet_{name}": statistic_interval(
            frechet_to(rows), found.features, resamples=30, repeats=by.repeats
        )
        for name, rows in sets.items()
    } | {
        f"mmd_{name}": mmd_interval(found.features, rows, repeats=by.repeats)
        for name, rows in sets.items()
    }
    shares = {key: share_interval(values[key]) for key in SHARES}
    last = {"copied": shares.pop("copied"), "contrast": mean_interval(values["contrast"])}
    if by.repeats > 1:
        last["spread"] = mean_interval(by_prompt(spread(found, by.repeats), by.repeats))
    return {**shares, **distances, **last}


def differences(
    challenger: Assessment, champion: Assessment, repeats: int = 1
) -> Mapping[str, Interval]:
    """The challenger's shares minus the champion's, paired by prompt."""
    ours, theirs = (
        {key: by_prompt(x, repeats) for key, x in per_image(one).items()}
        for one in (challenger, champion)
    )
    return {
        key: share_difference_interval(theirs[key], ours[key])
        for key in ("faithful", "finish", "both")
    }


def duels(challenger: Assessment, champion: Assessment) -> Mapping[str, Duel]:
    """How often the judge prefers the challenger's image of a prompt."""
    return {
        "faithfulness": duel(champion.belief, challenger.belief, _MARGIN),
        "finish": duel(champion.finish, challenger.finish, _MARGIN),
    }
