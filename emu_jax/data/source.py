"""A built data set opened for reading: record i is the encoded bytes of a picture.

A data set lies in `<data_dir>/<name>/<version>`, its records in ArrayRecord files, its manifest
beside them. A `Source` pickles as its name and its place alone, so worker processes get it for
nothing and open readers and manifest of their own when they first need them.
"""

import functools
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from emu_jax.data import manifest as manifests
from emu_jax.data.manifest import Manifest
from emu_jax.data.places import DEFAULT_DATA_DIR
from emu_jax.errors import UserError


class Source:
    """A data set's records and manifest, both opened when first used."""

    def __init__(self, name: str, directory: epath.PathLike):
        self.name = name
        self.directory = str(directory)

    @functools.cached_property
    def manifest(self) -> Manifest:
        return Manifest.read(self.directory)

    def read(self, index: int) -> bytes:
        """The encoded bytes of a record, as they were stored."""
        return self._records[int(index)]["image"]

    def __len__(self) -> int:
        return len(self.manifest)

    def __reduce__(self):
        return Source, (self.name, self.directory)

    def __repr__(self) -> str:
        return f"Source({self.name!r}, {self.directory!r})"

    @functools.cached_property
    def _records(self) -> Any:
        return tfds.builder_from_directory(self.directory).as_data_source(
            split="train", decoders={"image": tfds.decode.SkipDecoding()}
        )


def open_source(name: str, data_dir: epath.PathLike = DEFAULT_DATA_DIR) -> Source:
    """The newest version of a data set, say "emoji/openmoji" or "folder/mine"."""
    directory = find(name, data_dir)
    if directory is None:
        path = " --path=DIR" if name.startswith("folder/") else ""
        raise UserError(
            f"there is no data set {name} in {data_dir}: build it with "
            f"`emu-jax data build {name}{path} --data_dir={data_dir}`"
        )
    return Source(name, directory)


def find(name: str, data_dir: epath.PathLike) -> epath.Path | None:
    """The directory of the newest complete version of a data set, or None."""
    parts = name.split("/")
    if len(parts) != 2 or any(p in ("", ".", "..") for p in parts):
        raise UserError(f"{name!r} is no data set: a name is like emoji/openmoji or folder/mine")
    root = epath.Path(data_dir).expanduser() / name
    complete = [
        path
        for path in (root.iterdir() if root.is_dir() else ())
        if tfds.core.Version.is_valid(path.name) and (path / manifests.FILE_NAME).exists()
    ]
    return max(complete, key=lambda path: tfds.core.Version(path.name), default=None)
