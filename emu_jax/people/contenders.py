"""Where the images of a comparison come from: models that draw them, and folders of images that any
other system made.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from emu_jax.data.contents import SUFFIXES, read_contents
from emu_jax.errors import UserError
from emu_jax.evaluation.comparison import short_names
from emu_jax.evaluation.prompt_sets import PromptSet
from emu_jax.people.images import Pixels
from emu_jax.people.making import Contender, Make, read_images


def contenders(
    names: Sequence[str], prompts: PromptSet, seed: int, changes: Mapping[str, Any]
) -> list[Contender]:
    """The models and folders called so. ``seed`` is that of the first prompt's noise, ``changes``
    are sampling settings: the images are those of ``emu-jax compare``.

    Raises:
      UserError: a name is given twice, or a folder does not have an image for every prompt.
    """
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise UserError(f"{twice[0]} is named twice; name every model once.")
    folders = {name: epath.Path(name).expanduser() for name in names if is_images(name)}
    labels = short_names(names)
    return [
        Contender(
            name,
            labels[name],
            read_images(files_of(folders[name], prompts))
            if name in folders
            else _drawn(name, prompts, seed, changes),
        )
        for name in names
    ]


def is_images(name: str) -> bool:
    """Whether a name is that of a folder of images, not of a run or an exported model."""
    folder = epath.Path(name).expanduser()
    if ":" in name or "+" in name or not folder.is_dir() or (folder / "checkpoints").exists():
        return False
    kinds = {os.path.splitext(file.name)[1].lower() for file in folder.iterdir()}
    return bool(kinds & {*SUFFIXES, ".jsonl", ".csv"}) and ".safetensors" not in kinds


def files_of(folder: epath.Path, prompts: PromptSet) -> list[epath.Path]:
    """The image of every prompt: the one whose caption it is, in a table or a sidecar file as in
    ``emu-jax data build``. Where no image has a caption: the images in the order of their names,
    with numbers in them by their value.

    Raises:
      UserError: a prompt has no image, or several.
    """
    captions = read_contents(folder).captions
    if any(captions.values()):
        of: dict[str, list[str]] = {}
        for name, texts in captions.items():
            for text in texts:
                of.setdefault(text, []).append(name)
        found = [of.get(" ".join(text.split()), []) for text in prompts.prompts]
        for text, names in zip(prompts.prompts, found, strict=True):
            if len(names) != 1:
                problem = f"{len(names)} images" if names else "no image"
                raise UserError(
                    f"{folder} has {problem} with the caption {text[:80]!r}: it needs one image "
                    "for every prompt."
                )
        return [folder / names[0] for names in found]
    names = sorted(captions, key=_numbers)
    if len(names) != len(prompts):
        raise UserError(
            f"{folder} has {len(names)} images for {len(prompts)} prompts: it needs one for each, "
            "in the order of their names, or captions that are the prompts."
        )
    return [folder / name for name in names]


def _drawn(name: str, prompts: PromptSet, seed: int, changes: Mapping[str, Any]) -> Make:
    def make(rows: Sequence[int]) -> Iterator[Pixels]:
        from emu_jax.assembly.cascade import open_generator
        from emu_jax.progress import watch

        generator = open_generator(name, **changes)
        texts = [prompts.prompts[row] for row in rows]
        drawn = generator.draw_each(texts, [seed + row for row in rows])
        yield from watch(drawn, name, len(rows), compiles="the sampler")

    return make


def _numbers(name: str) -> list[tuple[int, int, str]]:
    """Orders names so that 2.png comes before 10.png."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]
