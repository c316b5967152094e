"""The TFDS builder `faulty`: the drawings of `emoji` with faults, and their captions unchanged.

    faulty/openmoji        flat with outlines
    faulty/fluent          shaded like 3D models
    faulty/noto            flat; needs the font
    faulty/openmoji_tiny   48 records for tests

Every drawing is there three times, on white. Each time it has a fault (faults.py) of each of the
four dimensions with probability 1/2. A generator that is tuned on it has something to mend
(docs/feedback.md); a tagger learns from it which faults an image has. The manifest has the columns
of `emoji` and

    dimensions   list: the dimensions in which it has a fault that can be seen
    faults       list: the names of these faults
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import tensorflow_datasets as tfds
from PIL import Image

from emu_jax.data.builder import ImageBuilder, in_order
from emu_jax.data.dimensions import DIMENSIONS
from emu_jax.data.emoji import COLUMNS, find_drawings, row
from emu_jax.data.emoji_concepts import Form
from emu_jax.data.emoji_styles import STYLES, frame
from emu_jax.data.faults import REDRAWN, TRIES, VISIBLE, difference, names, spoil
from emu_jax.data.images import png
from emu_jax.errors import UserError

COPIES, TINY = 3, 48
_SHARE = 0.5
_LEAST = 0.02  # of the canvas is drawn


@dataclass(eq=False)
class FaultyConfig(tfds.core.BuilderConfig):
    style: str = "openmoji"
    records: int = 0  # 0: all


class Faulty(ImageBuilder):
    """See the module's docstring. `path`: as for `emoji`."""

    RELEASE_NOTES: ClassVar[dict[str, str]] = {
        "1.0.0": "OpenMoji 17.0.0, Fluent Emoji 3D 1.1.0, Noto as installed"
    }
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
        *(FaultyConfig(name=style, style=style) for style in STYLES),
        FaultyConfig(name="openmoji_tiny", style="openmoji", records=TINY),
    ]
    COLUMNS: ClassVar[dict[str, pa.DataType]] = {
        **COLUMNS,
        "dimensions": pa.list_(pa.string()),
        "faults": pa.list_(pa.string()),
    }
    builder_config: FaultyConfig

    @classmethod
    def named(cls, config: str, **kwargs: Any) -> "Faulty":
        if config not in cls.builder_configs:
            known = ", ".join(cls.builder_configs)
            raise UserError(f"There is no data set faulty/{config}; choose one of {known}.")
        return cls(config=config, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        style = STYLES[self.builder_config.style]
        return self._dataset_info(
            description=f"Drawings with faults: {style.title}.",
            homepage=style.homepage,
            license=style.license,
        )

    def _rows(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        style, records = self.builder_config.style, self.builder_config.records
        drawings, forms = find_drawings(style, self.path, self.downloads)
        items = [(form, copy) for form in forms for copy in range(COPIES)]
        items = items[:: len(items) // records][:records] if records else items

        def draw(item: tuple[Form, int]) -> tuple[bytes, dict[str, str]]:
            form, copy = item
            image, found = faulty(style, drawings[form.code], f"{style} {form.code} {copy}")
            return png(image), found

        drawn = in_order(draw, items, total=len(items), label=self.info.full_name)
        for (form, copy), (data, found) in zip(items, drawn, strict=True):
            about = {"dimensions": list(found), "faults": list(found.values())}
            yield data, row(form, style) | {"key": f"{form.code}_{copy}"} | about


def faulty(style: str, drawing: Any, seed: str) -> tuple[Image.Image, dict[str, str]]:
    """A drawing with faults, on white, and the name of the fault of each dimension that has one; a
    function of the arguments. A fault that no try makes visible is left out, and so is one that
    leaves nothing of the drawing.
    """
    draws, plain = Random(seed), STYLES[style].render(drawing)

    def drawn(faults: dict[str, str]) -> Image.Image:
        changed = drawing
        for name in sorted(faults.keys() & REDRAWN.keys()):
            changed = REDRAWN[name][1](changed)
        image = plain if changed is drawing else STYLES[style].render(changed)
        return spoil(frame(image, like=plain), faults)

    clean = image = drawn({})
    found, seeds = {}, {}
    for dimension in DIMENSIONS:
        if draws.random() >= _SHARE:
            continue
        for attempt in range(TRIES):
            known = names(style, dimension)
            name = known[int(draws.random() * len(known))]
            own = {name: f"{seed} {attempt}"}
            if difference(clean, drawn(own)) < VISIBLE:
                continue
            spoiled = drawn(seeds | own)
            if np.mean(np.asarray(spoiled).min(-1) < 250) >= _LEAST:
                image, found[dimension], seeds = spoiled, name, seeds | own
                break
    return image, found
