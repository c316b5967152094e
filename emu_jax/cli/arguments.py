"""Arguments that several commands share."""

import argparse
import math
import secrets
from collections.abc import Callable, Collection
from typing import Any

from emu_jax.assembly.schema import listed, one_of
from emu_jax.process.registry import SAMPLERS


def positive(text: str) -> int:
    """A whole number, 1 or more, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive; use 1 or more")
    return number


def seed(text: str) -> int:
    """A seed of 32 bits, for argparse; -1 is a random one, which is printed."""
    number = int(text)
    if number == -1:
        number = secrets.randbelow(2**31)
        print(f"seed {number}")
    if not 0 <= number < 2**32:
        raise argparse.ArgumentTypeError(
            f"{number} is not a seed; use 0 to {2**32 - 1}, or -1 for a random one"
        )
    return number


def scale(text: str) -> float:
    """A scale of guidance, 0 or more, for argparse."""
    number = float(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a scale; use 0 or more")
    return number


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


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of sampling; the defaults are the settings in the checkpoint's config."""
    parser.add_argument(
        "--seed", type=seed, default=0, help="seed of each prompt's first image; -1: a random one"
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
