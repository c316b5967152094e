"""Images during sampling, for a caller that watches."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import UInt8

Image = UInt8[np.ndarray, "_ _ 3"]


@dataclass(frozen=True)
class Previews:
    """``show(done, steps, images)`` is called after every ``every`` sampling steps but the last:
    ``images`` are what the images of a batch are going to be, predicted after ``done`` of ``steps``
    steps. An exception that it raises ends the drawing.
    """

    show: Callable[[int, int, Sequence[Image]], None]
    every: int = 5

    def pieces(self, steps: int) -> Iterator[tuple[int, int]]:
        """The first step of each piece, and that of the next."""
        for first in range(0, steps, self.every):
            yield first, min(first + self.every, steps)

    def through(self, change: Callable[[Image], Image]) -> "Previews":
        """The same with every image changed."""

        def show(done: int, steps: int, images: Sequence[Image]) -> None:
            self.show(done, steps, [change(image) for image in images])

        return replace(self, show=show)
