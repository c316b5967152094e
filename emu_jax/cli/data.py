"""`emu-jax data`: build data sets, list them and look at them.

emu-jax data build emoji/openmoji --data_dir=DIR
emu-jax data build scenes/openmoji --data_dir=DIR
emu-jax data build folder/mine --path=IMAGES --data_dir=DIR
emu-jax data list --data_dir=DIR
emu-jax data show emoji/fluent --data_dir=DIR --select="needle >= 0" --out=grid.png
"""

from collections.abc import Sequence

from emu_jax.assembly.arguments import Parser, path, positive, seed
from emu_jax.cli.arguments import add_data_dir


def main(argv: Sequence[str]) -> None:
    args = _parser().parse_args(argv)

    from emu_jax.assembly.data_sets import list_data_sets, show, summary
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


def _parser() -> Parser:
    parser = Parser("emu-jax data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    place = Parser(add_help=False)
    add_data_dir(place)
    named = Parser(add_help=False, parents=[place])
    named.add_argument("name", help="such as emoji/openmoji, scenes/openmoji, folder/NAME")

    one = commands.add_parser("build", parents=[named], help="build a data set")
    one.add_argument(
        "--path",
        type=path,
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
    two.add_argument("--count", type=positive, default=48, help="number of images (%(default)s)")
    two.add_argument("--seed", type=seed, default=0, help="seed of the sample (%(default)s)")
    two.add_argument("--out", default="grid.png", help="PNG file to write (%(default)s)")
    return parser
