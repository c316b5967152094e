"""The TFDS builder `folder`: a directory of the user's own images, under a name of their choice.

    emu-jax data build folder/mine --path=IMAGES

Images of any size are found in the directory and below it and stored as the bytes they are; an
image's key is its path inside the directory. Captions come from a table or from sidecar files: see
captions.py. Further columns of captions become columns of the manifest. The build counts and names
what it could not use, and lists all of it in files beside the manifest, each with the reason:

    damaged.jsonl       images that are left out: truncated, too large, unreadable, not an image
    uncaptioned.jsonl   images that have no caption; they stay, with an empty list
    unused.jsonl        files that are neither images of a supported format nor captions

`cat.mask.png` beside `cat.jpg` is its mask, and so with the other names of further.py. A damaged
one is left out and its image stays.

A folder of more than `SHARD` images is read by several processes (shards.py), each with a list of
its names and captions; the images pass only through the one that writes them.
"""

import itertools
import json
import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
import tensorflow_datasets as tfds
from etils import epath

from emu_jax.data.builder import ImageBuilder, in_order, why
from emu_jax.data.captions import USUAL, Columns
from emu_jax.data.contents import SUFFIXES, Contents, read_contents
from emu_jax.data.further import FURTHER, check_further
from emu_jax.data.images import check
from emu_jax.data.manifest import CAPTIONS_FROM, SCHEMA
from emu_jax.data.shards import Item, Written
from emu_jax.errors import UserError

MAX_BYTES = 2**29  # of a file: no image of decode.MAX_PIXELS needs more
SHARD = 2**13  # images


