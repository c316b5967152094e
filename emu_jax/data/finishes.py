"""The TFDS builder `finishes`: the same things in several finishes, which captions can name.

    finishes/six           every thing that OpenMoji, Noto and Fluent draw; needs Noto's font
    finishes/five          the same without Noto
    finishes/preference    pairs of images: Fluent's drawing of a thing, preferred over OpenMoji's
    finishes/five_tiny     50 records for tests, and so finishes/preference_tiny

    finish      made from
    openmoji    OpenMoji's drawing, flat with outlines
    noto        Noto's drawing
    fluent      Fluent's drawing, shaded
    lineless    OpenMoji's drawing without its outlines
    pixels      OpenMoji's drawing in blocks of 8 x 8 pixels of its 128 x 128
    pencil      the edges of OpenMoji's drawing, gray on white

A record is on white. The manifest has the columns of `emoji` and

    finish      one of these
    named       list: the captions, each with the finish: "a fox, as pixel art"

Records of a pair have the further image `other` and votes instead, as those of `preferences`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import tensorflow_datasets as tfds
from PIL import Image, ImageFilter

from emu_jax.data.builder import ImageBuilder, in_order
from emu_jax.data.dimensions import FINISHES, PHRASES
from emu_jax.data.emoji import COLUMNS, find_drawings, row
from emu_jax.data.emoji_concepts import Form
from emu_jax.data.emoji_styles import STYLES, frame
from emu_jax.data.faults import lineless
from emu_jax.data.images import compose, png
from emu_jax.errors import UserError

_WHITE = (255, 255, 255)
_BLOCKS = 16  # along a side
_DARK = 3.0  # gray levels of a pencil line for a slope of one level a pixel


@dataclass(eq=False)
class FinishConfig(tfds.core.BuilderConfig):
    finishes: tuple[str, ...] = ()  # empty: pairs
    records: int = 0  # 0: all


class Finishes(ImageBuilder):
    """See the module's docstring. `path`: the font of Noto."""

    RELEASE_NOTES: ClassVar[dict[str, str]] = {
        "1.0.0": "OpenMoji 17.0.0, Fluent Emoji 3D 1.1.0, Noto as installed"
    }
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
        FinishConfig(name="six", finishes=FINISHES),
        FinishConfig(name="five", finishes=FINISHES[:5]),
        FinishConfig(name="five_tiny", finishes=FINISHES[:5], records=50),
        FinishConfig(name="preference"),
        FinishConfig(name="preference_tiny", records=50),
    ]
    COLUMNS: ClassVar[dict[str, pa.DataType]] = COLUMNS
    builder_config: FinishConfig

    @classmethod
    def named(cls, config: str, **kwargs: Any) -> "Finishes":
        if config not in cls.builder_configs:
            known = ", ".join(cls.builder_configs)
            raise UserError(f"There is no data set finishes/{config}; choose one of {known}.")
        builder = cls(config=config, **kwargs)
        if builder.builder_config.finishes:
            builder.columns = {"finish": pa.string(), "named": pa.list_(pa.string())}
        else:
            builder.columns = {"votes": pa.int32(), "votes_other": pa.int32()}
            builder.further = ("other",)
        return builder

    def _info(self) -> tfds.core.DatasetInfo:
        used = [STYLES[style] for style in self._styles]
        return self._dataset_info(
            description=f"Things in several finishes: {'; '.join(one.title for one in used)}.",
            homepage=used[0].homepage,
            license=" ".join(f"{one.title}: {one.license}." for one in used),
        )

    @property
    def _styles(self) -> list[str]:
        """The styles whose drawings are used."""
        return [style for style in STYLES if style in (self._finishes or ("openmoji", "fluent"))]

    @property
    def _finishes(self) -> tuple[str, ...]:
        return self.builder_config.finishes

    def _rows(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        found = {}
        for style in self._styles:
            path = self.path if style == "noto" else None
            found[style], forms = find_drawings(style, path, self.downloads)
        shared = [form for form in forms if all(form.code in own for own in found.values())]
        made = self._finishes or ("fluent", "openmoji")
        records = self.builder_config.records or len(made) * len(shared)
        shared = shared[:: max(1, len(shared) * len(made) // records)][: records // len(made)]

        def draw(form: Form) -> list[bytes]:
            drawings = {style: own[form.code] for style, own in found.items()}
            return [png(finished(finish, drawings)) for finish in made]

        self._others: list[bytes] = []
        drawn = in_order(draw, shared, total=len(shared), label=self.info.full_name)
        for form, images in zip(shared, drawn, strict=True):
            if not self._finishes:
                self._others.append(images[1])
                yield images[0], row(form, "fluent") | {"votes": 5, "votes_other": 0}
                continue
            for finish, data in zip(made, images, strict=True):
                style = finish if finish in STYLES else "openmoji"
                about = row(form, style) | {"key": f"{form.code}_{finish}", "finish": finish}
                named = [f"{text}, {PHRASES[finish]}" for text in about["captions"]]
                yield data, about | {"named": named}

    def _further(self, name: str, rows: list[dict[str, Any]]) -> Iterator[bytes]:
        del name, rows
        yield from self._others


def finished(finish: str, drawings: dict[str, Any]) -> Image.Image:
    """A thing in a finish, on white; ``drawings`` has what the ``render`` of each style takes."""
    if finish in STYLES:
        return _on_white(frame(STYLES[finish].render(drawings[finish])))
    plain = STYLES["openmoji"].render(drawings["openmoji"])
    if finish == "lineless":
        bare = STYLES["openmoji"].render(lineless(drawings["openmoji"]))
        return _on_white(frame(bare, like=plain))
    return _CHANGES[finish](_on_white(frame(plain)))


def _on_white(image: Image.Image) -> Image.Image:
    return compose(image, _WHITE)


def _pixels(image: Image.Image) -> Image.Image:
    small = image.resize((_BLOCKS, _BLOCKS), Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.NEAREST)


def _pencil(image: Image.Image) -> Image.Image:
    luma = np.asarray(image.convert("L").filter(ImageFilter.GaussianBlur(1)), np.float64)
    down, right = np.gradient(luma)
    slope = np.hypot(down, right)
    gray = np.rint(255 - np.clip(_DARK * slope, 0, 215)).astype(np.uint8)
    return Image.fromarray(np.repeat(gray[..., None], 3, -1))


_CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {"pixels": _pixels, "pencil": _pencil}
