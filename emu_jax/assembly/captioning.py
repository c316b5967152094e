"""Captions of the images of a folder or data set, by a captioner, in a file of JSON lines."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt8

from emu_jax.data.builder import in_order
from emu_jax.data.captions import FILE_COLUMN
from emu_jax.data.collection import Collection, shard_file
from emu_jax.data.decode import open_image
from emu_jax.data.images import compose, upright
from emu_jax.data.ledger import Ledger
from emu_jax.errors import UserError
from emu_jax.evaluation.frozen import Frozen
from emu_jax.evaluation.preprocessing import CLIP_MEAN, CLIP_STD, normalized, squashed
from emu_jax.text.blip import Blip

WHITE = (255, 255, 255)
Pixels = UInt8[np.ndarray, "_ _ 3"]
T = TypeVar("T")


def caption_images(
    images: Collection,
    model: Blip,
    out: epath.PathLike,
    *,
    shard: tuple[int, int] | None = None,
    batch_size: int = 16,
) -> Ledger:
    """Writes a row for every image: ``file_name`` and ``text``, or, for a damaged image, an empty
    text and a ``reason``. Images that the file has are not captioned again.

    ``shard`` (i, n) captions every n-th image from the i-th on and writes a file of its own
    (:func:`shard_file`); by default n are the processes that are connected, and i is this one.
    """
    images.refuse_inside(out)
    index, count = shard or (jax.process_index(), jax.process_count())
    ledger = Ledger(shard_file(epath.Path(out).expanduser(), (index, count)), model.recipe)
    missing = [name for name in images.names[index::count] if name not in ledger.rows]
    if not missing:
        return ledger
    run = Frozen(model.generate, dict(model.tensors()))

    def prepare(pixels: Pixels) -> Pixels:
        return squashed([pixels], model.image_size)[0]

    found = read_each(images, missing, prepare, "captions")
    for batch in batches(zip(missing, found, strict=True), batch_size):
        rows = {
            name: {FILE_COLUMN: name, "text": "", "reason": result}
            for name, result in batch
            if isinstance(result, str)
        }
        good = {name: x for name, x in batch if not isinstance(x, str)}
        if good:
            # The last batch is filled up: one compiled program.
            x = np.stack([*good.values()])[np.minimum(np.arange(batch_size), len(good) - 1)]
            ids = run(normalized(x, CLIP_MEAN, CLIP_STD))
            for name, text in zip(good, model.decode(ids[: len(good)]), strict=True):
                rows[name] = {FILE_COLUMN: name, "text": text}
        ledger.append(rows[name] for name, _ in batch)
    return ledger


def read_each(
    images: Collection, names: list[str], work: Callable[[Pixels], T], label: str
) -> Iterator[T | str]:
    """``work(pixels)`` of each image, on a white background, in order, with progress; the reason
    as a string for an image that cannot be read."""

    def read(name: str) -> T | str:
        try:
            return work(np.asarray(compose(upright(open_image(images.read(name))), WHITE)))
        except UserError as error:
            return str(error)
        except OSError as error:
            return f"cannot be read: {error.strerror or error}"

    return in_order(read, names, total=len(names), label=label)


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    items = iter(items)
    while batch := [*islice(items, size)]:
        yield batch
