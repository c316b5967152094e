"""The TFDS builder `scenes`: images of known contents, composed from one to six emoji drawings.

    scenes/openmoji        flat with outlines; every thing in six colors
    scenes/fluent          shaded like 3D models; things of several hues keep their colors
    scenes/openmoji_tiny   60 records for tests, and so scenes/fluent_tiny

A record is a 128 x 128 RGBA PNG with the further image `instances`, its map of instances. The
manifest's own columns:

    kind      single, count, color, two (things in two colors), action (of one thing on another),
              person (a real drawing of a person who does something)
    things    list: what instance 1, 2, ... is; of a person what it does
    colors    list: color of instance 1, 2, ...; empty where a drawing has several
    count     number of instances
    relation  of an action: instance 1 rides, carries, chases, kicks, holds or hides under 2
    simple    a sentence: "There are three apples."
    complex   keywords: "3 apples, exactly three, apple apple apple, two above one below, ..."
    style     openmoji or fluent
    combination, split
              what a prompt asks for, and train, validation or test: no combination is in two splits

So `split == test and kind == two` selects the pairs that no training shows. The contents are in
scenes_things.py, the plan and the captions in scenes_plan.py, the drawing in scenes_drawing.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar

import pyarrow as pa
import tensorflow_datasets as tfds
from PIL import Image

from emu_jax.data.builder import ImageBuilder, in_order
from emu_jax.data.emoji_styles import CANVAS, STYLES
from emu_jax.data.images import png
from emu_jax.data.scenes_drawing import Sprites, draw, find_drawings
from emu_jax.data.scenes_plan import TEMPLATES, Scene, complex_caption, plan, simple_caption
from emu_jax.errors import UserError

RECORDS, TINY = 12_000, 60


@dataclass(eq=False)
class SceneConfig(tfds.core.BuilderConfig):
    style: str = "openmoji"
    records: int = RECORDS
    seed: int = 0


class Scenes(ImageBuilder):
    """See the module's docstring. `path`: the npm tarball or the SVG folder."""

    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "OpenMoji 17.0.0, Fluent Emoji 3D 1.1.0"}
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
        SceneConfig(name=f"{style}{suffix}", style=style, records=records)
        for style in ("openmoji", "fluent")
        for suffix, records in (("", RECORDS), ("_tiny", TINY))
    ]
    COLUMNS: ClassVar[dict[str, pa.DataType]] = {
        "kind": pa.string(),
        "things": pa.list_(pa.string()),
        "colors": pa.list_(pa.string()),
        "count": pa.int32(),
        "relation": pa.string(),
        "simple": pa.string(),
        "complex": pa.string(),
        "style": pa.string(),
        "combination": pa.string(),
        "split": pa.string(),
    }
    further = ("instances",)
    builder_config: SceneConfig

    @classmethod
    def named(cls, config: str, **kwargs: Any) -> "Scenes":
        if config not in cls.builder_configs:
            known = ", ".join(cls.builder_configs)
            raise UserError(f"There is no data set scenes/{config}; choose one of {known}.")
        return cls(config=config, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        style = STYLES[self.builder_config.style]
        return self._dataset_info(
            description=f"Scenes composed of drawings: {style.title}.",
            homepage=style.homepage,
            license=style.license,
        )

    def _rows(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        config = self.builder_config
        drawings = find_drawings(config.style, self.path, self.downloads)
        sprites = Sprites(config.style, drawings)
        scenes = plan(config.style, config.records, config.seed)
        self._maps: list[bytes] = []

        def image(i: int) -> tuple[bytes, bytes]:
            drawn, instances = draw(scenes[i], sprites, f"{config.seed} {i}")
            return png(drawn), png(Image.fromarray(instances))

        images = in_order(image, range(len(scenes)), total=len(scenes), label=self.info.full_name)
        for i, (scene, (data, instances)) in enumerate(zip(scenes, images, strict=True)):
            self._maps.append(instances)
            yield data, self._row(i, scene)

    def _further(self, name: str, rows: list[dict[str, Any]]) -> Iterator[bytes]:
        del name, rows
        yield from self._maps

    def _row(self, index: int, scene: Scene) -> dict[str, Any]:
        config = self.builder_config
        template = int(Random(f"{config.seed} template {index}").random() * len(TEMPLATES))
        simple, complex_ = simple_caption(scene, template), complex_caption(scene)
        return {
            "key": f"{scene.kind}_{index:05d}",
            "width": CANVAS,
            "height": CANVAS,
            "captions": [simple, complex_],
            "source": STYLES[config.style].title,
            "kind": scene.kind,
            "things": list(scene.things),
            "colors": list(scene.colors),
            "count": len(scene.things),
            "relation": scene.relation,
            "simple": simple,
            "complex": complex_,
            "style": config.style,
            "combination": scene.combination,
            "split": scene.split,
        }
