"""Images drawn from prompts, or enlarged, into a folder of PNG files."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from emu_jax.assembly.cascade import open_generator
from emu_jax.assembly.generator import Generator
from emu_jax.data.decode import open_image
from emu_jax.data.images import compose, upright
from emu_jax.data.textfile import read_lines
from emu_jax.errors import UserError
from emu_jax.evaluation.grids import grid
from emu_jax.progress import watch


def draw_prompts(
    checkpoint: str,
    prompts: Sequence[str],
    out: str,
    *,
    seed: int = 0,
    per_prompt: int = 1,
    negative: str = "",
    **changes: Any,
) -> list[epath.Path]:
    """Draws every prompt ``per_prompt`` times, with the seeds ``seed``, ``seed`` + 1, ...; writes
    one PNG file per image and ``grid.png``. Returns the files of the images.

    An image whose file exists is not drawn again: an interrupted call continues. ``changes`` are
    those of :class:`Generator`.
    """
    generator = open_generator(checkpoint, **changes)
    wanted = [(prompt, seed + i) for prompt in prompts for i in range(per_prompt)]
    folder = epath.Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    recipe = [generator.fingerprints, generator.config.sampling.to_dict(), negative]
    paths = [folder / _file_name(prompt, seed, recipe) for prompt, seed in wanted]
    missing = [i for i, path in enumerate(paths) if not path.exists()]
    drawn = generator.draw_each(
        [wanted[i][0] for i in missing], [wanted[i][1] for i in missing], negative
    )
    drawn = watch(drawn, "images", len(missing), compiles="the sampler")
    for i, image in zip(missing, drawn, strict=True):
        save_image(Image.fromarray(image), paths[i])
    images = [np.asarray(Image.open(path.open("rb")).convert("RGB")) for path in paths]
    captions = [prompt for prompt, _ in wanted]
    save_image(grid(np.stack(images), captions, scale=2), folder / "grid.png")
    return paths


def upsample_images(
    checkpoint: str,
    files: Sequence[epath.Path],
    out: str,
    *,
    prompt: str = "",
    seed: int = 0,
    negative: str = "",
    **changes: Any,
) -> None:
    """Enlarges every file with a super-resolution checkpoint: ``NAME_x2.png``, and a grid of it
    beside the bicubic enlargement.
    """
    generator = Generator(checkpoint, **{**changes, "batch_size": 1})
    if not generator.input_kind:
        raise UserError(
            f"{checkpoint} draws images and enlarges none: use the run of a super-resolution "
            "config, e.g. configs/pixel_diffusion.py:part=super."
        )
    folder = epath.Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    background = tuple(generator.config.data.background)
    for file in watch(files, "images", len(files)):
        try:
            image = compose(upright(open_image(file.read_bytes())), background)
        except UserError as error:
            raise UserError(f"{file}: {error}.") from error
        (large,) = generator.draw_each([prompt], [seed], negative, low=[np.asarray(image)])
        name = f"{file.stem}_x{generator.factor}"
        save_image(Image.fromarray(large), folder / f"{name}.png")
        before = np.asarray(image.resize(large.shape[1::-1], Image.Resampling.BICUBIC))
        both = grid(np.stack([before, large]), ["bicubic", "upsampled"], columns=2)
        save_image(both, folder / f"{name}_before_and_after.png")


def read_prompts(path: str) -> list[str]:
    """The lines of a file that are not empty.

    Raises:
      UserError: no such file, or not UTF-8.
    """
    file = epath.Path(path)
    if not file.exists():
        raise UserError(f"There is no file of prompts {path}.")
    return [line.strip() for line in read_lines(file) if line.strip()]


def save_image(image: Image.Image, path: epath.Path) -> None:
    """Writes a PNG file, whole or not at all."""
    temporary = path.parent / f"{path.name}.tmp"
    with temporary.open("wb") as file:
        image.save(file, "PNG")
    temporary.replace(path)


def _file_name(prompt: str, seed: int, recipe: list[object]) -> str:
    """Readable, and different for everything that makes a different image."""
    words = "_".join("".join(c if c.isalnum() else " " for c in prompt.lower()).split())[:60]
    text = json.dumps([prompt, seed, recipe], sort_keys=True)
    return f"{words or 'image'}_{seed}_{hashlib.sha256(text.encode()).hexdigest()[:8]}.png"
