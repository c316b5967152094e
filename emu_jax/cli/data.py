"""`emu-jax data`: build data sets, list them and look at them.

emu-jax data build emoji/openmoji --data_dir=DIR
emu-jax data build folder/mine --path=IMAGES --data_dir=DIR
emu-jax data list --data_dir=DIR
emu-jax data show emoji/fluent --data_dir=DIR --select="needle >= 0" --out=grid.png
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from emu_jax.assembly.arguments import Parser, path, positive, seed
from emu_jax.cli.arguments import add_data_dir
from emu_jax.errors import UserError

if TYPE_CHECKING:
    from emu_jax.data.manifest import Manifest
    from emu_jax.data.source import Source

_SIDE = 128  # of an image in the grid, pixels


def main(argv: Sequence[str]) -> None:
    args = _parser().parse_args(argv)

    from emu_jax.data.builder import build
    from emu_jax.data.source import open_source

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
    from emu_jax.data.source import list_sources

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
    """The number of images and captions, the sizes, and the number of images by part and group."""
    widths, heights = manifest.column("width"), manifest.column("height")
    captions = [len(c) for c in manifest.column("captions")]
    lines = [f"{len(manifest):,} images, {sum(captions):,} captions"]
    if len(manifest):
        lines.append(
            f"widths {widths.min()} to {widths.max()}, heights {heights.min()} to {heights.max()}"
        )
    for name in {"part", "group"} & set(manifest.columns):
        counts = Counter(manifest.column(name)).most_common()
        lines.append(f"{name}: " + ", ".join(f"{value} {n:,}" for value, n in counts))
    return "\n  ".join([lines[0], *sorted(lines[1:], reverse=True)])


def show(source: Source, select: str, count: int, seed: int, out: str) -> None:
    """Write a PNG with a random sample of the selected images, each with one of its captions."""
    import numpy as np
    from etils import epath

    from emu_jax.data.decode import open_image
    from emu_jax.data.images import compose, upright
    from emu_jax.evaluation.grids import grid

    selected = source.manifest.select(select)
    if not len(selected):
        raise UserError(f"No record of {source.name} matches `{select}`.")
    random = np.random.default_rng(seed)
    chosen = random.choice(selected, min(count, len(selected)), replace=False)
    captions = source.manifest.column("captions")
    tiles = []
    for index in chosen:
        image = compose(upright(open_image(source.read(index))), (255, 255, 255))
        image.thumbnail((_SIDE, _SIDE))
        tile = np.full((_SIDE, _SIDE, 3), 255, np.uint8)
        top, left = (_SIDE - image.height) // 2, (_SIDE - image.width) // 2
        tile[top : top + image.height, left : left + image.width] = np.asarray(image)
        tiles.append(tile)
    texts = [random.choice(captions[i]) if captions[i] else "(no caption)" for i in chosen]
    target = epath.Path(out).expanduser()
    try:
        with target.open("wb") as file:
            grid(np.stack(tiles), texts).save(file, "PNG")
    except OSError as error:
        raise UserError(f"--out={out} cannot be written: {error.strerror or error}.") from error
    print(f"{len(tiles)} of {len(selected):,} images: {target}")


def _parser() -> Parser:
    parser = Parser("emu-jax data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    place = Parser(add_help=False)
    add_data_dir(place)
    named = Parser(add_help=False, parents=[place])
    named.add_argument("name", help="emoji/openmoji, emoji/fluent, emoji/noto or folder/NAME")

    one = commands.add_parser("build", parents=[named], help="build a data set")
    one.add_argument(
        "--path",
        type=path,
        help="folder: the directory of images; noto: the font file; fluent: the npm tarball; "
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
    two.add_argument("--count", type=positive, default=48, help="number of images (%(default)s)")
    two.add_argument("--seed", type=seed, default=0, help="seed of the sample (%(default)s)")
    two.add_argument("--out", default="grid.png", help="PNG file to write (%(default)s)")
    return parser
