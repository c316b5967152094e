"""Arguments that several commands share."""

import argparse
import re
import secrets
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emu_jax.assembly.arguments import (
    Parser,
    counted,
    folder,
    path,
    positive,
    real,
    scale,
    seed,
    share_of_one,
)
from emu_jax.assembly.schema import listed, one_of
from emu_jax.data.places import DEFAULT_DATA_DIR
from emu_jax.errors import UserError
from emu_jax.process.registry import SAMPLERS, SPACINGS

SHIPPED = "builtin:latent_diffusion_64"
_NO_LIMIT = 2**20  # pixels

if TYPE_CHECKING:
    from emu_jax.assembly.given import Given
    from emu_jax.evaluation.prompt_sets import PromptSet


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
    parser.add_argument(
        "--spacing",
        choices=SPACINGS,
        help="spacing of the steps' times; trailing is best for few steps",
    )
    parser.add_argument("--guidance_scale", type=scale, help="scale of classifier-free guidance")
    parser.add_argument(
        "--image_guidance_scale",
        type=scale,
        help="scale of guidance by the image before an edit, of editing models",
    )
    parser.add_argument(
        "--sag_scale", type=scale, help="scale of self-attention guidance (U-Nets); 0.75 is usual"
    )
    parser.add_argument("--batch_size", type=positive, default=16, help="images drawn at once")
    parser.add_argument(
        "--prompt_weighting",
        choices=("none", "a1111", "compel"),
        default="none",
        help="weights in prompts: a1111 reads (word:1.3), ((word)) and [word]; compel reads "
        "word++, word-- and (several words)1.2; none (default): brackets and signs are text",
    )


