"""The result of a curation as a data set: ``curated/NAME``.

Records are in the order of the source, as the bytes that it has, with all captions of an image. The
manifest has the scores as further columns (of an image without one: "", -1 or null), and

    upsampled        1 if the image was enlarged, else 0
    original_width, original_height
                     its size before, in pixels

An image that is too small is enlarged by a super-resolution model or a cascade, with its first
caption as the prompt, and stored as a PNG file under OUT/upsampled first, so that a build that is
killed does not draw it again.
"""

import hashlib
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image
from tensorflow_datasets.core import writer
from tensorflow_datasets.proto import tf_example_pb2

from emu_jax.curation.choices import Funnel
from emu_jax.curation.curating import Pool, choices_folder, kept_rows
from emu_jax.curation.scores import digest, write_bytes
from emu_jax.curation.sections import Upsample
from emu_jax.curation.sources import Item
from emu_jax.data.builder import ImageBuilder, build_by
from emu_jax.data.decode import open_image
from emu_jax.data.images import check, compose, upright
from emu_jax.data.manifest import CAPTIONS_FROM, SCHEMA
from emu_jax.data.source import Source, find
from emu_jax.errors import UserError
from emu_jax.progress import watch

_OWN = {"upsampled": pa.int32(), "original_width": pa.int32(), "original_height": pa.int32()}
_CHOSEN_BY = "curated_by"  # said of the manifest: the digest of the choices


