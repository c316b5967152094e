"""What the built data sets hold: in words, and as a sample of images."""

from collections import Counter

import numpy as np
from etils import epath
from PIL import Image, ImageColor

from emu_jax.data.decode import open_image
from emu_jax.data.further import FURTHER, decode_further
from emu_jax.data.images import compose, upright
from emu_jax.data.manifest import Manifest
from emu_jax.data.source import Source, list_sources
from emu_jax.errors import UserError
from emu_jax.evaluation.grids import grid

_SIDE = 128  # of an image in the grid, pixels
# Colors of the labels 0 to 255: black, hues a golden ratio of the circle apart, and white for 255,
# the foreground of many masks.
_HUES = [ImageColor.getrgb(f"hsl({i * 222.5 % 360}, 75%, 55%)") for i in range(1, 255)]
_LABEL_COLORS = np.array([(0, 0, 0), *_HUES, (255, 255, 255)], np.uint8)


def list_data_sets(data_dir: str) -> None:
    """One line for every data set."""
    sources = list_sources(data_dir)
    for source in sources:
        try:
            about = summary(source.manifest).splitlines()[0]
        except UserError as error:
            about = str(error)
        print(f"{source.name}: {about}")
    if not sources:
        print(f"There are no data sets in {data_dir}; see emu-jax data build --help.")


def summary(manifest: Manifest) -> str:
    """The number of images and captions, the sizes, the number of images by part, group, kind and
    split, and of those that have each further image."""
    widths, heights = manifest.column("width"), manifest.column("height")
    captions = [len(c) for c in manifest.column("captions")]
    lines = [f"{len(manifest):,} images, {sum(captions):,} captions"]
    if len(manifest):
        lines.append(
            f"widths {widths.min()} to {widths.max()}, heights {heights.min()} to {heights.max()}"
        )
    for name in {"part", "group", "kind", "split"} & set(manifest.columns):
        counts = Counter(manifest.column(name)).most_common()
        lines.append(f"{name}: " + ", ".join(f"{value} {n:,}" for value, n in counts))
    for name in FURTHER.keys() & set(manifest.columns):
        lines.append(f"{name}: of {np.count_nonzero(manifest.column(name) != ''):,} images")
    return "\n  ".join([lines[0], *sorted(lines[1:], reverse=True)])


def show(source: Source, select: str, count: int, seed: int, out: str) -> None:
    """Write a PNG with a random sample of the selected images, each with its further images beside
    it and with one of its captions."""
    selected = source.manifest.select(select)
    if not len(selected):
        raise UserError(f"No record of {source.name} matches `{select}`.")
    random = np.random.default_rng(seed)
    chosen = random.choice(selected, min(count, len(selected)), replace=False)
    captions = source.manifest.column("captions")
    tiles = []
    for index in chosen:
        image = compose(upright(open_image(source.read(index))), (255, 255, 255))
        further = (_further(source.read(index, name), name) for name in source.further)
        tiles.append(np.concatenate([_tile(image), *map(_tile, further)], 1))
    texts = [random.choice(captions[i]) if captions[i] else "(no caption)" for i in chosen]
    target = epath.Path(out).expanduser()
    try:
        with target.open("wb") as file:
            grid(np.stack(tiles), texts).save(file, "PNG")
    except OSError as error:
        raise UserError(f"--out={out} cannot be written: {error.strerror or error}.") from error
    print(f"{len(tiles)} of {len(selected):,} images: {target}")


def _further(data: bytes, name: str) -> Image.Image:
    """A further image as an RGB image; labels in distinct colors; empty for a missing one."""
    if not data:
        return Image.new("RGB", (1, 1), (255, 255, 255))
    image = decode_further(data, name)
    return Image.fromarray(_LABEL_COLORS[np.asarray(image)]) if FURTHER[name] else image


def _tile(image: Image.Image) -> np.ndarray:
    """The image in the center of a white square."""
    image.thumbnail((_SIDE, _SIDE))
    tile = np.full((_SIDE, _SIDE, 3), 255, np.uint8)
    top, left = (_SIDE - image.height) // 2, (_SIDE - image.width) // 2
    tile[top : top + image.height, left : left + image.width] = np.asarray(image)
    return tile
