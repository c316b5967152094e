"""The TFDS builder `coco`: a user's folder in COCO's form (Lin et al. 2014, arXiv:1405.0312).

    emu-jax data build coco/train2017 --path=COCO

`coco/SPLIT` reads, in the folder or in `annotations` in it, `captions_SPLIT.json` and
`instances_SPLIT.json` (one of them is enough), and the images in the folder `SPLIT` or
`images/SPLIT`. Images are stored as the bytes they are; keys are their file names. What a record
holds beside its captions:

    instances   the further image with the number of the instance at each pixel, 0: none; drawn from
                polygons and run lengths. Of overlapping instances the smaller one is in front
    mask        COCO-Stuff's labels, where the folder has them: `stuffthingmaps/SPLIT/NAME.png`
    classes     list: the category's name of instance 1, 2, ...
    count       the number of instances
    crowds      the number of crowd regions: groups that are drawn as one. They are no instances, so
                their pixels are background, as in the published training of SOLO

The files are data of unknown origin. An image outside of the folder is refused. One that cannot be
read is left out, and one whose annotations are damaged has no `instances`; both are listed in
damaged.jsonl beside the manifest, images without a caption in uncaptioned.jsonl. Keys that are no
part of COCO's form are not read, and named in a note.
"""

import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import tensorflow_datasets as tfds
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from emu_jax.data.buckets import Shape
from emu_jax.data.builder import ImageBuilder, in_order, why
from emu_jax.data.captions import clean_text
from emu_jax.data.coco_masks import MOST_INSTANCES, Mask, draw, number
from emu_jax.data.folder import read_file
from emu_jax.data.further import check_further
from emu_jax.data.images import check
from emu_jax.errors import UserError
from emu_jax.progress import note

LABELS = "stuffthingmaps"
_KINDS = ("captions", "instances")
_MOST_BYTES = 2**32  # of a file of annotations
# What entries may have: read, or known to say nothing that a record needs. Others are reported.
_KNOWN = {
    "images": {"id", "file_name", "width", "height"}
    | {"license", "flickr_url", "coco_url", "date_captured"},
    "annotations": {"id", "image_id", "category_id", "segmentation", "iscrowd", "caption"}
    | {"area", "bbox", "keypoints", "num_keypoints"},
    "categories": {"id", "name"} | {"supercategory", "keypoints", "skeleton"},
}


@dataclass
class Annotated:
    """An image and what the files say of it. ``objects`` and ``size`` (height and width) are
    unchecked entries of the file of instances; ``objects`` None: it does not name the image.
    """

    file_name: str
    captions: list[str] = field(default_factory=list)
    objects: list[dict[str, Any]] | None = None
    size: tuple[Any, Any] = (None, None)


@dataclass
class Split:
    """What a folder has of a split; ``categories`` None: no file of instances. ``damaged`` are the
    reasons of entries that belong to no image.
    """

    images: dict[int, Annotated] = field(default_factory=dict)  # by id
    categories: dict[int, str] | None = None
    damaged: dict[str, str] = field(default_factory=dict)
    unread: set[str] = field(default_factory=set)  # keys of entries that nobody knows


class _Read(NamedTuple):
    """An image as it is stored; ``reason``: why it is left out, ``flaw``: why it has no map."""

    data: bytes = b""
    size: tuple[int, int] = (0, 0)
    reason: str = ""
    map: bytes = b""
    classes: tuple[str, ...] = ()
    hidden: int = 0
    flaw: str = ""


