"""``emu-jax reconstruct A B ...``: autoencoders measured by their reconstructions of images.

Reconstructions have no noise: latents are the means, tokens the nearest codes. Writes one HTML
report with the images side by side, and the figures as JSON and Markdown. The judge's features give
the Frechet distance between images and reconstructions (``--judge=""``: no judge). A parser tells
how many scenes are read right, before and after.
"""

from collections.abc import Sequence

from emu_jax.assembly.arguments import Parser, path, positive
from emu_jax.cli.arguments import add_data_dir, add_out
from emu_jax.cli.compare import JUDGE

HELD_OUT = ("emoji/openmoji:part == held_out", "emoji/fluent:part == held_out")


def main(argv: Sequence[str]) -> int:
    parser = Parser("emu-jax reconstruct", description=__doc__)
    parser.add_argument(
        "models", nargs="+", type=path, help="runs, exported models or builtin:NAME"
    )
    parser.add_argument(
        "--pictures",
        action="append",
        help=f"DATASET or DATASET:CONDITION; may be repeated; default {' and '.join(HELD_OUT)}",
    )
    parser.add_argument(
        "--judge", type=path, default=JUDGE, help=f"default {JUDGE}; empty: no judge"
    )
    parser.add_argument(
        "--parser",
        type=path,
        default="",
        help="a model of configs/parser.py, for --pictures=scenes/...",
    )
    parser.add_argument(
        "--image_size", type=positive, help="pixels per side; default: as the first was trained"
    )
    add_data_dir(parser)
    parser.add_argument("--batch_size", type=positive, default=16, help="images at once")
    add_out(parser, "runs/reconstructions", "folder for the report")
    arguments = parser.parse_args(argv)

    from emu_jax.assembly.reconstructing import compare_autoencoders

    index = compare_autoencoders(
        arguments.models,
        arguments.pictures or HELD_OUT,
        arguments.out,
        judge=arguments.judge,
        parser=arguments.parser,
        image_size=arguments.image_size,
        data_dir=arguments.data_dir,
        batch_size=arguments.batch_size,
    )
    print(f"report: {index}")
    return 0