class Folder(ImageBuilder):
    """See the module's docstring. `path` is the directory of images."""

    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "The directory as it was when built"}
    _contents: Contents

    @classmethod
    def named(
        cls, config: str, *, path: epath.PathLike | None, columns: Columns = USUAL, **kwargs: Any
    ) -> "Folder":
        if path is None:
            raise UserError(
                f"folder/{config} needs a directory of images: give it with --path=DIR."
            )
        root = epath.Path(path).expanduser()
        if not root.is_dir():
            raise UserError(f"--path={path} is not a directory; give a directory of images.")
        for name in columns.further:
            if not name.isidentifier() or name in (*SCHEMA, *FURTHER, "part"):
                raise UserError(
                    f"A further column of captions cannot be called {name!r}: rename it in the "
                    "table to letters, digits and _, and to no name that manifests have."
                )
        # Before anything is written, so that errors are reported at once.
        contents = read_contents(root, columns)
        if not contents.captions:
            others = _by_suffix({**contents.unused, **contents.unreadable})
            raise UserError(
                f"There is no image in {path}{f' (but {others})' if others else ''}; the supported "
                f"formats are {' '.join(SUFFIXES)}."
            )
        builder = cls(config=tfds.core.BuilderConfig(name=config), path=root, **kwargs)
        builder._contents = contents
        builder.further = tuple(sorted(contents.further))
        builder.about = {CAPTIONS_FROM: columns.captions} if columns.captions else {}
        builder.columns = dict.fromkeys(columns.further, pa.list_(pa.string()))
        return builder

    def _info(self) -> tfds.core.DatasetInfo:
        return self._dataset_info(
            description=f"The images of {self.path}.",
            license="That of the images.",
        )

    def _rows(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        root = epath.Path(self.path)
        images, further = self._contents.captions, self._contents.further_captions
        self._damaged = dict(self._contents.unreadable)

        def read(name: str) -> tuple[bytes, tuple[int, int] | str]:
            return _read(root / name)

        results = in_order(read, images, total=len(images), label=self.info.full_name)
        used = 0
        for name, (data, size) in zip(images, results, strict=True):
            if isinstance(size, str):
                self._damaged[name] = size
                continue
            used += 1
            yield (
                data,
                {
                    "key": name,
                    "width": size[0],
                    "height": size[1],
                    "captions": images[name],
                    "source": str(root),
                    **{column: captions[name] for column, captions in further.items()},
                },
            )
        self._require(used)

    def _require(self, used: object) -> None:
        images = self._contents.captions
        if not used:
            first = next(iter(images))
            raise UserError(
                f"None of the {len(images)} images in {self.path} can be read; {first}: "
                f"{self._damaged[first]}."
            )

    def _further(self, name: str, rows: list[dict[str, Any]]) -> Iterator[bytes]:
        files, root = self._contents.further[name], epath.Path(self.path)

        def read(row: dict[str, Any]) -> tuple[bytes, str]:
            if row["key"] not in files:
                return b"", ""
            return _read_further(root / files[row["key"]], name, (row["height"], row["width"]))

        label = f"{self.info.full_name} {name}"
        for row, (data, reason) in zip(
            rows, in_order(read, rows, total=len(rows), label=label), strict=True
        ):
            if reason:
                self._damaged[files[row["key"]]] = reason
            yield data

    def _count_shards(self) -> int:
        return -(-len(self._contents.captions) // SHARD)

    def _make_shards(self) -> "_Shards":
        """Writes a list of each shard's images, for whoever reads them."""
        contents, place = self._contents, self.data_path / "lists"
        place.mkdir()
        names = iter(contents.captions)
        for i in range(self._count_shards()):
            lines = (
                {
                    "name": name,
                    "captions": contents.captions[name],
                    "columns": {c: own[name] for c, own in contents.further_captions.items()},
                    "further": {f: own[name] for f, own in contents.further.items() if name in own},
                }
                for name in itertools.islice(names, SHARD)
            )
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (place / f"{i}.jsonl").write_text(text)
        return _Shards(epath.Path(self.path), place)

    def _take(self, written: Written) -> None:
        self._damaged = {**self._contents.unreadable, **written.reasons}
        self._require(written.splits)
        (self.data_path / "lists").rmtree()

    def _finish(self) -> None:
        unused = self._contents.unused
        uncaptioned = [
            name
            for name, captions in self._contents.captions.items()
            if not captions and name not in self._damaged
        ]
        self._list("damaged.jsonl", self._damaged, "cannot be read and are left out")
        self._list("uncaptioned.jsonl", dict.fromkeys(uncaptioned), "have no caption")
        self._list("unused.jsonl", unused, f"are not used: {_by_suffix(unused)}")


@dataclass(frozen=True)
class _Shards:
    """Reads the images of a shard from its list in the folder `place`."""

    root: epath.Path
    place: epath.Path

    def __call__(self, shard: int) -> Iterator[Item]:
        for line in (self.place / f"{shard}.jsonl").read_text().splitlines():
            yield self._item(json.loads(line))

    def _item(self, listed: Mapping[str, Any]) -> Item:
        name = listed["name"]
        data, size = _read(self.root / name)
        if isinstance(size, str):
            return Item(reasons={name: size})
        further, reasons = {}, {}
        for kind, file in listed["further"].items():
            further[kind], reason = _read_further(self.root / file, kind, (size[1], size[0]))
            reasons |= {file: reason} if reason else {}
        row = {"key": name, "width": size[0], "height": size[1], "captions": listed["captions"]}
        row |= {"source": str(self.root), **listed["columns"]}
        return Item(data, row, further, reasons)


def _read(path: epath.Path) -> tuple[bytes, tuple[int, int] | str]:
    """The content of an image's file and (width, height), or the reason why it is none."""
    try:
        data = read_file(path)
        return data, check(data)
    except (UserError, OSError) as error:
        return b"", why(error)


def _read_further(path: epath.Path, name: str, size: tuple[int, int]) -> tuple[bytes, str]:
    """The content of a further image's file of an image of (h, w), or the reason."""
    try:
        data = read_file(path)
        check_further(data, name, size)
        return data, ""
    except (UserError, OSError) as error:
        return b"", why(error)


def read_file(path: epath.Path, most: int = MAX_BYTES) -> bytes:
    """The content of a regular file of at most ``most`` bytes."""
    if "://" in os.fspath(path):
        length = path.stat().length
    else:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # opening a named pipe would wait forever
            raise UserError("not a regular file")
        length = status.st_size
    if length > most:
        raise UserError(f"too large: {length:,} bytes is more than {most:,}")
    return path.read_bytes()


def _by_suffix(names: Mapping[str, str]) -> str:
    """Such as "12 .heic, 1 .md"."""
    counts = Counter(os.path.splitext(name)[1].lower() or "without a suffix" for name in names)
    return ", ".join(f"{count:,} {suffix}" for suffix, count in counts.most_common())