class Coco(ImageBuilder):
    """See the module's docstring. `path` is the folder."""

    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "The folder as it was when built"}
    _split: Split

    @classmethod
    def named(cls, config: str, *, path: epath.PathLike | None, **kwargs: Any) -> "Coco":
        if path is None:
            raise UserError(
                f"coco/{config} needs a folder in COCO's form: give it with --path=DIR."
            )
        root = epath.Path(path).expanduser()
        split, places = read_split(root, config), (root / config, root / "images" / config)
        if split.unread:
            note(f"not read, since unknown: {', '.join(sorted(split.unread)):.400}")
        images = next((place for place in places if place.is_dir()), None)
        if images is None:
            raise UserError(f"{root} has no folder {config} of images; give COCO's folder.")
        builder = cls(config=tfds.core.BuilderConfig(name=config), path=root, **kwargs)
        builder._split, builder._images = split, images
        builder._labels = root / LABELS / config
        builder.further = () if split.categories is None else ("instances",)
        if split.categories is not None:
            builder.columns = {
                "classes": pa.list_(pa.string()),
                "count": pa.int32(),
                "crowds": pa.int32(),
            }
        if builder._labels.is_dir():
            builder.further = (*builder.further, "mask")
        return builder

    def _info(self) -> tfds.core.DatasetInfo:
        return self._dataset_info(
            description=f"The images of {self.path} in COCO's form.",
            homepage="https://cocodataset.org",
            license="That of the images.",
        )

    def _rows(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        images = self._split.images.values()
        self._damaged, self._maps = dict(self._split.damaged), []
        self._uncaptioned: list[str] = []
        hidden = crowds = 0
        results = in_order(self._read, images, total=len(images), label=self.info.full_name)
        for image, read in zip(images, results, strict=True):
            if read.reason or read.flaw:
                self._damaged[image.file_name] = read.reason or read.flaw
            if read.reason:
                continue
            row = {
                "key": image.file_name,
                "width": read.size[0],
                "height": read.size[1],
                "captions": list(dict.fromkeys(image.captions)),
                "source": os.fspath(self.path or ""),
            }
            if self._split.categories is not None:
                own = sum(map(_is_crowd, image.objects or ()))
                hidden, crowds = hidden + read.hidden, crowds + own
                row |= dict(classes=list(read.classes), count=len(read.classes), crowds=own)
                self._maps.append(read.map)
            if not image.captions:
                self._uncaptioned.append(image.file_name)
            yield read.data, row
        if not self._manifest_rows:
            name = next(iter(images)).file_name
            reason = self._damaged[name]
            raise UserError(f"No image of {self._images} can be read; {name}: {reason}.")
        if crowds or hidden:
            note(f"{crowds:,} crowd regions are background, {hidden:,} instances are hidden")

    def _read(self, image: Annotated) -> _Read:
        try:
            data = read_file(inside(self._images, image.file_name))
            width, height = check(data)
        except (UserError, OSError) as error:
            return _Read(reason=why(error))
        if self._split.categories is None:
            return _Read(data, (width, height))
        try:
            numbered, classes = instances(image, self._split.categories, (height, width))
        except UserError as error:
            return _Read(data, (width, height), flaw=str(error))
        stored = io.BytesIO()
        Image.fromarray(numbered).save(stored, "PNG")
        hidden = sum(not _is_crowd(entry) for entry in image.objects or ()) - len(classes)
        return _Read(data, (width, height), "", stored.getvalue(), classes, hidden)

    def _further(self, name: str, rows: list[dict[str, Any]]) -> Iterator[bytes]:
        if name == "instances":
            yield from self._maps
            return

        def read(row: dict[str, Any]) -> tuple[bytes, str]:
            try:
                data = read_file(inside(self._labels, _label_file(row["key"])))
                check_further(data, name, (row["height"], row["width"]))
            except (UserError, OSError) as error:
                return b"", why(error)
            return data, ""

        label = f"{self.info.full_name} {name}"
        results = in_order(read, rows, total=len(rows), label=label)
        for row, (data, reason) in zip(rows, results, strict=True):
            if reason:
                self._damaged[f"{LABELS}: {_label_file(row['key'])}"] = reason
            yield data

    def _finish(self) -> None:
        self._list("damaged.jsonl", self._damaged, "are damaged, or belong to no image")
        self._list("uncaptioned.jsonl", dict.fromkeys(self._uncaptioned), "have no caption")


def read_split(root: epath.Path, split: str) -> Split:
    """What the annotation files of ``split`` say.

    Raises:
      UserError: there is none, or one is not of COCO's form: its images have no id or no file name
        inside of the folder, or two of them have the same.
    """
    files = {
        kind: place / f"{kind}_{split}.json"
        for kind in _KINDS
        for place in (root, root / "annotations")
        if (place / f"{kind}_{split}.json").exists()
    }
    if not files:
        raise UserError(
            f"{root} has no annotations/captions_{split}.json and no instances_{split}.json; give "
            "COCO's folder, and its split as the name: coco/train2017."
        )
    found = Split()
    for kind, file in files.items():
        document = _document(file)
        for image, entry in _read_images(document, file, found):
            if kind == "instances":
                image.objects, image.size = [], (entry.get("height"), entry.get("width"))
        if kind == "instances":
            found.categories = _read_categories(document, file, found.unread)
        for place, entry in _entries(document, "annotations", file, found.unread):
            image = found.images.get(_whole(entry.get("image_id")))
            if image is None or (kind == "instances" and image.objects is None):
                found.damaged[place] = "it belongs to no image of the file"
            elif image.objects is not None and kind == "instances":
                image.objects.append(entry)
            else:
                try:
                    image.captions += filter(None, [clean_text(entry.get("caption"), place)])
                except UserError as error:
                    found.damaged[place] = str(error)
    if not found.images:
        raise UserError(f"{', '.join(map(str, files.values()))}: there is no image in it.")
    return found


def instances(
    image: Annotated, categories: Mapping[int, str], size: Shape
) -> tuple[UInt8[np.ndarray, "h w"], tuple[str, ...]]:
    """The map of the instances that are seen in an image of (height, width), and their classes.

    Raises:
      UserError: the reason why there is none, without the image.
    """
    if image.objects is None:
        raise UserError("the file of instances does not name it")
    if image.size != size:
        raise UserError(f"it has {size[1]} x {size[0]} pixels, and another size in the file")
    objects = [entry for entry in image.objects if not _is_crowd(entry)]
    if len(objects) > MOST_INSTANCES:
        raise UserError(f"it has {len(objects)} instances; {MOST_INSTANCES} are the most")
    names: list[str] = []

    def masks() -> Iterator[Mask]:
        for entry in objects:
            try:
                names.append(_category(entry, categories))
                yield draw(entry.get("segmentation"), size)
            except UserError as error:
                raise UserError(f"annotation {_whole(entry.get('id'))}: {error}") from error

    numbered, seen = number(masks(), size)
    return numbered, tuple(names[i] for i in seen)


def inside(folder: epath.Path, name: str) -> epath.Path:
    """The file of a folder; UserError if the name, or a link, leads out of it."""
    path = folder / name
    if "://" not in os.fspath(folder):
        real, own = os.path.realpath(path), os.path.realpath(folder)
        if os.path.commonpath([real, own]) != own:
            raise UserError("it is a link out of the folder")
    return path


def _document(file: epath.Path) -> dict[str, Any]:
    try:
        document = json.loads(read_file(file, _MOST_BYTES))
    except (UserError, OSError) as error:
        raise UserError(f"{file} is not used: {why(error)}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read as JSON: {error}.") from error
    if not isinstance(document, dict):
        raise UserError(f"{file} is not of COCO's form: it must be an object.")
    return document


def _entries(
    document: dict[str, Any], key: str, file: epath.Path, unread: set[str]
) -> Iterator[tuple[str, dict]]:
    """(where it is, entry) of a list of objects. Keys that are unknown are added to ``unread``."""
    entries = document.get(key)
    if not isinstance(entries, list):
        raise UserError(f"{file} is not of COCO's form: it has no list {key!r}.")
    for i, entry in enumerate(entries):
        place = f"{file.name}, {key}[{i}]"
        if not isinstance(entry, dict):
            raise UserError(f"{place} is of type {type(entry).__name__}; use an object.")
        unread.update(f"{key}.{name[:60]!r}" for name in entry.keys() - _KNOWN[key])
        yield place, entry


def _read_images(
    document: dict[str, Any], file: epath.Path, found: Split
) -> Iterator[tuple[Annotated, dict]]:
    """The images of a file, which become those of the split, with their entries."""
    names = {image.file_name: number for number, image in found.images.items()}
    for place, entry in _entries(document, "images", file, found.unread):
        number, name = _whole(entry.get("id")), entry.get("file_name")
        if number < 0:
            raise UserError(f"{place} has no id; use a whole number.")
        path = PurePosixPath(name) if isinstance(name, str) and _is_name(name) else None
        if path is None or not path.name or path.is_absolute() or ".." in path.parts:
            shown = f"{name!r:.80}" if isinstance(name, str) else f"a {type(name).__name__}"
            raise UserError(
                f"{place} has {shown} as file_name; use a path inside the images' folder."
            )
        if names.setdefault(path.as_posix(), number) != number or (
            number in found.images and found.images[number].file_name != path.as_posix()
        ):
            raise UserError(f"{place}: another image has the id {number} or the name {name!r:.80}.")
        yield found.images.setdefault(number, Annotated(path.as_posix())), entry


def _read_categories(
    document: dict[str, Any], file: epath.Path, unread: set[str]
) -> dict[int, str]:
    found: dict[int, str] = {}
    for place, entry in _entries(document, "categories", file, unread):
        name = clean_text(entry.get("name"), place)
        if not name or _whole(entry.get("id")) < 0:
            raise UserError(f"{place} needs an id, a whole number, and a name.")
        found[entry["id"]] = name
    return found


def _category(entry: dict[str, Any], categories: Mapping[int, str]) -> str:
    number = _whole(entry.get("category_id"))
    if number not in categories:
        raise UserError("its category is not in the file")
    if entry.get("iscrowd", 0) != 0:
        raise UserError("its iscrowd is neither 0 nor 1")
    return categories[number]


def _is_crowd(entry: dict[str, Any]) -> bool:
    return entry.get("iscrowd", 0) == 1


def _is_name(text: str) -> bool:
    """Whether the system can be asked for it."""
    try:
        return "\0" not in text and bool(text.encode())
    except UnicodeEncodeError:  # half of a surrogate pair, from a JSON escape
        return False


def _label_file(name: str) -> str:
    return PurePosixPath(name).with_suffix(".png").as_posix()


def _whole(value: Any) -> int:
    """A number of COCO's; -1 for anything else."""
    return value if type(value) is int and value >= 0 else -1
