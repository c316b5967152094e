"""``emu-jax compare A B ...``: the same prompts and the same noise, drawn by several models.

Writes one self-contained HTML report, a JSON file with the same figures, and an image of the grid.
Without ``--prompts`` the prompts are kept concepts: pre-training has shown them, quality-tuning
never does. The judge measures every model; its intervals are 95 %, over prompts. ``--judge=""``
compares without measurements, and reads no data set.
"""

from collections.abc import Sequence

from emu_jax.assembly.arguments import Parser, path, positive
from emu_jax.cli.arguments import (
    add_data_dir,
    add_out,
    add_sampling_arguments,
    sampling_changes,
)
from emu_jax.evaluation.references import Sets

JUDGE = "builtin:judge_64"


def main(argv: Sequence[str]) -> int:
    return report(argv, "compare", __doc__, "runs/report")


def report(argv: Sequence[str], program: str, description: str | None, default_out: str) -> int:
    """The commands ``compare`` and ``evaluate``."""
    parser = Parser(f"emu-jax {program}", description=description)
    parser.add_argument(
        "models", nargs="+", type=path, help="runs, exported models or builtin:NAME"
    )
    parser.add_argument("--prompts", type=path, help="file with one prompt per line")
    parser.add_argument(
        "--count", type=positive, default=100, help="number of prompts, without --prompts"
    )
    parser.add_argument(
        "--judge", type=path, default=JUDGE, help=f"default {JUDGE}; empty: no judge"
    )
    add_data_dir(parser)
    for name, what in (
        ("captions", "images whose captions are the prompts, without --prompts"),
        ("needles", "images of quality-tuning"),
        ("haystack", "images in the style of pre-training"),
        ("kept", "images for the loss, as in validation"),
    ):
        default = getattr(Sets, name)
        parser.add_argument(f"--{name}", default=default, help=f"{what}; default {default}")
    add_out(parser, default_out, "folder for the report")
    add_sampling_arguments(parser)
    arguments = parser.parse_args(argv)

    from emu_jax.assembly.comparing import compare
    from emu_jax.assembly.drawing import read_prompts

    index = compare(
        arguments.models,
        arguments.out,
        Sets(
            arguments.data_dir,
            arguments.captions,
            arguments.needles,
            arguments.haystack,
            arguments.kept,
        ),
        name=program,
        prompts=read_prompts(arguments.prompts) if arguments.prompts else None,
        count=arguments.count,
        judge=arguments.judge,
        seed=arguments.seed,
        changes=sampling_changes(arguments),
    )
    print(f"report: {index}")
    return 0
