"""``emu-jax reconstruct A B ...``: autoencoders measured by their reconstructions of images.

Reconstructions have no noise: latents are the means, tokens the nearest codes. Writes one HTML
report with the images side by side, and the figures as JSON and Markdown. The judge's features give
the Frechet distance between images and reconstructions (``--judge=""``: no judge).
"""

import argparse
from collections.abc import Sequence

from emu_jax.cli.arguments import positive
from emu_jax.cli.compare import JUDGE
from emu_jax.data.places import DEFAULT_DATA_DIR

HELD_OUT = ("emoji/openmoji:part == held_out", "emoji/fluent:part == held_out")


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="emu-jax reconstruct", description=__doc__)
    parser.add_argument("models", nargs="+", help="runs, exported models or builtin:NAME")
    parser.add_argument(
        "--pictures",
        action="append",
        help=f"DATASET or DATASET:CONDITION; may be repeated; default {' and '.join(HELD_OUT)}",
    )
    parser.add_argument("--judge", default=JUDGE, help=f"default {JUDGE}; empty: no judge")
    parser.add_argument("--data_dir", default=DEFAULT_DATA_DIR, help="folder of the data sets")
    parser.add_argument("--batch_size", type=positive, default=16, help="images at once")
    parser.add_argument("--out", default="runs/reconstructions", help="folder for the report")
    arguments = parser.parse_args(argv)

    from emu_jax.assembly.reconstructing import compare_autoencoders

    index = compare_autoencoders(
        arguments.models,
        arguments.pictures or HELD_OUT,
        arguments.out,
        judge=arguments.judge,
        data_dir=arguments.data_dir,
        batch_size=arguments.batch_size,
    )
    print(f"report: {index}")
    return 0
