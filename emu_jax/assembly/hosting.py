"""What a program that runs commands for its user provides: open models, and eyes for previews."""

from collections.abc import Callable
from dataclasses import dataclass

from emu_jax.assembly.cascade import Cascade, open_generator
from emu_jax.assembly.generator import Generator
from emu_jax.assembly.previews import Previews


@dataclass(frozen=True)
class Host:
    """``open`` opens the model of a name, as :func:`open_generator` does, perhaps one that it has
    kept; ``previews`` are shown during sampling.
    """

    open: Callable[..., Generator | Cascade] = open_generator
    previews: Previews | None = None


ALONE = Host()
