"""A model's vectors of texts, read from a cache, and the controls that replace them.

The cache (``emu_jax.assembly.vectors`` computes it) has one group, "text", with the array
"vectors", float32 [texts, layers, width], in the order of ``Captions(selections).texts``: row 0
belongs to the empty text and is zero. So a stream reads it as it reads a text encoder's cache, by
the numbers of captions, or by the texts themselves through :class:`PromptVectors`.
"""

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float32, Int

from emu_jax.data.cache import Cache, Fingerprint
from emu_jax.data.mixture import captions_fingerprint
from emu_jax.errors import UserError

GROUP, ARRAY = "text", "vectors"
Control = Literal["none", "shuffled", "random"]
_MEASURED = 4096  # texts from which the moments of random vectors are taken


class ControlVectors:
    """The cache of the vectors of ``texts``, with vectors that do not belong to their texts.

    control="shuffled": a text has the vector of another text, the next one in an order by hash.
    control="random": a text has normal random numbers, with the mean and the standard deviation of
    every channel of the cache. Both are functions of the seed and the text (and of the cache), not
    of the order of reading. The vector of the empty text stays zero.
    """

    def __init__(self, cache: Cache, texts: Sequence[str], control: Control, seed: int = 0):
        cache.require(captions_fingerprint(texts))
        self.cache, self.control = cache, control
        self._hashes = np.array([_hashed(seed, text) for text in texts], np.uint64)
        order = 1 + np.argsort(self._hashes[1:], kind="stable")
        self._partners = np.zeros(len(texts), int)
        self._partners[order] = np.roll(order, -1)
        measured = np.linspace(1, len(texts) - 1, min(_MEASURED, len(texts) - 1)).astype(int)
        vectors = cache.take(measured, GROUP)[ARRAY]
        self._mean, self._deviation = vectors.mean(0), vectors.std(0)

    def require(self, wanted: Fingerprint) -> None:
        self.cache.require(wanted)

    def take(self, ids: Int[np.ndarray, "b"], group: str) -> dict[str, np.ndarray]:
        """As :meth:`Cache.take`."""
        if self.control == "shuffled":
            return self.cache.take(self._partners[ids], group)
        rows = [self._random(i) for i in ids]
        return {ARRAY: np.stack(rows).astype(np.float32)}

    def _random(self, i: int) -> np.ndarray:
        if i == 0:
            return np.zeros_like(self._mean)
        numbers = np.random.default_rng(self._hashes[i]).standard_normal(self._mean.shape)
        return self._mean + self._deviation * numbers


def _hashed(seed: int, text: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {text}".encode()).digest()[:8])


class PromptVectors:
    """The rows of a cache by text.

    Raises:
      UserError: the cache was computed for other texts.
    """

    def __init__(self, cache: Cache, texts: Sequence[str]):
        cache.require(captions_fingerprint(texts))
        self.cache = cache
        self._numbers = {text: i for i, text in enumerate(texts)}

    @property
    def shape(self) -> tuple[int, int]:
        """(layers, width) of a text's vectors."""
        _, layers, width = self.cache.layout[GROUP][ARRAY].shape
        return layers, width

    @property
    def layers(self) -> tuple[int, ...]:
        """The blocks that the vectors come from."""
        return tuple(map(int, self.cache.fingerprint["layers"].split(",")))

    def take(self, texts: Sequence[str]) -> Float32[np.ndarray, "b layers width"]:
        """The vectors of texts of the cache.

        Raises:
          UserError: it has no such text.
        """
        unknown = [text for text in texts if text not in self._numbers]
        if unknown:
            raise UserError(
                f"The cache {self.cache.directory} has no vectors of the text {unknown[0][:40]!r}; "
                "compute them with `emu-jax data vectors`."
            )
        numbers = np.array([self._numbers[text] for text in texts], int)
        return self.cache.take(numbers, GROUP)[ARRAY]
