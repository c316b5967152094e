"""``emu-jax upsample PICTURE ...``: pictures enlarged by a super-resolution checkpoint.

A text says what they show (``--prompt``), which helps. Pictures are written beside each other,
``NAME_x2.png``, with a grid of before and after.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image
from tqdm import tqdm

from emu_jax.assembly.generator import Generator
from emu_jax.cli.sample import add_sampling_arguments, sampling_changes, save_picture
from emu_jax.data.decode import open_image
from emu_jax.data.images import compose, upright
from emu_jax.errors import UserError
from emu_jax.evaluation.grids import grid


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="emu-jax upsample", description=__doc__)
    parser.add_argument("pictures", nargs="+", help="files")
    parser.add_argument("--checkpoint", required=True, help="a run, an exported model")
    parser.add_argument("--prompt", default="", help="what the pictures show")
    parser.add_argument("--negative", default="", help="what to lead away from")
    parser.add_argument("--out", default="runs/upsampled", help="folder for the pictures")
    add_sampling_arguments(parser)
    arguments = parser.parse_args(argv)
    files = [epath.Path(path) for path in arguments.pictures]
    for file in files:
        if not file.is_file():
            raise UserError(f"There is no picture {file}.")
    changes: dict[str, Any] = {**sampling_changes(arguments), "batch_size": 1}
    generator = Generator(arguments.checkpoint, **changes)
    if not generator.input_kind:
        raise UserError(
            f"{arguments.checkpoint} draws pictures and enlarges none: give a run of a "
            "super-resolution config, e.g. configs/pixel_diffusion.py:part=super."
        )
    folder = epath.Path(arguments.out)
    folder.mkdir(parents=True, exist_ok=True)
    background = tuple(generator.config.data.background)
    for file in tqdm(files, desc="pictures"):
        try:
            picture = compose(upright(open_image(file.read_bytes())), background)
        except UserError as error:
            raise UserError(f"{file}: {error}.") from error
        low = np.asarray(picture)
        (image,) = generator.draw_each(
            [arguments.prompt], [arguments.seed], arguments.negative, low=[low]
        )
        name = f"{file.stem}_x{generator.factor}"
        save_picture(Image.fromarray(image), folder / f"{name}.png")
        before = np.asarray(picture.resize(image.shape[1::-1], Image.Resampling.BICUBIC))
        both = grid(np.stack([before, image]), ["bicubic", "upsampled"], columns=2)
        save_picture(both, folder / f"{name}_before_and_after.png")
    print(f"{len(files)} pictures in {folder}")
    return 0
