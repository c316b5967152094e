"""A contact sheet for a person's eyes: numbered images of several models, who does not see whose.

A parser and a judge are networks with errors of their own. A person who looks at some of the
images, without knowing which model drew them, says whether their figures can be believed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from emu_jax.errors import UserError
from emu_jax.evaluation.grids import grid

COLUMNS = 10


def blind_sheet(
    images: Mapping[str, Sequence[UInt8[np.ndarray, "h w 3"]]],
    prompts: Sequence[str],
    count: int,
    seed: int,
    repeats: int = 1,
) -> tuple[Image.Image, list[dict[str, Any]]]:
    """(sheet, key) of ``count`` images in random order, from every model as many as from any other
    (or one more), of prompts at equal steps. ``images`` are of each model, in the order of
    ``prompts``, of which ``repeats`` in a row are the same. The key has the number on the sheet,
    the model, the prompt and the index of each image.

    Raises:
      UserError: ``count`` is more than a model has images.
    """
    if count > len(prompts):
        raise UserError(
            f"A sheet of {count} images needs as many images of a model, not {len(prompts)}: lower "
            "--blind, or add prompts or --images_per_prompt."
        )
    random = np.random.default_rng(seed)
    models, distinct = list(images), len(prompts) // repeats
    drawers = random.permutation(np.arange(count) % len(models))
    # Beyond one image of each prompt comes the next image of the same prompts.
    rounds, places = np.divmod(np.arange(count), distinct)
    if count < distinct:
        places = np.arange(count) * distinct // count
    rows = random.permutation(places * repeats + rounds)
    chosen = [(models[drawer], int(row)) for drawer, row in zip(drawers, rows, strict=True)]
    key = [
        {"number": number, "model": model, "prompt": prompts[row], "image": row}
        for number, (model, row) in enumerate(chosen, start=1)
    ]
    captions = [f"{one['number']}. {one['prompt']}" for one in key]
    shown = np.stack([images[model][row] for model, row in chosen])
    return grid(shown, captions, columns=min(COLUMNS, count)), key
