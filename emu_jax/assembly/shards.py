"""Images drawn into WebDataset shards: tar files of images, prompts and records.

All images of a set are numbered: image i is of prompt i // per_prompt, and its random key is the
seed plus i, so no two images share their noise, and an image is the same however the work is
divided. File j has the images j n to (j + 1) n - 1. The processes take turns at the files. A file
is written under another name and renamed when it is complete, so an interrupted call loses at most
one file per process, and the same call continues it.

An image 000000012 is three members of its tar file: ``000000012.png``, ``000000012.txt`` (the
prompt) and ``000000012.json`` (prompt, seed and the columns of its prompt).
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from emu_jax.assembly.cascade import open_generator
from emu_jax.assembly.drawing import chosen_size, provenance
from emu_jax.assembly.starting import StartImage, draw_from
from emu_jax.errors import UserError
from emu_jax.evaluation.prompt_sets import PromptSet
from emu_jax.progress import watch
from emu_jax.text.weighting import plain

_SEEDS = 2**32


def draw_shards(
    checkpoint: str,
    prompts: PromptSet,
    out: str,
    *,
    shard_size: int = 1000,
    seed: int = 0,
    per_prompt: int = 1,
    negative: str = "",
    width: int | None = None,
    height: int | None = None,
    shard: tuple[int, int] | None = None,
    start: StartImage | None = None,
    **changes: Any,
) -> list[str]:
    """Draws every prompt ``per_prompt`` times into tar files of ``shard_size`` images each; returns
    the names of the files of this process.

    A name depends on everything that an image depends on; a file that exists is not drawn again.
    ``shard`` and ``changes`` are as in :func:`emu_jax.assembly.drawing.draw_prompts`.
    """
    number = len(prompts.prompts) * per_prompt
    if seed + number > _SEEDS:
        raise UserError(
            f"The seeds {seed} to {seed + number - 1} have more than 32 bits; lower --seed."
        )
    plain([*prompts.prompts, negative], changes.get("prompt_weighting", "none"))  # or a UserError
    generator = open_generator(checkpoint, **changes)
    size = chosen_size(generator.side, height, width)
    index, count = shard or (jax.process_index(), jax.process_count())
    folder = epath.Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    settings = [generator.recipe, size, negative, seed, per_prompt, shard_size]
    settings += [start.recipe] if start else []
    text = json.dumps([settings, prompts.prompts], sort_keys=True, default=str)
    head = hashlib.sha256(text.encode()).hexdigest()[:8]
    files = -(-number // shard_size)
    names = [f"{head}-{i:06d}.tar" for i in range(files)][index::count]
    if index == 0:
        about = {"images": number, "files": files, "shard_size": shard_size, "seed": seed}
        about |= provenance(checkpoint, generator) | {"negative_prompt": negative}
        (folder / f"{head}.json").write_text(json.dumps(about, indent=1, default=str) + "\n")
    existing = {path.name for path in folder.iterdir()}
    missing = [i for i in range(index, files, count) if f"{head}-{i:06d}.tar" not in existing]
    parts = [range(i * shard_size, min(number, (i + 1) * shard_size)) for i in missing]
    rows = [row for part in parts for row in part]
    texts = [prompts.prompts[row // per_prompt] for row in rows]
    seeds = [seed + row for row in rows]
    drawn = draw_from(generator, start, texts, seeds, negative, size)
    drawn = watch(drawn, "images", len(rows), compiles="the sampler")
    for i, part in zip(missing, parts, strict=True):
        members = _members(prompts, part, per_prompt, seed, drawn)
        _write(folder / f"{head}-{i:06d}.tar", members)
    return names


def _members(
    prompts: PromptSet,
    rows: range,
    per_prompt: int,
    seed: int,
    drawn: Iterator[UInt8[np.ndarray, "_ _ 3"]],
) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the members of one file; it takes its images from ``drawn``."""
    for row in rows:
        prompt = row // per_prompt
        text = prompts.prompts[prompt]
        columns = {name: cells[prompt] for name, cells in prompts.columns.items()}
        record = {"text": text, "seed": seed + row, "columns": columns}
        png = io.BytesIO()
        Image.fromarray(next(drawn)).save(png, "PNG")
        yield f"{row:09d}.png", png.getvalue()
        yield f"{row:09d}.txt", text.encode(errors="replace")
        yield f"{row:09d}.json", json.dumps(record).encode()


def _write(path: epath.Path, members: Iterator[tuple[str, bytes]]) -> None:
    """A tar file, whole or not at all. Its bytes depend on its members only."""
    temporary = path.parent / f"{path.name}.tmp"
    with temporary.open("wb") as file, tarfile.open(fileobj=file, mode="w|") as archive:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    temporary.replace(path)
