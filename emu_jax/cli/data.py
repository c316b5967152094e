"""`emu-jax data`: build data sets, list them and look at them.

emu-jax data build emoji/openmoji --data_dir=DIR
emu-jax data build scenes/openmoji --data_dir=DIR
emu-jax data build folder/mine --path=IMAGES --data_dir=DIR
emu-jax data list --data_dir=DIR
emu-jax data show emoji/fluent --data_dir=DIR --select="needle >= 0" --out=grid.png
"""

import argparse
from collections import Counter

import numpy as np
from etils import epath
from PIL import Image, ImageColor

from emu_jax.data.builder import build
from emu_jax.data.decode import open_image
from emu_jax.data.further import FURTHER, decode_further
from emu_jax.data.images import compose, upright
from emu_jax.data.manifest import Manifest
from emu_jax.data.source import DEFAULT_DATA_DIR, Source, list_sources, open_source
from emu_jax.errors import UserError
from emu_jax.evaluation.grids import grid

_SIDE = 128  # of an image in the grid, pixels
# Colors of the labels 0 to 255: black, hues a golden ratio of the circle apart, and white for 255,
# the foreground of many masks.
_HUES = [ImageColor.getrgb(f"hsl({i * 222.5 % 360}, 75%, 55%)") for i in range(1, 255)]
_LABEL_COLORS = np.array([(0, 0, 0), *_HUES, (255, 255, 255)], np.uint8)


def main(argv: list[str]) -> None:
    args = _parser().parse_args(argv)
    if args.command == "list":
        return list_data_sets(args.data_dir)
    if args.command == "build":
        source = build(args.name, args.data_dir, path=args.path, force=args.force)
    else:
        source = open_source(args.name, args.data_dir)
        show(source, args.select, args.count, args.seed, args.out)
    print(f"{source.name}: {summary(source.manifest)}\n  in {source.directory}")


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
    path = epath.Path(out).expanduser()
    try:
        with path.open("wb") as file:
            grid(np.stack(tiles), texts).save(file, "PNG")
    except OSError as error:
        raise UserError(f"--out={out} cannot be written: {error.strerror or error}.") from error
    print(f"{len(tiles)} of {len(selected):,} images: {path}")


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


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is not above 0")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="emu-jax data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    place = argparse.ArgumentParser(add_help=False)
    place.add_argument(
        "--data_dir", default=DEFAULT_DATA_DIR, help="directory of the data sets (%(default)s)"
    )
    named = argparse.ArgumentParser(add_help=False, parents=[place])
    named.add_argument("name", help="such as emoji/openmoji, scenes/openmoji, folder/NAME")

    one = commands.add_parser("build", parents=[named], help="build a data set")
    one.add_argument(
        "--path",
        help="folder: the directory of images; emoji/noto: the font file; fluent: the npm tarball; "
        "openmoji: a directory of SVG files",
    )
    one.add_argument(
        "--force", action="store_true", help="build an existing data set again and replace it"
    )

    commands.add_parser("list", parents=[place], help="list the data sets")

    two = commands.add_parser("show", parents=[named], help="draw a sample with captions")
    two.add_argument(
        "--select", default="", help='condition such as "part == kept and group != flags"'
    )
    two.add_argument("--count", type=_positive, default=48, help="number of images (%(default)s)")
    two.add_argument("--seed", type=int, default=0, help="seed of the sample (%(default)s)")
    two.add_argument("--out", default="grid.png", help="PNG file to write (%(default)s)")
    return parser
