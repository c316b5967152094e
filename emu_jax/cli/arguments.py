"""Arguments that several commands share."""

import argparse
import secrets
from collections.abc import Callable, Collection
from typing import Any

from emu_jax.assembly.arguments import Parser, folder, path, positive, scale, seed
from emu_jax.assembly.schema import listed, one_of
from emu_jax.data.places import DEFAULT_DATA_DIR
from emu_jax.process.registry import SAMPLERS


def names_of(registry: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    """One or more names of a registry, separated by commas, for argparse."""

    def names(text: str) -> tuple[str, ...]:
        found = tuple(filter(None, text.split(",")))
        for name in found:
            if name not in registry:
                raise argparse.ArgumentTypeError(
                    f"{name!r} is unknown; use {one_of(registry, name)}"
                )
        return found

    return names


def seed_or_random(text: str) -> int:
    """A seed of 32 bits; -1 is a random one, which is printed."""
    if text != "-1":
        return seed(text)
    number = secrets.randbelow(2**31)
    print(f"seed {number}")
    return number


def add_sampling_arguments(parser: Parser) -> None:
    """Options of sampling; the defaults are the settings in the checkpoint's config."""
    parser.add_argument(
        "--seed",
        type=seed_or_random,
        default=0,
        help="seed of each prompt's first image; -1: a random one",
    )
    parser.add_argument("--steps", type=positive, help="number of sampling steps")
    parser.add_argument("--sampler", help=f"{listed(SAMPLERS, 'or')}; parallel is for tokens")
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
    """The folder that a command writes to; None: it has no default."""
    parser.add_argument("--out", type=folder, default=default, help=what)
