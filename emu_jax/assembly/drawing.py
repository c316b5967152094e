"""Images drawn from prompts, or enlarged, into a folder of PNG files."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import jax
import numpy as np
from etils import epath
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from emu_jax.assembly.cascade import Cascade, conditioning
from emu_jax.assembly.generator import Generator, Size
from emu_jax.assembly.given import NOTHING, Given, digests
from emu_jax.assembly.hosting import ALONE, Host
from emu_jax.assembly.starting import StartImage, draw_from
from emu_jax.data.decode import open_image
from emu_jax.data.images import compose, upright
from emu_jax.data.textfile import read_lines
from emu_jax.errors import UserError
from emu_jax.evaluation.grids import grid
from emu_jax.evaluation.prompt_sets import PromptSet
from emu_jax.progress import watch
from emu_jax.text.weighting import plain

INDEX_FILE = "metadata.jsonl"
_SHOWN = 64  # images in the grid


def draw_prompts(
    checkpoint: str,
    prompts: PromptSet,
    out: str,
    *,
    seed: int = 0,
    per_prompt: int = 1,
    negative: str = "",
    width: int | None = None,
    height: int | None = None,
    shard: tuple[int, int] | None = None,
    start: StartImage | None = None,
    given: Given = NOTHING,
    host: Host = ALONE,
    **changes: Any,
) -> list[str]:
    """Draws every prompt ``per_prompt`` times, with the seeds ``seed``, ``seed`` + 1, ...; writes
    one PNG file per image, a table of them (:func:`write_index`) and ``grid.png``, of the first 64.
    Returns the names of the files.

    An image whose file exists is not drawn again: an interrupted call continues. A file's name
    depends on everything that its image depends on, and its metadata say what that is. ``width``
    and ``height`` are in pixels, by default those of training. ``start`` is an image to draw from,
    whose results fit into that size. ``given`` are images that condition the model beside the
    prompts. ``changes`` are those of :class:`Generator`.

    ``shard`` (i, n) draws every n-th image from the i-th on; by default n are the processes that
    are connected, and i is this one. The table has the images of all shards, and the first writes
    the grid. Images are not kept in memory.
    """
    if seed + per_prompt > 2**32:
        raise UserError(
            f"The seeds {seed} to {seed + per_prompt - 1} have more than 32 bits; lower --seed."
        )
    plain([*prompts.prompts, negative], changes.get("prompt_weighting", "none"))  # or a UserError
    generator = host.open(checkpoint, **changes)
    size = chosen_size(generator.side, height, width)
    index, shards = shard or (jax.process_index(), jax.process_count())
    folder = epath.Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    images = conditioning(generator, given, prompts, size, start)
    settings = [generator.recipe, size, negative, *([start.recipe] if start else [])]
    recipe = json.dumps(settings, sort_keys=True, default=str)
    recipes = [recipe] * len(prompts)
    if images:
        recipes = [f"{recipe}, {json.dumps(digests(images, i))}" for i in range(len(prompts))]
    made_by = provenance(checkpoint, generator, given)
    wanted = {  # file -> row of its prompt, seed; a repeated prompt has one file
        _file_name(prompt, own_seed, recipes[row]): (row, own_seed)
        for row, prompt in enumerate(prompts.prompts)
        for own_seed in range(seed, seed + per_prompt)
    }
    write_index(folder, prompts, wanted, index)
    names = list(wanted)[index::shards]
    existing = {path.name for path in folder.iterdir()}
    missing = [name for name in names if name not in existing]
    texts = [prompts.prompts[wanted[name][0]] for name in missing]
    seeds = [wanted[name][1] for name in missing]
    rows = [wanted[name][0] for name in missing]
    own = {name: [every[row] for row in rows] for name, every in images.items()}
    more: dict[str, Any] = dict(images=own, previews=host.previews)
    drawn = draw_from(generator, start, texts, seeds, negative, size, **more)
    drawn = watch(drawn, "images", len(missing), compiles="the sampler")
    for name, prompt, own_seed, image in zip(missing, texts, seeds, drawn, strict=True):
        about = {"prompt": prompt, "negative_prompt": negative, "seed": own_seed, **made_by}
        save_image(Image.fromarray(image), folder / name, **about)
    if index == 0:
        shown = names[:_SHOWN]
        images = [
            np.asarray(Image.open((folder / name).open("rb")).convert("RGB")) for name in shown
        ]
        captions = [prompts.prompts[wanted[name][0]] for name in shown]
        save_image(grid(np.stack(images), captions), folder / "grid.png")
    return names


def chosen_size(side: int, height: int | None, width: int | None) -> Size | None:
    """(height, width) of images of a model whose own are ``side`` x ``side``; None: its own."""
    size = (height or side, width or side)
    return None if size == (side, side) else size


def write_index(
    folder: epath.Path, prompts: PromptSet, files: Mapping[str, tuple[int, int]], shard: int = 0
) -> None:
    """Writes ``metadata.jsonl``, a line for each of ``files``: its ``file_name``, ``text`` (the
    prompt), ``seed`` and ``columns`` (of the prompt set). ``files`` are name -> (row, seed).

    Lines of other files that the table has are kept. It is written before the images are drawn, so
    that an interrupted call has it: a file that does not exist is not drawn yet.
    """
    path = folder / INDEX_FILE
    others = (
        [line for line in read_lines(path) if line and _name_in(line, path) not in files]
        if path.exists()
        else []
    )
    temporary = folder / f"{INDEX_FILE}.{shard}.tmp"
    with temporary.open("w") as file:
        file.writelines(f"{line}\n" for line in others)
        for name, (row, seed) in files.items():
            columns = {column: cells[row] for column, cells in prompts.columns.items()}
            entry = {"file_name": name, "text": prompts.prompts[row], "seed": seed}
            file.write(json.dumps({**entry, "columns": columns}) + "\n")
    temporary.replace(path)


def _name_in(line: str, path: epath.Path) -> str:
    try:
        return json.loads(line)["file_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} has a line that describes no image ({line[:40]!r}): remove the file."
        ) from error


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


def provenance(
    checkpoint: str, generator: Generator | Cascade, given: Given = NOTHING
) -> dict[str, Any]:
    """The entries of an image's metadata on its model and how it was sampled."""
    sampling, weighting = generator.config.sampling, generator.prompt_weighting
    about = {} if weighting == "none" else {"prompt_weighting": weighting}
    if getattr(sampling, "sag_scale", 0):
        about["sag_scale"] = sampling.sag_scale
    if generator.hint:
        control = generator.config.control
        about |= {"control": control.hint, "control_strength": control.strength}
    files = {"control_image": given.control_image, **given.files}
    return {**about, **{name: file for name, file in files.items() if file}} | {
        "model": checkpoint,
        "weights": generator.fingerprints["weights"],
        "sampler": sampling.sampler,
        "steps": sampling.steps,
        "spacing": sampling.spacing,
        "guidance_scale": sampling.guidance_scale,
        "software": f"emu_jax {version('emu_jax')}",
    }


def _file_name(prompt: str, seed: int, recipe: str) -> str:
    """Readable, and different for everything that makes a different image. ``recipe`` is JSON: of
    many images it is encoded once.
    """
    text = f"{json.dumps([prompt, seed])[:-1]}, {recipe}]"
    return f"{words_of(prompt)}_{seed}_{hashlib.sha256(text.encode()).hexdigest()[:8]}.png"


def words_of(prompt: str) -> str:
    """The beginning of a prompt as a part of a file's name."""
    words = "_".join("".join(c if c.isalnum() else " " for c in prompt.lower()).split())
    return words[:60] or "image"
