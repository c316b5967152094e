"""A language model's vectors of texts, read from a cache.

The cache (``emu_jax.assembly.vectors`` computes it) has one group, "text", with the array
"vectors", float32 [texts, layers, width], in the order of ``Captions(selections).texts``: row 0
belongs to the empty text and is zero. So a stream reads it as it reads a text encoder's cache, by
the numbers of captions, or by the texts themselves through :class:`PromptVectors`.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from emu_jax.data.cache import Cache
from emu_jax.data.mixture import captions_fingerprint
from emu_jax.errors import UserError

GROUP, ARRAY = "text", "vectors"


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
