"""`emu-jax people`: people compare the images of models in a browser.

emu-jax people compare A B --prompts=FILE --out=DIR
emu-jax people serve DIR
emu-jax people add DIR NAME ...
emu-jax people report DIR --out=REPORT
emu-jax people export DIR answers.csv
emu-jax people import DIR answers.csv
emu-jax people power 0.55
emu-jax people curate folder/mine --stage=recall --out=DIR
emu-jax people curated DIR folder/kept

It needs the extra `people`: pip install "emu_jax[people]".
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import TYPE_CHECKING

from emu_jax.assembly.arguments import Parser, counted, folder, path, positive, share_of_one
from emu_jax.cli.arguments import (
    add_data_dir,
    add_sampling_arguments,
    names_of,
    port,
    require_packages,
    sampling_changes,
)
from emu_jax.errors import UserError
from emu_jax.evaluation.registry import METRICS
from emu_jax.people.questions import STAGES

if TYPE_CHECKING:
    from emu_jax.evaluation.prompt_sets import PromptSet

_PACKAGES = ("jinja2", "sqlalchemy", "starlette", "uvicorn")


def main(argv: Sequence[str]) -> int | None:
    args = _parser().parse_args(argv)
    if args.command != "power":
        require_packages("people", _PACKAGES)
    return _COMMANDS[args.command](args)


def _compare(args: argparse.Namespace) -> None:
    from functools import reduce
    from operator import add

    from emu_jax.people.contenders import contenders
    from emu_jax.people.making import Settings, make_study
    from emu_jax.people.store import create_store

    prompts = reduce(add, [_prompts(args, name) for name in args.prompts])
    settings = Settings(
        votes={"appeal": args.appeal_votes, "faithfulness": args.faithfulness_votes},
        repeated=args.repeated,
        gold=args.checks,
        training=not args.no_training,
        seed=args.seed,
    )
    entered = contenders(args.models, prompts, args.seed, sampling_changes(args))
    store = create_store(args.out, args.database)
    make_study(store, entered, prompts, settings, args.size)
    print(f"study: {len(prompts)} prompts, {len(entered)} models, in {args.out}")
    if not args.no_serve:
        _served(args, args.out)


def _curate(args: argparse.Namespace) -> None:
    from emu_jax.people.curating import make_curation
    from emu_jax.people.store import create_store

    store = create_store(args.out, args.database)
    votes = args.votes or STAGES[args.stage]
    place = (args.dataset, args.data_dir, args.stage, votes)
    count = make_curation(store, *place, args.select, args.size, args.seed)
    print(f"{args.stage}: {count} images of {args.dataset}, in {args.out}")
    if not args.no_serve:
        _served(args, args.out)


def _curated(args: argparse.Namespace) -> None:
    from emu_jax.people.curating import write_curated
    from emu_jax.people.store import open_store

    store = open_store(args.study, args.database)
    directory = write_curated(store, args.name, args.data_dir)
    kept = f"{store.study().kind}_kept == 1"
    print(f"{args.name}: in {directory}; select what was kept by {kept!r}")


def _serve(args: argparse.Namespace) -> None:
    _served(args, args.study)


def _served(args: argparse.Namespace, study: str) -> None:
    from emu_jax.people.serving import serve
    from emu_jax.people.store import open_store

    serve(open_store(study, args.database), args.host, args.port, args.url, args.language)


def _add(args: argparse.Namespace) -> None:
    from emu_jax.people.access import add_annotators
    from emu_jax.people.dealing import deal
    from emu_jax.people.store import open_store

    store = open_store(args.study, args.database)
    tokens = add_annotators(store, args.names)
    undealt = deal(store)
    for name, token in tokens.items():
        print(f"{name}: {args.url.rstrip('/')}/a/{token}")
    if undealt:
        print(f"{undealt} votes have no annotator yet: add more annotators.")


def _report(args: argparse.Namespace) -> None:
    from emu_jax.people.report import report
    from emu_jax.people.store import open_store

    index = report(
        open_store(args.study, args.database),
        args.out or f"{args.study}/report",
        least=args.least_votes,
        by=args.by,
        metrics=args.metrics,
        weights=args.weights,
        record=args.compare,
        seed=args.seed,
    )
    print(f"report: {index}")


def _export(args: argparse.Namespace) -> None:
    from etils import epath

    from emu_jax.people.exchange import as_csv, as_parquet
    from emu_jax.people.store import open_store

    kinds = {".csv": as_csv, ".parquet": as_parquet}
    file = epath.Path(args.file)
    if file.suffix not in kinds:
        raise UserError(f"{args.file}: use a file name that ends with {' or '.join(kinds)}.")
    file.write_bytes(kinds[file.suffix](open_store(args.study, args.database)))


def _import(args: argparse.Namespace) -> None:
    from emu_jax.people.dealing import deal
    from emu_jax.people.exchange import import_answers
    from emu_jax.people.store import open_store

    store = open_store(args.study, args.database)
    count = import_answers(store, args.file)
    deal(store)  # what was answered elsewhere is not asked again
    print(f"{count} answers imported")


def _power(args: argparse.Namespace) -> None:
    from emu_jax.evaluation.preferences import pairs_needed

    if not 0.5 < args.share < 1:
        raise UserError(f"{args.share} is not a share above 0.5 and below 1.")
    decided = pairs_needed(args.share, args.power)
    ties = f", {round(decided / (1 - args.ties))} pairs with {args.ties:.0%} ties"
    print(
        f"{decided} pairs with a winner tell {args.share:.1%} from 50% with a power of "
        f"{args.power:.0%} (two-sided, at 5%){ties if args.ties else ''}"
    )


_COMMANDS = {
    "compare": _compare,
    "curate": _curate,
    "curated": _curated,
    "serve": _serve,
    "add": _add,
    "report": _report,
    "export": _export,
    "import": _import,
    "power": _power,
}


def _prompts(args: argparse.Namespace, name: str) -> "PromptSet":
    """A set of prompts, with its name in their column ``set``."""
    from emu_jax.evaluation.prompt_sets import open_prompts

    found = open_prompts(name, args.prompt_column, args.select, args.data_dir)
    if args.count:
        found = found.spread(args.count)
    form, _, rest = name.partition(":")
    short = PurePath(rest if form in ("parti", "geneval") else form).stem
    return replace(found, columns={"set": (short,) * len(found), **found.columns}, real=None)


def _parser() -> Parser:
    parser = Parser("emu-jax people", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    database = Parser(add_help=False)
    database.add_argument(
        "--database",
        default="",
        help="postgresql://USER@HOST/NAME; default a file of SQLite in the study's folder",
    )
    server = Parser(add_help=False)
    server.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    server.add_argument("--port", type=port, default=8321, help="(%(default)s)")
    server.add_argument(
        "--url", default="", help="https://NAME under which a reverse proxy shows it to annotators"
    )
    server.add_argument(
        "--language", default="en", help="of the annotators' pages, or a .json file (%(default)s)"
    )
    study = Parser(add_help=False, parents=[database])
    study.add_argument("study", type=path, help="folder of the study")

    one = commands.add_parser(
        "compare", parents=[database, server], help="make a study of preference and serve it"
    )
    one.add_argument(
        "models", nargs="+", type=path, help="runs, exported models, builtin:NAME, image folders"
    )
    one.add_argument(
        "--prompts",
        action="append",
        required=True,
        help="as of emu-jax compare; several sets: give it several times",
    )
    one.add_argument("--prompt_column", default="", help="column of the prompts")
    one.add_argument("--select", default="", help="condition on the columns of --prompts")
    one.add_argument("--count", type=positive, help="number of prompts of each set")
    one.add_argument("--out", type=folder, required=True, help="folder of the study")
    one.add_argument("--size", type=positive, help="reduce images to this longer side, in pixels")
    one.add_argument(
        "--appeal_votes", type=counted, default=5, help="of each pair; 0: do not ask (%(default)s)"
    )
    one.add_argument("--faithfulness_votes", type=counted, default=3, help="likewise (%(default)s)")
    one.add_argument(
        "--repeated",
        type=share_of_one,
        default=0.05,
        help="share of pairs shown twice (%(default)s)",
    )
    one.add_argument(
        "--checks", type=share_of_one, default=0.05, help="share of attention checks (%(default)s)"
    )
    one.add_argument("--no_training", action="store_true", help="no training round")
    one.add_argument("--no_serve", action="store_true", help="make the study only")
    add_data_dir(one)
    add_sampling_arguments(one)

    seven = commands.add_parser(
        "curate", parents=[database, server], help="make a study that selects images, and serve it"
    )
    seven.add_argument("dataset", help="such as folder/mine")
    seven.add_argument("--stage", choices=tuple(STAGES), required=True)
    seven.add_argument("--select", default="", help="condition, such as 'recall_kept == 1'")
    seven.add_argument("--votes", type=positive, help="of an image; default 1, precision: 3")
    seven.add_argument("--out", type=folder, required=True, help="folder of the study")
    seven.add_argument("--size", type=positive, help="reduce images to this longer side, in pixels")
    seven.add_argument("--seed", type=counted, default=0, help="of the orders of images")
    seven.add_argument("--no_serve", action="store_true", help="make the study only")
    add_data_dir(seven)
    eight = commands.add_parser("curated", parents=[study], help="write what was selected")
    eight.add_argument("name", help="of the data set that is written: folder/NAME")
    add_data_dir(eight)

    commands.add_parser("serve", parents=[study, server], help="serve a study that was made")

    two = commands.add_parser("add", parents=[study], help="add annotators and print their links")
    two.add_argument("names", nargs="+")
    two.add_argument("--url", default="http://127.0.0.1:8321", help="the study's (%(default)s)")

    three = commands.add_parser("report", parents=[study], help="write the report so far")
    three.add_argument("--out", type=folder, help="folder for the report; default STUDY/report")
    three.add_argument(
        "--least_votes", type=positive, help="pairs with fewer are left out; default: all votes"
    )
    three.add_argument("--by", default="", help="column of the prompts that divides the tables")
    three.add_argument(
        "--metrics",
        type=names_of(METRICS),
        default=(),
        help="metrics of single images, to compare with the people's majority",
    )
    three.add_argument("--weights", type=path, default="", help="networks of metrics")
    three.add_argument(
        "--compare", type=path, default="", help="compare.json of the same models, prompts and seed"
    )
    three.add_argument("--seed", type=counted, default=0, help="seed of the resamples")

    four = commands.add_parser("export", parents=[study], help="write the answers so far")
    four.add_argument("file", help="*.csv or *.parquet")

    five = commands.add_parser("import", parents=[study], help="add answers from elsewhere")
    five.add_argument("file", type=path, help="*.csv, or Label Studio's *.json")

    six = commands.add_parser("power", help="how many pairs tell a share from one half")
    six.add_argument("share", type=share_of_one, help="such as 0.55")
    six.add_argument("--power", type=share_of_one, default=0.8, help="(%(default)s)")
    six.add_argument("--ties", type=share_of_one, default=0.0, help="share of ties (%(default)s)")
    return parser
