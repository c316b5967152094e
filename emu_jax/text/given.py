"""Texts whose states are given: of known shape, from an encoder that is not here.

That is enough for planning a step that reads them from a cache, and for nothing else.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from emu_jax.errors import UserError
from emu_jax.nn.conditioner import Encoded
from emu_jax.nn.functional import Params
from emu_jax.text.encoder import TextEncoder


@dataclass(frozen=True)
class GivenStates(TextEncoder):
    """``width`` and ``pooled_width`` are all there is: it tokenizes nothing, so that no text ever
    reaches ``apply``, which only tells shapes."""

    def refuse(self) -> NoReturn:
        """What to say where more than shapes is wanted."""
        raise UserError(
            f"Of the text encoder {self.name} the config says widths only: a step can be planned "
            "with them (data.cache_text=True), not run; name a real encoder in config.text."
        )

    def _tokenize(self, texts: list[str]) -> NoReturn:
        self.refuse()

    def apply(self, params: Params, ids: Int[Array, "b l"], mask: Bool[Array, "b l"]) -> Encoded:
        states = jnp.zeros((*ids.shape, self.width), self.dtype)
        pooled = jnp.zeros((len(ids), self.pooled_width), self.dtype)
        return Encoded(states, mask, pooled if self.pooled_width else None)

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {}

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        yield from ()

    @property
    def weights(self) -> Path:
        return self.folder

    @property
    def fingerprint(self) -> str:
        return "none"


def make_given(
    name: str, *, length: int, width: int, pooled_width: int = 0, dtype: str = "bfloat16"
) -> GivenStates:
    """An encoder of these widths, of which nothing else is known."""
    return GivenStates(name, Path(), length, width, pooled_width, null="zeros", dtype=dtype)