def sampling_changes(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of :func:`add_sampling_arguments` that open_generator takes."""
    return {
        name: getattr(arguments, name)
        for name in (
            *("steps", "sampler", "spacing", "guidance_scale", "image_guidance_scale"),
            *("sag_scale", "batch_size", "prompt_weighting"),
        )
    }


def add_generator_arguments(parser: Parser) -> None:
    """The model that draws, what is laid over it, the negative prompt, and the size."""
    parser.add_argument(
        "--checkpoint", type=path, default=SHIPPED, help=f"model; default {SHIPPED}"
    )
    add_adapters(parser, "the checkpoint")
    parser.add_argument(
        "--eta", type=share_of_one, help="share of the text adapter, 0 to 1; default: its own"
    )
    parser.add_argument("--negative", default="", help="negative prompt")


def generator_changes(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of :func:`add_generator_arguments` that change the model, and those of
    :func:`sampling_changes`.
    """
    names = ("adapter", "adapter_scale", "text_adapter", "eta")
    return {name: getattr(arguments, name) for name in names} | sampling_changes(arguments)


def add_size(parser: Parser, default: str) -> None:
    """Width and height in pixels; ``default`` says what they are otherwise."""
    for side in ("width", "height"):
        parser.add_argument(f"--{side}", type=positive, help=f"in pixels; default: {default}")


def largest(arguments: argparse.Namespace) -> tuple[int, int] | None:
    """(height, width) of :func:`add_size` that an image is to fit into."""
    if not (arguments.width or arguments.height):
        return None
    return arguments.height or _NO_LIMIT, arguments.width or _NO_LIMIT


def add_strength(parser: Parser, strength: float) -> None:
    """How much of an image is drawn anew; ``strength`` is the default."""
    parser.add_argument(
        "--strength",
        type=share_of_one,
        default=strength,
        help="share of the sampling steps that are taken: 0 returns the image, 1 starts from "
        f"noise; default {strength:g}",
    )


def add_feather(parser: Parser) -> None:
    """How soft the edges of what stays of an image are."""
    parser.add_argument(
        "--feather",
        type=scale,
        help="pixels over which the edge of what stays is blended; default: 1 %% of the shorter "
        "side",
    )


def require_packages(extra: str, packages: Collection[str]) -> None:
    """Raises a UserError if a command's packages, those of an extra, are not installed."""
    from importlib.util import find_spec

    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise UserError(
            f"emu-jax {extra} needs packages that are not installed ({', '.join(missing)}): "
            f'install them with pip install "emu_jax[{extra}]".'
        )


def port(text: str) -> int:
    """The number of a port, for argparse."""
    number = counted(text)
    if not 1 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{text}: use 1 to 65535")
    return number


def add_editing(parser: Parser, strength: float, out: str) -> None:
    """Photographs, a prompt, and how they are drawn anew; ``strength`` and ``out`` are defaults."""
    parser.add_argument("photo", nargs="+", type=path, help="image files")
    parser.add_argument("prompt", help="what the result looks like")
    add_strength(parser, strength)
    parser.add_argument("--per_prompt", type=positive, default=1, help="images of each photograph")
    add_size(parser, "as in training")
    add_out(parser, out, "folder for the images")
    add_sampling_arguments(parser)
    add_generator_arguments(parser)


def editing_changes(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of :func:`add_editing`, for ``edit_images``."""
    names = ("strength", "seed", "per_prompt", "negative")
    own = {name: getattr(arguments, name) for name in names}
    return own | {"size": largest(arguments)} | generator_changes(arguments)


def require_images(*files: str) -> None:
    """Raises a UserError for a local image that does not exist."""
    for file in files:
        if file and "://" not in file and not Path(file).is_file():
            raise UserError(f"There is no image {file}.")


def numbers(count: int) -> Callable[[str], tuple[float, ...]]:
    """So many numbers separated by commas, for argparse."""

    def parse(text: str) -> tuple[float, ...]:
        found = tuple(map(real, text.split(",")))
        if len(found) != count:
            raise argparse.ArgumentTypeError(f"{text!r}: use {count} numbers, with commas between")
        return found

    return parse


def add_adapters(parser: Parser, what: str) -> None:
    """LoRA and text adapter that are laid over ``what``."""
    parser.add_argument("--adapter", type=path, default="", help=f"LoRA file to lay over {what}")
    parser.add_argument("--adapter_scale", type=real, default=1.0, help="its strength")
    add_text_adapter(parser, what)


def add_control(parser: Parser, what: str, default: str) -> None:
    """A ControlNet that is laid over ``what``; ``default`` says whose hint it follows otherwise."""
    parser.add_argument(
        "--control",
        type=path,
        default="",
        metavar="MODEL[@STRENGTH]",
        help=f"ControlNet for {what}: a run, an exported or imported one, builtin:NAME; a strength "
        "has a decimal point (@0.7), default 1.0",
    )
    parser.add_argument(
        "--control_image",
        type=path,
        default="",
        help="image whose hint it follows (edges are computed); hint:FILE is the hint itself, "
        f"canny:FILE an image for edges; default: {default}",
    )


def add_given(parser: Parser) -> None:
    """Conditioning images of models that take others than a hint."""
    parser.add_argument(
        "--given",
        type=named_file,
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="an image that the model takes beside the prompt: image=FILE and mask=FILE of "
        "inpainting models (the mask is white where to draw), before=FILE of editing models",
    )


def named_file(text: str) -> tuple[str, str]:
    """``NAME=FILE`` for argparse."""
    name, equals, file = text.partition("=")
    if not (name and equals and file):
        raise argparse.ArgumentTypeError(f"{text!r}: use NAME=FILE, e.g. mask=mask.png")
    return name, path(file)


def adapter_changes(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of :func:`add_adapters` and :func:`add_control` that open_generator takes,
    without the text adapter.
    """
    return {name: getattr(arguments, name) for name in ("adapter", "adapter_scale", "control")}


def given_images(arguments: argparse.Namespace) -> "Given":
    """The images of :func:`add_control` and :func:`add_given`."""
    from emu_jax.assembly.given import Given

    return Given(arguments.control_image, dict(arguments.given))


def add_text_adapter(parser: Parser, what: str) -> None:
    """The file of a text adapter; ``what`` it is added to."""
    parser.add_argument(
        "--text_adapter",
        type=path,
        default="",
        help=f"file of a text adapter for {what}; also MODEL@FILE",
    )


def add_prompt_arguments(parser: Parser, count: str, of_each: str = "") -> None:
    """Options that name prompts; ``count`` says how many there are by default. Where there are
    several ``of_each``, every one may have its own column of prompts.
    """
    parser.add_argument(
        "--prompts",
        dest="prompt_set",
        type=_prompts,
        help="FILE of one prompt per line, or a table (.tsv, .csv); parti:FILE; "
        "geneval:FILE; sur; or DATASET:CONDITION, a data set's captions",
    )
    parser.add_argument(
        "--prompt_column",
        default="",
        help="column of the prompts; default prompt in tables, captions in data sets"
        + (f"; A,B,...: columns of the {of_each}, one for each" if of_each else ""),
    )
    parser.add_argument(
        "--select", default="", help="condition on columns of --prompts: 'category == Arts|Animals'"
    )
    parser.add_argument("--count", type=positive, help=f"number of prompts, {count}")


def named_prompts(arguments: argparse.Namespace) -> "PromptSet | None":
    """The prompts of ``--prompts``, at equal steps where ``--count`` are fewer; None: not given."""
    if not arguments.prompt_set:
        if arguments.select or arguments.prompt_column:
            option = "--select" if arguments.select else "--prompt_column"
            raise UserError(f"{option} is for the prompts of --prompts: add --prompts=FILE.")
        return None
    from emu_jax.evaluation.prompt_sets import open_prompts

    found = open_prompts(
        arguments.prompt_set,
        arguments.prompt_column,
        arguments.select,
        arguments.data_dir or DEFAULT_DATA_DIR,
    )
    return found.spread(arguments.count) if arguments.count else found


def share(text: str) -> tuple[int, int]:
    """``i/n``, the i-th of n shares, as (i - 1, n)."""
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    index, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= index <= count:
        raise argparse.ArgumentTypeError(f"{text!r}: use i/n with i from 1 to n, e.g. 1/8")
    return index - 1, count


def _prompts(text: str) -> str:
    path(text.removeprefix("parti:").removeprefix("geneval:"))
    return text


def add_data_dir(parser: Parser) -> None:
    """The folder of the data sets."""
    parser.add_argument(
        "--data_dir", type=path, default=DEFAULT_DATA_DIR, help="folder of the data sets"
    )


def add_out(parser: Parser, default: str | None, what: str) -> None:
    """The folder that a command writes to; None: it has no default."""
    parser.add_argument("--out", type=folder, default=default, help=what)
