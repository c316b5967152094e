"""Arguments that several commands share."""

import argparse
from typing import Any

from emu_jax.assembly.arguments import Parser, folder, path, positive, scale, seed
from emu_jax.data.places import DEFAULT_DATA_DIR


def add_sampling_arguments(parser: Parser) -> None:
    """Options of sampling; the defaults are the settings in the checkpoint's config."""
    parser.add_argument("--seed", type=seed, default=0, help="seed of each prompt's first image")
    parser.add_argument("--steps", type=positive, help="number of sampling steps")
    parser.add_argument(
        "--sampler", help="ddim, ancestral, euler, heun or dpmpp_2m; for tokens parallel"
    )
    parser.add_argument("--guidance_scale", type=scale, help="scale of classifier-free guidance")
    parser.add_argument("--batch_size", type=positive, default=16, help="images drawn at once")


def sampling_changes(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of :func:`add_sampling_arguments` that open_generator takes."""
    return {
        name: getattr(arguments, name)
        for name in ("steps", "sampler", "guidance_scale", "batch_size")
    }


def add_data_dir(parser: Parser) -> None:
    """The folder of the data sets."""
    parser.add_argument(
        "--data_dir", type=path, default=DEFAULT_DATA_DIR, help="folder of the data sets"
    )


def add_out(parser: Parser, default: str | None, what: str) -> None:
    """The folder that a command writes to; None: it must be given."""
    required = default is None
    parser.add_argument("--out", type=folder, default=default, required=required, help=what)
