"""The TFDS builder `emoji`: about 2,000 things drawn in three styles, one config per style.

    emoji/openmoji   flat with outlines, and OpenMoji's own extras
    emoji/fluent     shaded like 3D models: the quality-tuning set
    emoji/noto       flat; needs the font

A record is a 128 x 128 RGBA PNG. The manifest's own columns:

    concept   code points of the concept: the same in every style, and for all its variants
    style     openmoji, fluent, noto
    group     Unicode's group (animals-nature, food-drink, ...); OpenMoji's own drawings have
              extras (things), brands or signs; flags of all kinds have flags
    part      tuned, kept or held_out: see emoji_concepts.py
    needle    rank of a Fluent image in the quality-tuning set, from 0; -1 for every other record

So the haystack is `part == tuned|kept` and the 100 needles of Fluent are
`needle >= 0 and needle < 100`: every such prefix spans all groups.
"""

import functools
from collections.abc import Iterator
from typing import Any, ClassVar

import emoji
import pyarrow as pa
import tensorflow_datasets as tfds
from etils import epath

from emu_jax.data.builder import ImageBuilder, in_order
from emu_jax.data.emoji_concepts import Form, captions, forms, plain
from emu_jax.data.emoji_styles import CANVAS, STYLES, frame
from emu_jax.data.images import png
from emu_jax.errors import UserError

COLUMNS: dict[str, pa.DataType] = {
    "concept": pa.string(),
    "style": pa.string(),
    "group": pa.string(),
    "part": pa.string(),
    "needle": pa.int32(),
}


class Emoji(ImageBuilder):
    """See the module's docstring. `path`: the font, the npm tarball or the SVG folder."""

    RELEASE_NOTES: ClassVar[dict[str, str]] = {
        "1.0.0": "OpenMoji 17.0.0, Fluent Emoji 3D 1.1.0, Noto as installed"
    }
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
        tfds.core.BuilderConfig(name=name, description=style.title)
        for name, style in STYLES.items()
    ]
    COLUMNS: ClassVar[dict[str, pa.DataType]] = COLUMNS

    @classmethod
    def named(cls, config: str, **kwargs: Any) -> "Emoji":
        if config not in STYLES:
            raise UserError(f"There is no style emoji/{config}; choose one of {', '.join(STYLES)}.")
        return cls(config=config, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        style = STYLES[self.builder_config.name]
        return self._dataset_info(
            description=f"{style.title}: one image per emoji, captions from the Unicode names.",
            homepage=style.homepage,
            license=style.license,
        )

    def _rows(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        name = self.builder_config.name
        drawings, drawn = find_drawings(name, self.path, self.downloads)

        def draw(form: Form) -> bytes:
            return png(frame(STYLES[name].render(drawings[form.code])))

        images = in_order(draw, drawn, total=len(drawn), label=self.info.full_name)
        for form, data in zip(drawn, images, strict=True):
            yield data, row(form, name)


def find_drawings(
    style: str, path: epath.PathLike | None, downloads: epath.Path
) -> tuple[dict[str, Any], list[Form]]:
    """Code of a form -> what the style's `render` takes; and the forms that the style draws.

    Raises UserError where it draws none.
    """
    table = forms()
    drawings = STYLES[style].find(table, path, downloads)
    drawn = [form for form in table.values() if form.code in drawings]
    if not drawn:
        raise UserError(f"No image of {STYLES[style].title} was found in {path}.")
    return drawings, drawn


def row(form: Form, style: str) -> dict[str, Any]:
    """The manifest's row of a form in a style."""
    return {
        "key": form.code,
        "width": CANVAS,
        "height": CANVAS,
        "captions": captions(form, _aliases().get(form.code, ())),
        "source": STYLES[style].title,
        "concept": form.concept,
        "style": style,
        "group": form.group,
        "part": form.part,
        "needle": form.needle if style == "fluent" else -1,
    }


@functools.cache
def _aliases() -> dict[str, tuple[str, ...]]:
    """Code of a form -> other English names that people type for it."""
    found: dict[str, tuple[str, ...]] = {}
    for text, about in emoji.EMOJI_DATA.items():
        code = plain("-".join(f"{ord(c):x}" for c in text))
        names = (alias.strip(":").replace("_", " ") for alias in about.get("alias", ()))
        # Shorter ones are country codes and slang ("fr", "ng"), which are no captions.
        found.setdefault(code, tuple(n for n in names if len(n) > 2 and n[0].isalpha()))
    return found
