"""`emu-jax data curate`: the curation funnel, from a pool of images to a data set.

emu-jax data curate --config=configs/curation.py --config.source.path=POOL --out=runs/funnel
emu-jax data curate --config=configs/curation.py ... --out=runs/funnel --stage=choose \\
    --config.steps.text.at_most=0.02

Stages are score (slow, once), choose (seconds), report and build; a stage also runs those before
it, as far as they are not done. Every stage can be interrupted and continues.
"""

import argparse
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from emu_jax.assembly.arguments import Parser, folder, positive, seed, share_of_one
from emu_jax.cli.arguments import add_data_dir, names_of
from emu_jax.errors import UserError

if TYPE_CHECKING:
    from emu_jax.curation.curating import Pool

STAGES = ("score", "choose", "report", "build")
# Those of emu_jax.curation.noisy, which imports more than a command's help should wait for.
POOL_FAULTS = ("duplicate", "watermark", "text", "blurred", "wrong caption", "small", "damaged")


def main(argv: Sequence[str]) -> None:
    from emu_jax.assembly.config import config_parser, parse

    parser = config_parser("emu-jax data curate", __doc__)
    parser.add_argument("--out", type=folder, help="folder of scores, choices and the report")
    parser.add_argument(
        "--stage", choices=STAGES, default="build", help="the last stage to run (%(default)s)"
    )
    parser.add_argument("--workers", type=positive, default=1, help="processes (%(default)s)")
    parser.add_argument(
        "--beam",
        action="append",
        default=[],
        metavar="OPTION",
        help="an option of Apache Beam, e.g. --beam=--runner=FlinkRunner; may be repeated",
    )
    parser.add_argument("--times", action="store_true", help="print the CPU time of every filter")
    parser.add_argument("--force", action="store_true", help="replace an existing data set")
    add_data_dir(parser)
    from emu_jax.curation.sections import Curation

    args = parse(argv, parser, Curation)
    if not args.out:
        raise UserError("emu-jax data curate needs --out=DIR, a folder for scores and choices.")
    logging.disable(logging.WARNING)  # Beam speaks of packages that it does without
    try:
        import apache_beam  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError("Curation needs Apache Beam: pip install 'emu_jax[curation]'.") from error

    logging.disable(logging.NOTSET)
    from emu_jax.assembly.checking import typed
    from emu_jax.curation.curating import choose_images, damaged, funnel_lines, open_pool
    from emu_jax.curation.scoring import beam_options

    options = beam_options(args.workers, args.beam)
    pool = open_pool(typed(Curation, args.config, "config"), args.out)
    _score(pool, options, args.times)
    count, named = damaged(pool)
    if count:
        print(f"{count:,} images cannot be read:\n  " + "\n  ".join(named))
    last = STAGES.index(args.stage)
    if last < 1:
        return
    chosen = choose_images(pool, options)
    print("\n".join(funnel_lines(chosen.funnel)))
    if last >= 2:
        from emu_jax.curation.report import write

        print(f"report: {write(pool, chosen)}")
    if last >= 3:
        from emu_jax.assembly.data_sets import summary
        from emu_jax.curation.building import build_data_set

        source = build_data_set(pool, chosen.funnel, args.data_dir, args.force)
        print(f"{source.name}: {summary(source.manifest)}\n  in {source.directory}")


def add_pool_parser(commands: "argparse._SubParsersAction[Parser]", place: Parser) -> None:
    """`emu-jax data pool`: a noisy pool with known faults."""
    one = commands.add_parser(
        "pool", parents=[place], help="write a noisy pool with known faults, to try a funnel on"
    )
    one.add_argument("sources", nargs="+", metavar="DATASET", help="such as emoji/openmoji")
    one.add_argument("--select", default="", help="condition on the data sets' columns")
    one.add_argument("--out", type=folder, required=True, help="folder of the .tar files")
    one.add_argument("--count", type=positive, default=1000, help="images (%(default)s)")
    one.add_argument(
        "--share", type=share_of_one, default=0.08, help="of every fault (%(default)s)"
    )
    one.add_argument(
        "--faults",
        type=names_of(POOL_FAULTS),
        default=POOL_FAULTS,
        help=f"faults, separated by commas; all by default: {','.join(POOL_FAULTS)}",
    )
    one.add_argument("--shard_size", type=positive, default=250, help="images of a file")
    one.add_argument("--seed", type=seed, default=0, help="seed (%(default)s)")


def pool(args: argparse.Namespace) -> None:
    """The command `emu-jax data pool`."""
    from emu_jax.curation.noisy import write_pool

    counts = write_pool(
        args.sources,
        args.data_dir,
        args.out,
        count=args.count,
        share=args.share,
        faults=args.faults,
        shard_size=args.shard_size,
        select=args.select,
        seed=args.seed,
    )
    print(f"{args.out}: " + ", ".join(f"{n:,} {kind}" for kind, n in counts.items()))


def _score(pool: "Pool", options: Any, times: bool) -> None:
    import time

    from emu_jax.curation.curating import score_pool

    start = time.monotonic()
    spent = score_pool(pool, options)
    total = int(pool.scores.starts[-1])
    print(f"{pool.source.origin}: {total:,} images in {pool.scores.count:,} shards")
    if times and spent:
        wall = time.monotonic() - start
        print(f"  {total / wall:.1f} images/s with the start of the workers")
        for name, seconds in sorted(spent.items(), key=lambda item: -item[1]):
            print(
                f"  {name:<16} {seconds:8.1f} CPU s  {1000 * seconds / max(total, 1):8.1f} ms/image"
            )
