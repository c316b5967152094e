"""The TFDS builder `preferences`: two images of one prompt, and how many people prefer each.

    preferences/openmoji        synthetic pairs, flat drawings with outlines
    preferences/fluent          synthetic pairs, shaded drawings
    preferences/openmoji_tiny   64 records for tests, and so preferences/fluent_tiny
    preferences/NAME --path=DIR pairs of the user's own: see preference_files.py

A record is an image with the further image `other`. The manifest's own columns:

    dimension    in what one is better, such as color; empty: as a whole
    votes        of people who prefer the image
    votes_other  of people who prefer the other one

A synthetic pair is a scene (scenes.py), drawn twice. The other image has a fault of one dimension
(faults.py). Of the other three dimensions both images have the same faults, each at random with
probability 1/2, so that nothing else tells which one is better. Five votes are simulated, each
wrong with probability 0.1. Synthetic pairs have these columns too:

    fault                the fault that only the other image has
    shared               list: faults of both
    kind, simple, complex, style, combination, split
                         as those of scenes
"""

import json
from collections.abc import Iterator, Mapping
from random import Random
from typing import Any, ClassVar

import pyarrow as pa
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image

from emu_jax.data.builder import ImageBuilder, in_order
from emu_jax.data.dimensions import DIMENSIONS
from emu_jax.data.emoji_styles import CANVAS, STYLES
from emu_jax.data.faults import REDRAWN, TRIES, VISIBLE, difference, names, spoil
from emu_jax.data.folder import read_file
from emu_jax.data.further import check_further
from emu_jax.data.images import check, png
from emu_jax.data.preference_files import Pair, read_pairs
from emu_jax.data.scenes import SceneConfig
from emu_jax.data.scenes_drawing import Sprites, draw, find_drawings
from emu_jax.data.scenes_plan import TEMPLATES, Scene, complex_caption, plan, simple_caption
from emu_jax.errors import UserError
from emu_jax.progress import note

RECORDS, TINY = 8_200, 64  # 1,500 pairs of a dimension and style are of the split train
SEED = 1  # scenes/ has the scenes of seed 0
VOTES, WRONG = 5, 0.1
_SHARED = 0.5
OTHER = "other"
_TEXT = ("fault", "kind", "simple", "complex", "style", "combination", "split")


