"""Metrics by taggers (configs/tagger.py): which words apply to an image?

Faults: the probability that an image has a fault of color, of layout, of lighting or of detail; the
mean of the four, and the largest. The tagger is the folder ``faults`` of the folder of weights:

    emu-jax export runs/tagger --out=WEIGHTS/faults

It has learned from drawings of another style than generators do, and from no preference.

Finish: whether an image has the finish that its prompt names, the most probable one of those that
the tagger in the folder ``finishes`` knows (``words=finish``).
"""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from emu_jax.checkpoint.export import load_model
from emu_jax.checkpoint.foreign import described_by, require_fit
from emu_jax.data.dimensions import PHRASES
from emu_jax.errors import UserError
from emu_jax.evaluation.frozen import DEFAULT_WEIGHTS_DIR, Frozen, Images, Remembered
from emu_jax.evaluation.measuring import Batch
from emu_jax.nn.functional import Network
from emu_jax.nn.tagger import Tagger

FAULTS, FINISH = "faults", "finishes"


@cache
def open_tagger(
    folder: str, name: str
) -> tuple[tuple[str, ...], Callable[[Images], Float[np.ndarray, "n words"]]]:
    """The words of the tagger ``name`` in a folder, and their probabilities of images.

    Raises:
      UserError: there is none, or it is no tagger.
    """
    place = Path(folder).expanduser() / name
    if not place.exists():
        raise UserError(
            f"{place.parent} has no folder {name}: train configs/tagger.py and export it "
            "there (docs/metrics.md), or name another folder by --weights or EMU_JAX_WEIGHTS."
        )
    model = load_model(str(place), dtype=np.float32)
    if model.config.get("task") != "tagging":
        raise UserError(f"{place} is not a tagger: its task is {model.config.get('task')!r}.")
    with described_by(str(place)):
        words = tuple(model.config["tags"]["words"])
        arguments = {**model.config["tagger"], "words": len(words)}
        side = model.config["data"]["image_size"]
        network = Network(lambda rngs: Tagger(**arguments, rngs=rngs))
        shapes = network.shapes()
    require_fit(model.params, shapes, str(place))
    run = Frozen(network, model.params)

    def probabilities(images: Images) -> np.ndarray:
        pixels = np.stack([_resized(image, side) for image in images])
        return 1 / (1 + np.exp(-np.asarray(run(pixels / np.float32(127.5) - 1), np.float64)))

    return words, Remembered(probabilities)


def _resized(image: UInt8[np.ndarray, "_ _ 3"], side: int) -> UInt8[np.ndarray, "s s 3"]:
    if image.shape[:2] == (side, side):
        return image
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS))


class _Fault:
    """``dimensions`` are those that are read; ``join`` makes one number of theirs."""

    dimensions: ClassVar[Sequence[str]] = ()
    join: ClassVar[Callable[..., np.ndarray]] = np.mean

    def __init__(self, weights: str = DEFAULT_WEIGHTS_DIR):
        words, self._tags = open_tagger(weights, FAULTS)
        missing = [word for word in self.dimensions if word not in words]
        if missing:
            raise UserError(f"The tagger {weights}/{FAULTS} has no word {missing[0]!r}.")
        self._outputs = [words.index(word) for word in self.dimensions or words]

    def __call__(self, batch: Batch) -> Float[np.ndarray, " n"]:
        return type(self).join(self._tags(batch.images)[:, self._outputs], axis=1)


class Color(_Fault):
    dimensions = ("color",)


class Layout(_Fault):
    dimensions = ("layout",)


class Lighting(_Fault):
    dimensions = ("lighting",)


class Detail(_Fault):
    dimensions = ("detail",)


class Mean(_Fault):
    """Of all dimensions."""


class Worst(_Fault):
    """The largest of all dimensions."""

    join = np.max


class FinishAsked:
    """1 where the image has the finish that its prompt names.

    Raises:
      UserError: a prompt names none.
    """

    def __init__(self, weights: str = DEFAULT_WEIGHTS_DIR):
        self._words, self._tags = open_tagger(weights, FINISH)

    def __call__(self, batch: Batch) -> Float[np.ndarray, " n"]:
        best = np.argmax(self._tags(batch.images), axis=1)
        return np.array(
            [best[i] == self._asked(text) for i, text in enumerate(batch.prompts)], float
        )

    def _asked(self, prompt: str) -> int:
        named = [i for i, word in enumerate(self._words) if prompt.endswith(f", {PHRASES[word]}")]
        if not named:
            raise UserError(
                f"The metric finish_asked is of prompts that name a finish, unlike {prompt!r}: use "
                "--prompts=finishes/six:CONDITION --prompt_column=named."
            )
        return named[0]
