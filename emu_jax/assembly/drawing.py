"""Images drawn from prompts, or enlarged, into a folder of PNG files."""

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from etils import epath
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from emu_jax.assembly.cascade import Cascade, open_generator
from emu_jax.assembly.generator import Generator
from emu_jax.data.decode import open_image
from emu_jax.data.images import compose, upright
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
    width: int | None = None,
    height: int | None = None,
    **changes: Any,
) -> list[epath.Path]:
    """Draws every prompt ``per_prompt`` times, with the seeds ``seed``, ``seed`` + 1, ...; writes
    one PNG file per image and ``grid.png``. Returns the files of the images.

    An image whose file exists is not drawn again: an interrupted call continues. A file's name
    depends on everything that its image depends on, and its metadata say what that is. ``width``
    and ``height`` are in pixels, by default those of training. ``changes`` are those of
    :class:`Generator`.
    """
    if seed + per_prompt > 2**32:
        raise UserError(
            f"The seeds {seed} to {seed + per_prompt - 1} have more than 32 bits; lower --seed."
        )
    generator = open_generator(checkpoint, **changes)
    side = generator.side
    size = (height or side, width or side)
    size = None if size == (side, side) else size
    wanted = [(prompt, seed + i) for prompt in prompts for i in range(per_prompt)]
    folder = epath.Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    recipe, made_by = [generator.recipe, size, negative], _provenance(checkpoint, generator)
    paths = [folder / _file_name(prompt, seed, recipe) for prompt, seed in wanted]
    missing = [i for i, path in enumerate(paths) if not path.exists()]
    drawn = generator.draw_each(
        [wanted[i][0] for i in missing], [wanted[i][1] for i in missing], negative, size=size
    )
    drawn = watch(drawn, "images", len(missing), compiles="the sampler")
    for i, image in zip(missing, drawn, strict=True):
        prompt, own_seed = wanted[i]
        about = {"prompt": prompt, "negative_prompt": negative, "seed": own_seed, **made_by}
        save_image(Image.fromarray(image), paths[i], **about)
    images = [np.asarray(Image.open(path.open("rb")).convert("RGB")) for path in paths]
    captions = [prompt for prompt, _ in wanted]
    save_image(grid(np.stack(images), captions), folder / "grid.png")
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


def save_image(image: Image.Image, path: epath.Path, **about: Any) -> None:
    """Writes a PNG file, whole or not at all; ``about`` are entries of its metadata."""
    metadata = PngInfo()
    for name, value in about.items():
        metadata.add_text(name, str(value).encode(errors="replace").decode())
    temporary = path.parent / f"{path.name}.tmp"
    with temporary.open("wb") as file:
        image.save(file, "PNG", pnginfo=metadata)
    temporary.replace(path)


def _provenance(checkpoint: str, generator: Generator | Cascade) -> dict[str, Any]:
    """The entries of an image's metadata on its model and how it was sampled."""
    sampling = generator.config.sampling
    return {
        "model": checkpoint,
        "weights": generator.fingerprints["weights"],
        "sampler": sampling.sampler,
        "steps": sampling.steps,
        "guidance_scale": sampling.guidance_scale,
        "software": f"emu_jax {version('emu_jax')}",
    }


def _file_name(prompt: str, seed: int, recipe: list[object]) -> str:
    """Readable, and different for everything that makes a different image."""
    words = "_".join("".join(c if c.isalnum() else " " for c in prompt.lower()).split())[:60]
    text = json.dumps([prompt, seed, recipe], sort_keys=True, default=str)
    return f"{words or 'image'}_{seed}_{hashlib.sha256(text.encode()).hexdigest()[:8]}.png"
