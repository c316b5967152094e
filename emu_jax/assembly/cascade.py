"""Cascades: one checkpoint draws, others enlarge its images; each is trained separately.

``A+B+C`` names a cascade wherever a model is named: A draws, B enlarges the images of A, and C
those of B. A stage that reads tokens gets the tokens of the stage before, without decoding.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image as pillow

from emu_jax.assembly.generator import Generator, Size, require_multiples
from emu_jax.assembly.given import NOTHING, Cropped, Given, Laid
from emu_jax.assembly.previews import Previews
from emu_jax.assembly.starting import Start, StartImage, draw_from
from emu_jax.data.mixture import Selection
from emu_jax.errors import UserError
from emu_jax.evaluation.prompt_sets import PromptSet

Image = UInt8[np.ndarray, "h w 3"]


class Cascade:
    """Draws like a :class:`Generator`; ``changes`` apply to the first stage, which draws, and
    ``prompt_weighting`` to all, because all of them read the prompt.
    """

    def __init__(
        self,
        checkpoints: Sequence[str],
        batch_size: int = 16,
        prompt_weighting: str = "none",
        **changes: Any,
    ):
        common: dict[str, Any] = dict(batch_size=batch_size, prompt_weighting=prompt_weighting)
        base = Generator(checkpoints[0], **common, **changes)
        refuse_upsampler(base, checkpoints[0])
        self.stages = [base, *(Generator(name, **common) for name in checkpoints[1:])]
        side = base.side
        for i, (name, stage) in enumerate(zip(checkpoints[1:], self.stages[1:], strict=True)):
            if not stage.input_kind:
                raise UserError(f"{name} draws from prompts only: put it first in the cascade.")
            if side * stage.factor != stage.side:
                raise UserError(
                    f"{name} enlarges images of {stage.side // stage.factor} pixels, but gets "
                    f"them with {side}: it does not follow {checkpoints[0]}."
                )
            if not stage.follows(self.stages[i]):
                raise UserError(
                    f"{name} reads tokens of {stage.config.low_codec.path}, and {checkpoints[i]} "
                    "draws none of them: it follows what was trained with that codec."
                )
            side = stage.side
        self.side, self.batch_size = side, base.batch_size
        self.prompt_weighting = prompt_weighting
        self.config, self.step, self.chosen = base.config, base.step, base.chosen
        self.fingerprints = dict(base.fingerprints)
        for i, stage in enumerate(self.stages[1:], 1):
            self.fingerprints |= {f"stage_{i}/{k}": v for k, v in stage.fingerprints.items()}

    @property
    def shapes(self) -> list[Size]:
        """(height, width) in pixels of the images that it was trained on."""
        return [(self.factor * h, self.factor * w) for h, w in self.stages[0].shapes]

    @property
    def multiple(self) -> int:
        """Height and width of an image are multiples of it."""
        return self.factor * self.stages[0].multiple

    @property
    def factor(self) -> int:
        """How many times larger all stages make the image of the first one."""
        return self.side // self.stages[0].side

    def draw(
        self,
        prompts: str | Sequence[str],
        seeds: Sequence[int] | None = None,
        negative: str = "",
        size: Size | None = None,
        start: StartImage | None = None,
        *,
        images: Mapping[str, Sequence[Any]] | None = None,
    ) -> list[Image]:
        """As :meth:`Generator.draw`; ``size`` is that of the last stage, ``images`` are those of
        the first, in its size.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        own = (seeds or range(len(prompts)), negative, size)
        return list(draw_from(self, start, prompts, *own, images=images))

    def draw_each(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        negative: str = "",
        size: Size | None = None,
        start: Start | None = None,
        *,
        images: Mapping[str, Sequence[Any]] | None = None,
        previews: Previews | None = None,
    ) -> Iterator[Image]:
        """One image for each (prompt, seed), in order, as soon as its batch is done. The first
        stage starts from ``start``, an image of the last one's size; ``previews`` are of the first
        stage, enlarged.
        """
        previews = previews and previews.through(self._enlarged)
        if start:
            start, size = start.shrunk(self.factor), start.size
        first = self.first_size(size) if size else None
        for row in range(0, len(prompts), self.batch_size):
            rows, drawn = slice(row, row + self.batch_size), None
            for stage, reader in zip_longest(self.stages, self.stages[1:]):
                decode = reader is None or reader.input_kind == "images"
                more: dict[str, Any] = {}
                if stage is self.stages[0]:
                    given = {name: x[rows] for name, x in (images or {}).items()}
                    more = dict(size=first, start=start, images=given, previews=previews)
                own = (prompts[rows], seeds[rows], negative)
                drawn = list(stage.draw_each(*own, drawn, decode, **more))
            yield from drawn or ()

    def _enlarged(self, image: Image) -> UInt8[np.ndarray, "_ _ 3"]:
        """An image of the first stage in the size of the last one's."""
        across = (self.factor * image.shape[1], self.factor * image.shape[0])
        return np.asarray(pillow.fromarray(image).resize(across, pillow.Resampling.BICUBIC))

    def first_size(self, size: Size) -> Size:
        """The size of the first stage's images for one of the last stage's."""
        require_multiples(size, self.multiple)
        return size[0] // self.factor, size[1] // self.factor

    @property
    def further(self) -> tuple[str, ...]:
        """Those of the first stage: :attr:`Generator.further`."""
        return self.stages[0].further

    @property
    def hint(self) -> str:
        """That of the first stage: :attr:`Generator.hint`."""
        return self.stages[0].hint

    @property
    def recipe(self) -> dict[str, Any]:
        """Those of all stages."""
        return {f"stage_{i}": stage.recipe for i, stage in enumerate(self.stages)}

    def costs(self) -> dict[str, float]:
        """The sums of the costs of all stages."""
        every = [stage.costs() for stage in self.stages]
        return {name: sum(costs[name] for costs in every) for name in every[0]}

    def loss(self, selection: Selection) -> float:
        """The validation loss of the first stage."""
        return self.stages[0].loss(selection)


