"""``emu-jax reconstruct A B ...``: autoencoders measured by what comes back of held-out pictures.

Each picture goes there and back by the mean of its latents, or by their nearest codes. One HTML
file with the pictures side by side, the figures as JSON and Markdown beside it. The judge's
features give the Frechet distance between pictures and reconstructions (``--judge=""``: none).
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt8
from ml_collections import ConfigDict
from tqdm import tqdm

from emu_jax.checkpoint.export import load_model
from emu_jax.checkpoint.foreign import blaming, require_fit
from emu_jax.cli import parts
from emu_jax.cli.judge import SHIPPED, Judge, part
from emu_jax.cli.sample import positive
from emu_jax.data.images import prepare
from emu_jax.data.source import DEFAULT_DATA_DIR
from emu_jax.errors import UserError
from emu_jax.evaluation.comparison import markdown
from emu_jax.evaluation.metrics import Interval, frechet_to, mean_interval, statistic_interval
from emu_jax.evaluation.reconstruction import psnr, ssim
from emu_jax.evaluation.report import Picture, Pictures, Table, write_report
from emu_jax.nn.functional import Params
from emu_jax.tasks.base import to_pixels, to_unit_range

HELD_OUT = ("emoji/openmoji:part == held_out", "emoji/fluent:part == held_out")
_SHOWN = 24
_NOTE = """Means over pictures with 95 % intervals by bootstrap. Frechet: between the judge's
features of pictures and of reconstructions."""

Images = UInt8[np.ndarray, "n h w 3"]


class _Found(NamedTuple):
    facts: dict[str, Any]
    drawn: Images
    figures: dict[str, Interval]


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="emu-jax reconstruct", description=__doc__)
    parser.add_argument("models", nargs="+", help="runs, exported models or builtin:NAME")
    parser.add_argument(
        "--pictures",
        action="append",
        help=f"DATASET or DATASET:CONDITION, may be given again; default {' and '.join(HELD_OUT)}",
    )
    parser.add_argument("--judge", default=SHIPPED, help=f"default {SHIPPED}; empty: none")
    parser.add_argument("--data_dir", default=DEFAULT_DATA_DIR)
    parser.add_argument("--batch_size", type=positive, default=16)
    parser.add_argument("--out", default="runs/reconstructions", help="folder for the report")
    arguments = parser.parse_args(argv)
    judge = Judge(arguments.judge) if arguments.judge else None
    sets = arguments.pictures or HELD_OUT

    found: dict[str, _Found] = {}
    originals = None
    for name in tqdm(arguments.models, desc="autoencoders"):
        reconstruct, side, background, facts = _autoencoder(name, arguments.batch_size)
        pictures = _read(sets, arguments.data_dir, side, background)
        if originals is not None and originals.shape != pictures.shape:
            raise UserError(
                f"{name} takes pictures of {side} pixels and {arguments.models[0]} others: only "
                "autoencoders of one size can be compared."
            )
        originals = pictures
        drawn = reconstruct(pictures)
        found[name] = _Found(facts, drawn, _figures(pictures, drawn, judge))
    assert originals is not None, "argparse asks for at least one model"

    folder = epath.Path(arguments.out)
    columns, rows = _table(found)
    index = write_report(
        folder / "index.html",
        "Reconstructions",
        [Table("Figures", columns, rows, note=_NOTE), _pictures(originals, found)],
        subtitle=f"{len(originals)} pictures: {', '.join(sets)}",
    )
    table = markdown(columns, rows)
    (folder / "figures.md").write_text(table)
    record = {
        name: {**one.facts, "figures": {k: v._asdict() for k, v in one.figures.items()}}
        for name, one in found.items()
    }
    (folder / "reconstruct.json").write_text(json.dumps(record, indent=1))
    print(f"{table}report: {index}")
    return 0


def _figures(pictures: Images, drawn: Images, judge: Judge | None) -> dict[str, Interval]:
    figures = {
        "psnr": mean_interval(psnr(pictures, drawn)),
        "ssim": mean_interval(ssim(pictures, drawn)),
    }
    if judge:
        ours, real = (np.asarray(judge.see(list(x)).features) for x in (drawn, pictures))
        figures["frechet"] = statistic_interval(frechet_to(real), ours, resamples=30)
    return figures


def _table(found: Mapping[str, _Found]) -> tuple[list[str], list[list[Any]]]:
    keys = list(next(iter(found.values())).figures)
    rows = [
        [
            name,
            " x ".join(map(str, one.facts["latents"])),
            one.facts["codes"] or "none",
            one.facts["fourier_bands"],
            one.facts["parameters"],
            *(f"{one.figures[key]:{'.2f' if key == 'psnr' else '.3f'}}" for key in keys),
        ]
        for name, one in found.items()
    ]
    return ["", "latents", "codes", "Fourier bands", "parameters", *keys], rows


def _pictures(originals: Images, found: Mapping[str, _Found]) -> Pictures:
    """Some of them, evenly spread."""
    chosen = range(0, len(originals), max(1, len(originals) // _SHOWN))[:_SHOWN]
    rows = [
        ("", [Picture(originals[i]), *(Picture(one.drawn[i]) for one in found.values())])
        for i in chosen
    ]
    return Pictures("Pictures", ["original", *found], rows, width=128)


@blaming("name")
def _autoencoder(
    name: str, batch_size: int
) -> tuple[Callable[[Images], Images], int, tuple[int, int, int], dict[str, Any]]:
    """(pictures -> reconstructions, its side in pixels, background, what it is)."""
    model = load_model(parts.locate(name), dtype=np.float32)
    config = ConfigDict(model.config)
    if config.get("task") != "autoencoding":
        raise UserError(f"{name} is no autoencoder: its task is {config.get('task')}.")
    config.loss.perceptual_weight = 0.0  # no loss is taken, so its weights are not opened
    task = parts.make_autoencoding(config, parts.ONE_DEVICE)
    own = {k: v for k, v in model.params.items() if k.startswith("autoencoder/")}
    wanted = {f"autoencoder/{path}": x for path, x in task.autoencoder.shapes().items()}
    require_fit(own, wanted, name)
    # What is not a network's is the task's state: a codebook, say.
    rest = {k: v for k, v in model.params.items() if k.startswith(("codebook/", "latent/"))}
    params, state = jax.tree.map(jax.numpy.asarray, (own, rest))

    @jax.jit
    def there_and_back(params: Params, state: Params, images: jax.Array) -> jax.Array:
        return to_pixels(task.reconstruct(params, to_unit_range(images), state))

    def reconstruct(images: Images) -> Images:
        rows = []
        for start in range(0, len(images), batch_size):
            index = np.minimum(np.arange(start, start + batch_size), len(images) - 1)
            rows.append(np.asarray(there_and_back(params, state, images[index])))
        return np.concatenate(rows)[: len(images)]

    side = config.data.image_size
    small = side // parts.autoencoder_factor(config)
    facts = {
        "step": model.meta.get("step"),
        "weights": model.fingerprint,
        "latents": [small, small, config.latent_channels],
        "codes": parts.quantized(config),
        "fourier_bands": config.autoencoder.fourier_bands,
        "parameters": sum(value.size for value in own.values()),
    }
    return reconstruct, side, tuple(config.data.background), facts


def _read(sets: Sequence[str], data_dir: str, side: int, background: Any) -> Images:
    chosen = [part(text, data_dir) for text in sets]
    return np.stack(
        [
            prepare(one.source.read(record), (side, side), background=background)[0]
            for one in chosen
            for record in one.records()
        ]
    )
