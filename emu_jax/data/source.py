"""A built data set opened for reading: record i is the encoded bytes of an image.

A data set lies in `<data_dir>/<name>/<version>`, its records in ArrayRecord files and its manifest
beside them. A `Source` pickles as its name and its directory alone, so it is cheap to send to
worker processes, which open their own readers and manifest on first use.
"""

import functools
import json
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from emu_jax.data import manifest as manifests
from emu_jax.data.further import FURTHER
from emu_jax.data.manifest import Manifest
from emu_jax.data.places import DEFAULT_DATA_DIR
from emu_jax.errors import UserError

IMAGES = "train"  # the split of the images; those of further images have their names


class Source:
    """A data set's records and manifest, both opened on first use."""

    def __init__(self, name: str, directory: epath.PathLike):
        self.name = name
        self.directory = str(directory)
        self._opened: dict[str, Any] = {}

    @functools.cached_property
    def manifest(self) -> Manifest:
        return Manifest.read(self.directory)

    @property
    def further(self) -> list[str]:
        """The names of the further images that records hold: see further.py."""
        return [name for name in FURTHER if name in self.manifest.columns]

    def read(self, index: int, further: str = "") -> bytes:
        """The encoded bytes of a record's image, or of one of its further images, as they were
        stored; empty where the record lacks the further image.
        """
        return self._records(further or IMAGES)[int(index)]["image"]

    def captions(self, index: int) -> list[str]:
        """The captions that the record holds beside its image."""
        return [text.decode() for text in self._records(IMAGES)[int(index)]["captions"]]

    def __len__(self) -> int:
        return len(self.manifest)

    def __reduce__(self):
        return Source, (self.name, self.directory)

    def __repr__(self) -> str:
        return f"Source({self.name!r}, {self.directory!r})"

    def _records(self, split: str) -> Any:
        if split not in self._opened:
            if split not in self._builder.info.splits:
                raise UserError(
                    f"{self.directory} has no split {split!r}: build the data set again with "
                    "--force."
                )
            self._opened[split] = self._builder.as_data_source(
                split=split, decoders={"image": tfds.decode.SkipDecoding()}
            )
        return self._opened[split]

    @functools.cached_property
    def _builder(self) -> tfds.core.DatasetBuilder:
        _refuse_code(epath.Path(self.directory) / "features.json")
        return tfds.builder_from_directory(self.directory)


def _refuse_code(file: epath.Path) -> None:
    """Raises UserError unless ``features.json`` names classes of tfds only, since tfds imports
    the module of every class that the file names."""
    try:
        features = json.loads(file.read_text())
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(
            f"{file} cannot be read ({error}): remove its folder and build the data set anew"
        ) from error
    for name in _classes(features):
        if not name.startswith("tensorflow_datasets.core.features."):
            raise UserError(
                f"{file} names the class {name!r}, which is not a class of tfds: remove its folder "
                "and build the data set anew"
            )


def _classes(value: Any) -> Iterator[str]:
    """Names of classes in features.json, by the keys of either of its versions."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key in ("pythonClassName", "python_class_name", "type") and isinstance(item, str):
                yield item
            yield from _classes(item)
    elif isinstance(value, list):
        for item in value:
            yield from _classes(item)


def open_source(name: str, data_dir: epath.PathLike = DEFAULT_DATA_DIR) -> Source:
    """The newest version of a data set, say "emoji/openmoji" or "folder/mine"."""
    directory = find(name, data_dir)
    if directory is None:
        path = " --path=DIR" if name.startswith("folder/") else ""
        raise UserError(
            f"There is no data set {name} in {data_dir}: build it with "
            f"`emu-jax data build {name}{path} --data_dir={data_dir}`"
        )
    return Source(name, directory)


def find(name: str, data_dir: epath.PathLike) -> epath.Path | None:
    """The directory of the newest complete version of a data set, or None."""
    parts = name.split("/")
    if len(parts) != 2 or any(p in ("", ".", "..") for p in parts):
        raise UserError(
            f"{name!r} is not the name of a data set; names are like emoji/openmoji or folder/mine."
        )
    root = epath.Path(data_dir).expanduser() / name
    complete = [
        path
        for path in (root.iterdir() if root.is_dir() else ())
        if tfds.core.Version.is_valid(path.name) and manifests.exists(path)
    ]
    return max(complete, key=lambda path: tfds.core.Version(path.name), default=None)


def list_sources(data_dir: epath.PathLike = DEFAULT_DATA_DIR) -> list[Source]:
    """The newest version of every complete data set, by name."""
    root = epath.Path(data_dir).expanduser()
    names = [
        f"{family.name}/{directory.name}"
        for family in _directories(root)
        for directory in _directories(family)
    ]
    found = {name: find(name, data_dir) for name in sorted(names)}
    return [Source(name, directory) for name, directory in found.items() if directory is not None]


def _directories(path: epath.Path) -> list[epath.Path]:
    if not path.is_dir():
        return []
    return [p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")]
