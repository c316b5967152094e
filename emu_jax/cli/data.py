"""`emu-jax data`: build data sets and look at them.

emu-jax data build emoji/openmoji --data_dir=DIR
emu-jax data build folder/mine --path=PICTURES --data_dir=DIR
emu-jax data show emoji/fluent --data_dir=DIR --select="needle >= 0" --out=grid.png
"""

import argparse
from collections import Counter

import numpy as np
from etils import epath

from emu_jax.data.builder import build
from emu_jax.data.decode import open_image
from emu_jax.data.images import compose, upright
from emu_jax.data.manifest import Manifest
from emu_jax.data.source import DEFAULT_DATA_DIR, Source, open_source
from emu_jax.errors import UserError
from emu_jax.evaluation.grids import grid

_SIDE = 128  # of a picture in the grid, pixels


def main(argv: list[str]) -> None:
    args = _parser().parse_args(argv)
    if args.command == "build":
        source = build(args.name, args.data_dir, path=args.path)
    else:
        source = open_source(args.name, args.data_dir)
        show(source, args.select, args.count, args.seed, args.out)
    print(f"{source.name}: {summary(source.manifest)}\n  in {source.directory}")


def summary(manifest: Manifest) -> str:
    """How many pictures there are, of what size, and how they fall by part and group."""
    widths, heights = manifest.column("width"), manifest.column("height")
    captions = [len(c) for c in manifest.column("captions")]
    lines = [f"{len(manifest):,} pictures, {sum(captions):,} captions"]
    if len(manifest):
        lines.append(
            f"widths {widths.min()} to {widths.max()}, heights {heights.min()} to {heights.max()}"
        )
    for name in {"part", "group"} & set(manifest.columns):
        counts = Counter(manifest.column(name)).most_common()
        lines.append(f"{name}: " + ", ".join(f"{value} {n:,}" for value, n in counts))
    return "\n  ".join([lines[0], *sorted(lines[1:], reverse=True)])


def show(source: Source, select: str, count: int, seed: int, out: str) -> None:
    """Write a PNG with a random sample of the selection, each over a caption of its own."""
    chosen = source.manifest.select(select)
    if not len(chosen):
        raise UserError(f"no record of {source.name} fulfils `{select}`")
    random = np.random.default_rng(seed)
    chosen = random.choice(chosen, min(count, len(chosen)), replace=False)
    captions = source.manifest.column("captions")
    pictures = []
    for index in chosen:
        image = compose(upright(open_image(source.read(index))), (255, 255, 255))
        image.thumbnail((_SIDE, _SIDE))
        tile = np.full((_SIDE, _SIDE, 3), 255, np.uint8)
        top, left = (_SIDE - image.height) // 2, (_SIDE - image.width) // 2
        tile[top : top + image.height, left : left + image.width] = np.asarray(image)
        pictures.append(tile)
    texts = [random.choice(captions[i]) if captions[i] else "(no caption)" for i in chosen]
    path = epath.Path(out).expanduser()
    with path.open("wb") as file:
        grid(np.stack(pictures), texts).save(file, "PNG")
    print(f"{len(pictures)} of {len(source.manifest.select(select)):,} pictures: {path}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="emu-jax data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("name", help="emoji/openmoji, emoji/fluent, emoji/noto or folder/NAME")
    common.add_argument("--data_dir", default=DEFAULT_DATA_DIR, help="default: %(default)s")

    one = commands.add_parser("build", parents=[common], help="build a data set")
    one.add_argument(
        "--path",
        help="folder: the directory of pictures; noto: the font file; fluent: the npm tarball; "
        "openmoji: a directory of SVG files",
    )

    two = commands.add_parser("show", parents=[common], help="draw a sample with captions")
    two.add_argument("--select", default="", help='such as "part == kept and group != flags"')
    two.add_argument("--count", type=int, default=48, help="pictures (default: %(default)s)")
    two.add_argument("--seed", type=int, default=0, help="of the sample (default: %(default)s)")
    two.add_argument("--out", default="grid.png", help="PNG file (default: %(default)s)")
    return parser
