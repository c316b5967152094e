"""Photographs drawn anew: in a described style, or behind their subject."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from emu_jax.assembly.cascade import conditioning
from emu_jax.assembly.drawing import provenance, save_image, words_of
from emu_jax.assembly.generator import Size
from emu_jax.assembly.given import NOTHING, Given
from emu_jax.assembly.hosting import ALONE, Host
from emu_jax.assembly.starting import StartImage, draw_from, read_image, to_pixels
from emu_jax.assembly.subject import Subject
from emu_jax.errors import UserError
from emu_jax.evaluation.grids import grid
from emu_jax.evaluation.prompt_sets import PromptSet
from emu_jax.progress import watch
from emu_jax.text.weighting import plain

_SHOWN = 256  # pixels along the longer side in a sheet


def edit_images(
    checkpoint: str,
    files: Sequence[str],
    prompt: str,
    out: str,
    *,
    strength: float,
    subject: Subject | None = None,
    feather: float | None = None,
    margin: float = 0.0,
    seed: int = 0,
    per_prompt: int = 1,
    negative: str = "",
    size: Size | None = None,
    given: Given = NOTHING,
    host: Host = ALONE,
    **changes: Any,
) -> list[str]:
    """Draws every file ``per_prompt`` times from ``prompt``; its ``subject`` stays, if given, with
    a ``margin`` around the image.

    Writes ``NAME_PROMPT_SEED.png``, and ``NAME_PROMPT.png``: the file and its images side by side.
    Returns the names of the images. ``given`` has the file of a ControlNet's hint, by default that
    of each file itself; ``changes`` are those of :class:`Generator`.

    Raises:
      UserError: two files have the same name.
    """
    plain([prompt, negative], changes.get("prompt_weighting", "none"))  # or a UserError
    stems = [epath.Path(file).stem for file in files]
    for file, stem in zip(files, stems, strict=True):
        if stems.count(stem) > 1:
            raise UserError(
                f"Several files are called {stem}, such as {file}, and their images would have one "
                "name: rename them, or use a call for each."
            )
    sources = [_source(file, strength, subject, feather) for file in files]
    sources = [source.widened(margin) if margin else source for source in sources]
    changes["batch_size"] = min(changes.get("batch_size", per_prompt), per_prompt)
    generator = host.open(checkpoint, **changes)
    made_by = provenance(checkpoint, generator, given) | {"strength": strength}
    folder = epath.Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    names: list[str] = []
    seeds = [seed + i for i in range(per_prompt)]
    prompts = PromptSet((prompt,) * per_prompt)
    every = zip(files, stems, sources, strict=True)
    for file, name, source in watch(every, "images", len(files)):
        hints = conditioning(generator, given, prompts, size, source)
        sampled = (generator, source, prompts.prompts, seeds, negative, size)
        drawn = draw_from(*sampled, images=hints, previews=host.previews)
        stem, images = f"{name}_{words_of(prompt)}", []
        for own, image in zip(seeds, drawn, strict=True):
            about = {"prompt": prompt, "negative_prompt": negative, "seed": own, "from": file}
            save_image(Image.fromarray(image), folder / f"{stem}_{own}.png", **about, **made_by)
            names.append(f"{stem}_{own}.png")
            images.append(image)
        save_image(sheet([source.image, *images]), folder / f"{stem}.png")
    return names


def sheet(images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> Image.Image:
    """Images of one aspect ratio side by side, small enough to look at."""
    height, width = images[0].shape[:2]
    scale = _SHOWN / max(height, width)
    shape = (max(1, round(width * scale)), max(1, round(height * scale)))
    shown = [Image.fromarray(x).resize(shape, Image.Resampling.LANCZOS) for x in images]
    return grid(np.stack([np.asarray(x) for x in shown]), columns=len(shown))


def _source(
    file: str, strength: float, subject: Subject | None, feather: float | None
) -> StartImage:
    image = read_image(epath.Path(file))
    keep = subject.of(image, file) if subject else None
    return StartImage(to_pixels(image), strength, keep, feather)
