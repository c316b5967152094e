"""``emu-jax sample``: pictures from prompts, one PNG each and one grid of all.

Pictures that are there already are not drawn again: a call that was broken off is finished by
giving it again.
"""

import argparse
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image
from tqdm import tqdm

from emu_jax.assembly.cascade import open_generator
from emu_jax.data.textfile import read_lines
from emu_jax.errors import UserError
from emu_jax.evaluation.grids import grid

SHIPPED = "builtin:latent_diffusion_64"


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="emu-jax sample", description=__doc__)
    parser.add_argument("prompts", nargs="*")
    parser.add_argument("--prompts", dest="file", help="file with one prompt a line")
    add_sampling_arguments(parser)
    parser.add_argument("--checkpoint", default=SHIPPED, help=f"default {SHIPPED}")
    parser.add_argument("--adapter", default="", help="a LoRA file to lay over the checkpoint")
    parser.add_argument("--adapter_scale", type=float, default=1.0, help="how strongly")
    parser.add_argument("--per_prompt", type=positive, default=1, help="pictures a prompt")
    parser.add_argument("--negative", default="", help="what to lead away from")
    parser.add_argument("--out", default="runs/samples", help="folder for the pictures")
    arguments = parser.parse_args(argv)
    prompts = [*arguments.prompts, *(read_prompts(arguments.file) if arguments.file else [])]
    if not prompts:
        raise UserError('There is nothing to draw: give prompts, e.g. emu-jax sample "a red fox".')

    generator = open_generator(
        arguments.checkpoint,
        adapter=arguments.adapter,
        adapter_scale=arguments.adapter_scale,
        **sampling_changes(arguments),
    )
    wanted = [
        (prompt, arguments.seed + i) for prompt in prompts for i in range(arguments.per_prompt)
    ]
    folder = epath.Path(arguments.out)
    folder.mkdir(parents=True, exist_ok=True)
    recipe = [generator.fingerprints, generator.config.sampling.to_dict(), arguments.negative]
    paths = [folder / _file_name(prompt, seed, recipe) for prompt, seed in wanted]
    missing = [i for i, path in enumerate(paths) if not path.exists()]
    drawn = generator.draw_each(
        [wanted[i][0] for i in missing], [wanted[i][1] for i in missing], arguments.negative
    )
    for i, image in zip(missing, tqdm(drawn, total=len(missing), desc="pictures"), strict=True):
        save_picture(Image.fromarray(image), paths[i])
    images = [np.asarray(Image.open(path.open("rb")).convert("RGB")) for path in paths]
    save_picture(
        grid(np.stack(images), [prompt for prompt, _ in wanted], scale=2), folder / "grid.png"
    )
    print(f"{len(paths)} pictures in {folder}, all of them in {folder / 'grid.png'}")
    return 0


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of how to draw; what is not given is as the checkpoint was trained."""
    parser.add_argument(
        "--seed", type=seed_number, default=0, help="of the first picture of each prompt"
    )
    parser.add_argument("--steps", type=positive, help="of the sampler")
    parser.add_argument(
        "--sampler", help="ddim, ancestral, euler, heun, dpmpp_2m; tokens: parallel"
    )
    parser.add_argument("--guidance_scale", type=float)
    parser.add_argument("--batch_size", type=positive, default=16)


def positive(text: str) -> int:
    """A whole number from 1 on, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not above 0")
    return number


def seed_number(text: str) -> int:
    """A seed, for argparse."""
    number = int(text)
    if not 0 <= number < 2**32:
        raise argparse.ArgumentTypeError(f"{number} is not a seed; use 0 to {2**32 - 1}")
    return number


def sampling_changes(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        name: getattr(arguments, name)
        for name in ("steps", "sampler", "guidance_scale", "batch_size")
    }


def read_prompts(path: str) -> list[str]:
    """The lines of a file that are not empty."""
    file = epath.Path(path)
    if not file.exists():
        raise UserError(f"There is no file of prompts {path}.")
    return [line.strip() for line in read_lines(file) if line.strip()]


def _file_name(prompt: str, seed: int, recipe: list[object]) -> str:
    """Readable, and different for everything that makes a different picture."""
    words = "_".join("".join(c if c.isalnum() else " " for c in prompt.lower()).split())[:60]
    text = json.dumps([prompt, seed, recipe], sort_keys=True)
    return f"{words or 'picture'}_{seed}_{hashlib.sha256(text.encode()).hexdigest()[:8]}.png"


def save_picture(image: Image.Image, path: epath.Path) -> None:
    """As a PNG file, whole or not at all."""
    temporary = path.parent / f"{path.name}.tmp"
    with temporary.open("wb") as file:
        image.save(file, "PNG")
    temporary.replace(path)