def stages_of(name: str) -> list[str]:
    """The checkpoints of a model's name: several, joined by ``+``, for a cascade."""
    one = epath.Path(name.split("@")[0]).expanduser().exists()  # a folder with a plus in its name
    return [name] if one else name.split("+")


def named_with(name: str, text_adapter: str) -> str:
    """The name of a model with a text adapter, which is that of a cascade's first stage."""
    first, *others = stages_of(name)
    return "+".join([f"{first}@{text_adapter}" if text_adapter else first, *others])


def conditioning(
    generator: Generator | Cascade,
    given: Given,
    prompts: PromptSet,
    size: Size | None = None,
    start: StartImage | None = None,
) -> dict[str, list[Any]]:
    """The images of ``given`` for every prompt, as :meth:`draw_each` takes them.

    Raises:
      UserError: one is missing, or the model takes others than a hint and there is a ``start``.
    """
    first = generator.stages[0] if isinstance(generator, Cascade) else generator
    if not first.further and given == NOTHING:
        return {}
    background = tuple(first.config.data.background)
    if start:
        others = [name for name in first.further if name != first.hint]
        if others:
            raise UserError(
                f"The model takes {' and '.join(others)} beside the prompt, and cannot start from "
                "another image: use emu-jax sample with --given, without --image."
            )
        placed = start.placement(generator, size)
        factor = generator.factor if isinstance(generator, Cascade) else 1
        laid = Laid(start, placed, factor, background)
        return given.images(first.further, first.hint, prompts, laid)
    if isinstance(generator, Cascade):
        size = size and generator.first_size(size)
    shown = Cropped(size or (first.side, first.side), background)
    return given.images(first.further, first.hint, prompts, shown)


def open_generator(name: str, batch_size: int = 16, **changes: Any) -> Generator | Cascade:
    """The model of a name, ready to draw: a generator, or with ``+`` a cascade."""
    checkpoints = stages_of(name)
    if len(checkpoints) > 1:
        return Cascade(checkpoints, batch_size, **changes)
    generator = Generator(name, batch_size, **changes)
    refuse_upsampler(generator, name)
    return generator


def refuse_upsampler(generator: Generator, name: str) -> None:
    """Raises UserError for a super-resolution stage, which cannot draw from prompts only."""
    if generator.input_kind:
        raise UserError(
            f"{name} enlarges images: put it behind a model that draws, BASE+{name}, or use "
            "emu-jax upsample."
        )
