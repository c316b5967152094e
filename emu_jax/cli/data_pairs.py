"""`emu-jax data caption`, `pair` and `statistics`: data sets of pairs of a simple caption and a
complex prompt, as SURD was built.

emu-jax data caption IMAGES --model=BLIP --out=captions.jsonl
emu-jax data pair IMAGES --captions=captions.jsonl --out=PAIRS
emu-jax data pair IMAGES --captions=captions.jsonl --out=PAIRS --rejected=PAIRS/check.txt
emu-jax data statistics PAIRS/data --out=statistics.html
"""

import argparse
from typing import Any

from emu_jax.assembly.arguments import Parser, counted, folder, path, positive, real, seed
from emu_jax.cli.arguments import share
from emu_jax.errors import UserError

COMMANDS = ("caption", "pair", "statistics")
_PATIENCE = 7 * 24 * 3600  # seconds: processes end when their images are captioned, not together


def add_parsers(commands: Any, place: Parser) -> None:
    """The parsers of the commands; ``place`` has the arguments of all."""
    images = Parser(add_help=False, parents=[place])
    images.add_argument("name", type=path, help="a folder of images, or a data set: folder/NAME")
    images.add_argument("--select", default="", help="condition on a data set, as of show")

    one = commands.add_parser("caption", parents=[images], help="caption images with BLIP")
    one.add_argument("--model", type=path, required=True, help="BLIP's folder or hub name")
    one.add_argument("--out", type=path, required=True, help="file of JSON lines to write")
    one.add_argument("--prompt", default="a picture of ", help="begins each caption (%(default)r)")
    one.add_argument("--num_beams", type=positive, default=3, help="1: greedy (%(default)s)")
    one.add_argument(
        "--min_length", type=counted, default=10, help="tokens with the prompt (%(default)s)"
    )
    one.add_argument(
        "--max_length", type=positive, default=30, help="tokens with the prompt (%(default)s)"
    )
    one.add_argument(
        "--repetition_penalty", type=real, default=1.0, help="above 1: fewer repeated tokens"
    )
    one.add_argument(
        "--length_penalty", type=real, default=1.0, help="of a beam search; higher: longer captions"
    )
    one.add_argument("--batch_size", type=positive, default=16, help="images at once (%(default)s)")
    one.add_argument(
        "--shard", type=share, help="i/n: the i-th of n shares; default: one per process"
    )

    two = commands.add_parser(
        "pair", parents=[images], help="filter pairs of a simple caption and a complex prompt"
    )
    two.add_argument(
        "--captions", required=True, help="simple captions: a table, or a data set's column"
    )
    two.add_argument(
        "--prompts",
        default="captions",
        help="complex prompts: a table, a data set's column, or captions, of a folder the texts "
        "beside its images (%(default)s)",
    )
    two.add_argument("--out", type=folder, required=True, help="folder to write")
    two.add_argument(
        "--clip",
        type=path,
        default="builtin:judge_64",
        help="a CLIP's folder or hub name, or a judge (%(default)s)",
    )
    two.add_argument("--rejected", type=path, default="", help="the list with a person's marks")
    two.add_argument(
        "--wrong",
        type=_part,
        default=0.0,
        help="control: exchange this share of the simple captions, and count those dropped",
    )
    two.add_argument("--seed", type=seed, default=0, help="of --wrong (%(default)s)")
    two.add_argument("--batch_size", type=positive, default=32, help="images at once (%(default)s)")

    three = commands.add_parser(
        "statistics", parents=[place], help="lengths, frequent words and phrases of pairs"
    )
    three.add_argument(
        "name", type=path, help="a folder with metadata.jsonl (text, prompt), or a data set"
    )
    three.add_argument("--select", default="", help="condition on a data set, as of show")
    three.add_argument("--simple", default="simple", help="a data set's column (%(default)s)")
    three.add_argument("--complex", default="complex", help="a data set's column (%(default)s)")
    three.add_argument("--out", type=path, default="statistics.html", help="page (%(default)s)")


def run(args: argparse.Namespace) -> None:
    {"caption": _caption, "pair": _pair, "statistics": _statistics}[args.command](args)


def _caption(args: argparse.Namespace) -> None:
    if not args.out.endswith(".jsonl"):
        raise UserError(f"--out={args.out}: the captions are JSON lines; name it FILE.jsonl.")
    from emu_jax.assembly.captioning import caption_images
    from emu_jax.cli.main import report
    from emu_jax.data.collection import Collection
    from emu_jax.parallel.distributed import ending_together, initialize
    from emu_jax.text.blip import make_blip
    from emu_jax.text.search import Settings

    if not args.shard:
        initialize(patience=_PATIENCE)
    with ending_together(report):
        settings = Settings(
            args.num_beams,
            args.min_length,
            args.max_length,
            args.repetition_penalty,
            args.length_penalty,
        )
        model = make_blip(args.model, args.prompt, settings)
        images = Collection(args.name, args.data_dir, args.select)
        ledger = caption_images(
            images, model, args.out, shard=args.shard, batch_size=args.batch_size
        )
    damaged = sum("reason" in row for row in ledger.rows.values())
    unread = f", {damaged:,} images cannot be read" if damaged else ""
    print(f"{len(ledger.rows) - damaged:,} captions in {ledger.path}{unread}", flush=True)


def _pair(args: argparse.Namespace) -> None:
    from emu_jax.assembly.pairing import build_pairs
    from emu_jax.data.collection import PROMPT_COLUMNS, Collection, first, longest

    images = Collection(args.name, args.data_dir, args.select)
    result = build_pairs(
        images,
        images.texts(args.prompts, longest, PROMPT_COLUMNS),
        images.texts(args.captions, first),
        args.out,
        clip=args.clip,
        rejected=args.rejected,
        wrong=args.wrong,
        seed=args.seed,
        batch_size=args.batch_size,
    )
    print("\n".join(result.lines()))
    print(f"  in {args.out}/data; check them by hand in {args.out}/{result.sheets[0]}")


def _statistics(args: argparse.Namespace) -> None:
    from etils import epath

    from emu_jax.data.collection import Collection, first, longest, read_texts
    from emu_jax.evaluation.text_statistics import write_statistics

    place = epath.Path(args.name).expanduser()
    if place.is_dir():
        table = place / "metadata.jsonl"
        simple, complex_ = (
            {name: texts[0] for name, texts in read_texts(table, (column,)).items() if texts}
            for column in ("text", "prompt")
        )
    else:
        images = Collection(args.name, args.data_dir, args.select)
        simple, complex_ = images.texts(args.simple, first), images.texts(args.complex, longest)
    names = [name for name in simple if name in complex_]
    page = write_statistics(
        epath.Path(args.out).expanduser(),
        args.name,
        [simple[name] for name in names],
        [complex_[name] for name in names],
    )
    print(f"{len(names):,} pairs: {page}")


def _part(text: str) -> float:
    number = real(text)
    if not 0 <= number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share; use 0 to 1, such as 0.2")
    return number