class Preferences(ImageBuilder):
    """See the module's docstring. `path`: the directory of the tables; of synthetic pairs that of
    the drawings, as for `scenes`.
    """

    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "OpenMoji 17.0.0, Fluent Emoji 3D 1.1.0"}
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
        SceneConfig(name=f"{style}{suffix}", style=style, records=records, seed=SEED)
        for style in ("openmoji", "fluent")
        for suffix, records in (("", RECORDS), ("_tiny", TINY))
    ]
    COLUMNS: ClassVar[dict[str, pa.DataType]] = {
        "dimension": pa.string(),
        "votes": pa.int32(),
        "votes_other": pa.int32(),
    }
    further = (OTHER,)

    @classmethod
    def named(
        cls, config: str, *, path: epath.PathLike | None = None, **kwargs: Any
    ) -> "Preferences":
        if config in cls.builder_configs:
            builder = cls(config=config, path=path, **kwargs)
            builder.columns = {"shared": pa.list_(pa.string()), **dict.fromkeys(_TEXT, pa.string())}
            return builder
        root = epath.Path(path or "").expanduser()
        if path is None or not root.is_dir():
            raise UserError(
                f"preferences/{config} needs a directory with a table of pairs: give it with "
                f"--path=DIR, or choose one of {', '.join(cls.builder_configs)}."
            )
        next(read_pairs(root), None)  # what is no table of pairs is named at once
        builder = cls(config=tfds.core.BuilderConfig(name=config), path=root, **kwargs)
        builder.columns = {"split": pa.string()}
        return builder

    @property
    def _synthetic(self) -> bool:
        return isinstance(self.builder_config, SceneConfig)

    def _info(self) -> tfds.core.DatasetInfo:
        if not self._synthetic:
            license = "That of the images."
            return self._dataset_info(description=f"The pairs of {self.path}.", license=license)
        style = STYLES[self.builder_config.style]
        return self._dataset_info(
            description=f"Pairs of scenes with and without a fault: {style.title}.",
            homepage=style.homepage,
            license=style.license,
        )

    def _rows(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        return self._drawn() if self._synthetic else self._found()

    def _drawn(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        config = self.builder_config
        drawings = find_drawings(config.style, self.path, self.downloads)
        pairs = SyntheticPairs(config.style, drawings, config.records, config.seed)
        self._others: list[bytes] = []
        made = in_order(pairs, range(len(pairs)), total=len(pairs), label=self.info.full_name)
        for image, other, row in made:
            self._others.append(other)
            yield image, row

    def _found(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """The pairs in the tables whose images can both be used."""
        self._damaged: dict[str, str] = {}
        self._used: list[int] = []
        root = epath.Path(self.path)
        unread: set[str] = set()
        total, label = sum(1 for _ in read_pairs(root, unread)), self.info.full_name
        if unread:
            note(f"columns that are not read, since unknown: {', '.join(sorted(unread)):.400}")
        results = in_order(_checked, read_pairs(root), total=total, label=label)
        for i, (pair, data, size) in enumerate(results):
            if isinstance(size, str):
                self._damaged[pair.place] = size
                continue
            self._used.append(i)
            yield (
                data,
                {
                    "key": f"{i:08d}",
                    "width": size[0],
                    "height": size[1],
                    "captions": [pair.prompt] if pair.prompt else [],
                    "source": str(self.path),
                    "dimension": pair.dimension,
                    "votes": pair.votes[0],
                    "votes_other": pair.votes[1],
                    "split": pair.split,
                },
            )
        if not self._used:
            reason = next(iter(self._damaged.values()), "the tables are empty")
            raise UserError(f"No pair in {self.path} can be used: {reason}.")

    def _further(self, name: str, rows: list[dict[str, Any]]) -> Iterator[bytes]:
        del name, rows
        if self._synthetic:
            yield from self._others
            return
        used = set(self._used)  # read again: the other images need not fit into memory
        for i, pair in enumerate(read_pairs(epath.Path(self.path))):
            if i in used:
                yield _content(pair.other)

    def _finish(self) -> None:
        if not self._synthetic and self._damaged:
            lines = (json.dumps({"pair": k, "reason": v}) for k, v in self._damaged.items())
            (self.data_path / "damaged.jsonl").write_text("".join(f"{line}\n" for line in lines))
            count = len(self._damaged)
            note(f"{count:,} pairs cannot be used and are left out (see damaged.jsonl)")


def _checked(pair: Pair) -> tuple[Pair, bytes, tuple[int, int] | str]:
    """The image's file, and its width and height; the reason if one of both cannot be used."""
    try:
        image, other = _content(pair.image), _content(pair.other)
        width, height = check(image)
        check_further(other, OTHER, (height, width))
        return pair, image, (width, height)
    except UserError as error:
        return pair, b"", str(error)
    except OSError as error:
        return pair, b"", f"cannot be read: {error.strerror or error}"


def _content(image: epath.Path | bytes) -> bytes:
    return image if isinstance(image, bytes) else read_file(image)


class SyntheticPairs:
    """i -> (the image, the other one, the manifest's row); a function of the arguments alone."""

    def __init__(self, style: str, drawings: dict[str, bytes], records: int, seed: int):
        self.style, self.seed = style, seed
        self.scenes = plan(style, records, seed)
        plain = Sprites(style, drawings)
        self._sprites = {frozenset[str](): plain}
        for faults in map(frozenset, (["unshaded"], ["lineless"], ["unshaded", "lineless"])):
            redrawn = drawings
            for name in sorted(faults) if style == "openmoji" else ():
                redrawn = {key: REDRAWN[name][1](svg) for key, svg in redrawn.items()}
            self._sprites[faults] = Sprites(style, redrawn, like=plain)

    def __len__(self) -> int:
        return len(self.scenes)

    def __call__(self, i: int) -> tuple[bytes, bytes, dict[str, Any]]:
        dimension, draws = DIMENSIONS[i % len(DIMENSIONS)], Random(f"{self.seed} pair {i}")
        picked = {one: self._pick(one, draws) for one in DIMENSIONS if one != dimension}
        own = f"{self.seed} {i}"
        shared = {name: own for name in picked.values() if draws.random() < _SHARED}
        image, tried = self.draw(i, shared), []
        for attempt in range(TRIES):
            fault = self._pick(dimension, draws)
            other = self.draw(i, {**shared, fault: f"{own} {attempt}"})
            tried.append((difference(image, other), fault, other))
            if tried[-1][0] >= VISIBLE:
                break
        _, fault, other = max(tried, key=lambda one: one[0])
        wrong = sum(draws.random() < WRONG for _ in range(VOTES))
        row = self._row(i, self.scenes[i]) | {
            "dimension": dimension,
            "votes": VOTES - wrong,
            "votes_other": wrong,
            "fault": fault,
            "shared": sorted(shared),
        }
        return png(image), png(other), row

    def draw(self, i: int, faults: Mapping[str, str]) -> Image.Image:
        """Scene i with these faults (as :func:`faults.spoil` takes them)."""
        sprites = self._sprites[frozenset(faults.keys() & REDRAWN.keys())]
        return spoil(draw(self.scenes[i], sprites, f"{self.seed} {i}")[0], faults)

    def _pick(self, dimension: str, draws: Random) -> str:
        known = names(self.style, dimension)
        return known[int(draws.random() * len(known))]

    def _row(self, index: int, scene: Scene) -> dict[str, Any]:
        template = int(Random(f"{self.seed} template {index}").random() * len(TEMPLATES))
        simple, complex_ = simple_caption(scene, template), complex_caption(scene)
        return {
            "key": f"{scene.kind}_{index:05d}",
            "width": CANVAS,
            "height": CANVAS,
            "captions": [simple, complex_],
            "source": STYLES[self.style].title,
            "kind": scene.kind,
            "simple": simple,
            "complex": complex_,
            "style": self.style,
            "combination": scene.combination,
            "split": scene.split,
        }
