"""DeepFloyd IF's two pipelines: pixels from a text, or from a text and a smaller image.

The U-Net projects and pools T5's states itself and attends to their padding. The second half of its
output channels predicts how much noise a sampling step adds (``process.variance``). The pipelines
need that half: for a generator without it, export writes zeros, which are not used.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from emu_jax.checkpoint.export import Model
from emu_jax.checkpoint.huggingface import find_folder
from emu_jax.checkpoint.lazy import Lazy
from emu_jax.errors import UserError
from emu_jax.interop import schedulers, unet
from emu_jax.interop.components import (
    UNET,
    Imported,
    Parts,
    as_it_came,
    denoiser_of,
    export_text_encoder,
    import_denoiser,
    import_text_encoder,
    prepare_denoiser,
)
from emu_jax.interop.configs import square
from emu_jax.interop.files import INDEX, SCHEDULER, write_json

BASE, SUPER = "IFPipeline", "IFSuperResolutionPipeline"
_NOISING = "image_noising_scheduler"
_CHANNELS = 3
_TEXT = dict(kind="t5", length=77, null="empty", padding="attended", lowercase=True)
_TEXT_DEFAULTS = dict(length=77, null="empty", padding="masked", lowercase=False)
# Defaults of the pipelines, which are in no file: stage II enlarges 64 pixels to 256 and gets them
# at noise_level 250.
_SAMPLING = {
    BASE: dict(steps=100, guidance_scale=7.0),
    SUPER: dict(steps=50, guidance_scale=4.0),
}
_LOW = dict(factor=4, level=0.251, crop=0, align_corners=True)
_LAST = ("denoiser/conv_out/kernel", "denoiser/conv_out/bias")


# In ----------------------------------------------------------------------------------------------


def import_pixels(
    source: Parts, index: Mapping[str, Any], out: Path, drop_variance: bool
) -> Imported:
    """The generator; its text encoder is written to a folder in ``out``.

    ``drop_variance``: omits the half of the last convolution that predicts a variance.
    """
    kind = index["_class_name"]
    for name in ("text_encoder", "tokenizer"):
        if not (index.get(name) or [None])[0]:
            raise UserError(
                f"{source.where()} has no {name}: put that of stage I beside its unet, and its "
                f"line into {INDEX}."
            )
    public = source.settings(UNET.folder)
    _require_structure(kind, unet.DEFAULTS | public, source)
    denoiser = import_denoiser(source, UNET, UNET.folder)
    noise = source.settings("scheduler", SCHEDULER)
    process, sampling = schedulers.pixels(noise)
    files, low = dict(denoiser.source, scheduler=noise), dict(factor=0)
    if kind == SUPER:
        files[_NOISING] = source.settings(_NOISING, SCHEDULER)
        low = dict(_LOW, schedule=schedulers.steps_of_noise(files[_NOISING]))
    params = denoiser.params
    if drop_variance:
        params, process = _without_variance(params), dict(process, variance="fixed")

    import_text_encoder(source, "text_encoder", out)
    place = str((out / "text_encoder").absolute())
    sections = dict(
        codec=dict(kind="identity"),
        text=dict(t5=dict(_TEXT, path=place, dtype="float32")),
        conditioner=dict(width=0, combine="tokens", size_features=0),
        denoiser=denoiser.sections["denoiser"],
        low_resolution=low,
        process=process,
        sampling=dict(sampling, **_SAMPLING[kind]),
        image_size=square(public),
    )
    return Imported(sections, params, files)


def _require_structure(kind: str, public: Mapping[str, Any], source: Parts) -> None:
    """Raises a UserError if the U-Net has other inputs or outputs than the pipeline."""
    enlarges = kind == SUPER
    wanted = dict(
        in_channels=2 * _CHANNELS if enlarges else _CHANNELS,
        out_channels=2 * _CHANNELS,
        class_embed_type="timestep" if enlarges else None,
    )
    width = "encoder_hid_dim" if public["encoder_hid_dim"] else "cross_attention_dim"
    wanted[width] = source.settings("text_encoder").get("d_model")
    for key, value in wanted.items():
        if public[key] != value:
            raise UserError(
                f"{source.where(UNET.folder)} has {key} = {public[key]!r}, where this {kind} "
                f"needs {value!r}."
            )


def _without_variance(params: Lazy) -> Lazy:
    """Keeps only the first half of the last convolution's output channels."""
    shapes = dict(params.shapes)
    for path in _LAST:
        *rest, channels = shapes[path].shape
        shapes[path] = jax.ShapeDtypeStruct((*rest, channels // 2), shapes[path].dtype)
    return Lazy(
        shapes,
        lambda path: (
            np.ascontiguousarray(params[path][..., : shapes[path].shape[-1]])
            if path in _LAST
            else params[path]
        ),
    )


# Out ---------------------------------------------------------------------------------------------


def pipeline_of(config: Mapping[str, Any]) -> str:
    """The pipeline with the conditioning of a pixel generator.

    Raises:
      UserError: there is none.
    """
    text = [
        {key: ({**_TEXT_DEFAULTS, "kind": name} | options).get(key) for key in _TEXT}
        for name, options in config["text"].items()
    ]
    joined, low = config["conditioner"], config.get("low_resolution") or {}
    enlarges = bool(low.get("factor"))
    alike = not enlarges or (low.get("schedule") and low.get("align_corners"))
    if text != [_TEXT] or joined.get("width") or joined["size_features"] or not alike:
        raise UserError(
            f"Public pixel pipelines ({BASE}, {SUPER}) are conditioned on 77 states of T5, with "
            "texts in lower case and padding attended to, without projections and sizes, and on an "
            "image that is enlarged with align_corners and noised by discrete steps "
            "(low_resolution.schedule); this generator is conditioned differently, so export it "
            "without --format=diffusers."
        )
    if denoiser_of(config) is not UNET:
        raise UserError(f"The denoiser of {BASE} and {SUPER} is a unet.")
    return SUPER if enlarges else BASE


def export_pixels(model: Model, out: Path) -> str:
    """Writes a generator of pixels as a pipeline, whose class is returned. Everything that the
    public classes cannot say is refused before anything is written.
    """
    config, kind = model.config, pipeline_of(model.config)
    own = schedulers.pixels_config(config["process"], config["sampling"])
    noise = {
        "scheduler": as_it_came(model, "scheduler", own, schedulers.pixels, schedulers.pixels(own))
    }
    if kind == SUPER:
        steps = config["low_resolution"]["schedule"]
        meaning = schedulers.steps_of_noise
        own = schedulers.steps_config(steps)
        noise[_NOISING] = as_it_came(model, _NOISING, own, meaning, steps)
    if config["process"].get("variance", "fixed") == "fixed":
        model = replace(model, params=_with_variance(model.params))
    denoiser = prepare_denoiser(model, config["data"]["image_size"], config["conditioner"])

    ((_, options),) = config["text"].items()
    export_text_encoder(find_folder(options["path"]), "text_encoder", out)
    denoiser.write(out / UNET.folder)
    for name, content in noise.items():
        write_json(out / name / SCHEDULER, content)
    write_json(out / INDEX, _index(kind, noise))
    return kind


def _with_variance(params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The last convolution says zeros after its channels."""
    whole = dict(params)
    for path in _LAST:
        whole[path] = np.concatenate([params[path], np.zeros_like(params[path])], axis=-1)
    return whole


def _index(kind: str, noise: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """model_index.json: the class of each part."""
    left_out = ("safety_checker", "feature_extractor", "watermarker")
    return {
        "_class_name": kind,
        UNET.folder: ["diffusers", unet.CLASS],
        **{name: ["diffusers", content["_class_name"]] for name, content in noise.items()},
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        **{name: [None, None] for name in left_out},
        "requires_safety_checker": False,
    }