class Curated(ImageBuilder):
    """See the module's docstring."""

    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "Chosen by emu_jax.curation"}
    pool: Pool
    funnel: Funnel
    enlarge: "Callable[[bytes, str], bytes] | None"

    def _info(self) -> tfds.core.DatasetInfo:
        return self._dataset_info(
            description=f"Images chosen from {self.path}.", license="That of the images."
        )

    def _example_writer(self) -> writer.ExampleWriter:
        return _SameBits(file_format=self.info.file_format)

    def _rows(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        rows = kept_rows(self.pool, self.funnel)
        found = watch(self._read(rows), self.info.full_name, sum(map(len, rows)))
        for row in found:
            yield row.pop("data"), row

    def _read(self, rows: list) -> Iterator[dict[str, Any]]:
        pool = self.pool
        kept = [name for name in self.columns if name not in _OWN]
        for shard, wanted in enumerate(rows):
            if not wanted:
                continue
            found = pool.scores.read(shard, ["key", "captions", "sha256", *kept])
            items = pool.source.read(shard, frozenset(wanted))
            for row in wanted:
                at, item = next(items, (-1, Item("")))
                if at != row or hashlib.sha256(item.data).hexdigest() != found["sha256"][row]:
                    raise UserError(
                        f"{found['key'][row]} of {pool.source.origin} is not the image that was "
                        "scored: remove the folder of the scores and score the source again."
                    )
                values = {name: _plain(found[name][row], self.columns[name]) for name in kept}
                yield {**self._sized(item.data, list(found["captions"][row])), **values} | {
                    "key": str(found["key"][row]),
                    "source": pool.source.origin,
                }

    def _sized(self, data: bytes, captions: list[str]) -> dict[str, Any]:
        """The image, enlarged where it is too small, and its sizes."""
        width, height = check(data)
        about = {"captions": captions, "original_width": width, "original_height": height}
        small = self.enlarge and min(width, height) < self.pool.config.upsample.short_side
        if small and self.enlarge:
            data = self.enlarge(data, captions[0] if captions else "")
            width, height = check(data)
        return about | {
            "data": data,
            "width": width,
            "height": height,
            "upsampled": int(bool(small)),
        }


class _SameBits(writer.ExampleWriter):
    """Writes equal records as equal bytes: the order of a record's entries is otherwise that of a
    hash table, and differs by process.
    """

    def write(self, path: epath.PathLike, examples: Iterable[Any]) -> Any:
        return super().write(path, ((key, _in_order(example)) for key, example in examples))


def _in_order(example: bytes) -> bytes:
    message = tf_example_pb2.Example.FromString(example)
    return message.SerializeToString(deterministic=True)


def build_data_set(pool: Pool, funnel: Funnel, data_dir: epath.PathLike, force: bool) -> Source:
    """Builds ``curated/NAME``, unless these very choices are built already.

    Raises:
      UserError: nothing is left, or the data set has other choices (and ``force`` is not set).
    """
    name = f"curated/{pool.config.name}"
    upsample = pool.config.upsample
    chosen = digest(str(choices_folder(pool).name), repr(upsample))
    there = find(name, data_dir)
    if there is not None:
        source = Source(name, there)
        if source.manifest.about.get(_CHOSEN_BY) == chosen:
            return source
        if not force:
            raise UserError(
                f"{name} exists in {data_dir} and was chosen otherwise: set config.name to another "
                "name, or replace it with --force."
            )
    if not sum(map(len, kept_rows(pool, funnel))):
        raise UserError("No image is left, so there is no data set to build: loosen the steps.")
    types = {column: kind for column, (_, kind) in pool.scores.schema.items() if _stored(kind)}
    columns = {c: kind for c, kind in types.items() if c not in SCHEMA and c != "damaged"}

    def make(**options: Any) -> Curated:
        config = tfds.core.BuilderConfig(name=pool.config.name)
        builder = Curated(config=config, path=pool.source.origin, **options)
        builder.pool, builder.funnel = pool, funnel
        builder.columns = {**columns, **_OWN}
        builder.about = {_CHOSEN_BY: chosen, CAPTIONS_FROM: "captions"}
        wanted = upsample.checkpoint and upsample.short_side
        builder.enlarge = _Enlarged(upsample, pool.out / "upsampled") if wanted else None
        return builder

    return build_by(make, name, data_dir)


def _stored(kind: pa.DataType) -> bool:
    """Whether a manifest holds columns of this type."""
    return pa.types.is_string(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _plain(value: Any, kind: pa.DataType) -> Any:
    """A value for the manifest: texts and whole numbers are never null there."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        if pa.types.is_string(kind):
            return ""
        return -1 if pa.types.is_integer(kind) else None
    if pa.types.is_string(kind):
        return str(value)
    return int(value) if pa.types.is_integer(kind) else float(value)


class _Enlarged:
    """Enlarges images until their short side is large enough, each once."""

    def __init__(self, upsample: Upsample, folder: epath.Path) -> None:
        from emu_jax.assembly.generator import Generator

        changes: Mapping[str, Any] = {"steps": upsample.steps} if upsample.steps else {}
        self._stages = []
        for path in upsample.checkpoint.split("+"):
            self._stages.append(Generator(path, batch_size=1, **changes))
            if not self._stages[-1].input_kind:
                raise UserError(
                    f"{path} draws images and enlarges none: config.upsample.checkpoint needs "
                    "super-resolution models."
                )
        self._upsample = upsample
        recipes = [stage.recipe for stage in self._stages]
        self._folder = folder / digest(recipes, upsample.seed, upsample.short_side)

    def __call__(self, data: bytes, prompt: str) -> bytes:
        name = hashlib.sha256(data + prompt.encode()).hexdigest()
        path = self._folder / f"{name}.png"
        if not path.exists():
            write_bytes(self._draw(data, prompt, name), path)
        return path.read_bytes()

    def _draw(self, data: bytes, prompt: str, name: str) -> bytes:
        seed = (int(name[:8], 16) + self._upsample.seed) % 2**32
        image = np.asarray(compose(upright(open_image(data)), (255, 255, 255)))
        for stage in self._stages:
            if min(image.shape[:2]) < self._upsample.short_side:
                (image,) = stage.draw_each([prompt], [seed], low=[image])
        stream = io.BytesIO()
        Image.fromarray(np.asarray(image)).save(stream, "PNG")
        return stream.getvalue()
