"""A run's weights as a model folder of ours, in a public layout, or as an adapter file."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from emu_jax.assembly.adapters import make_lora
from emu_jax.assembly.models import adapts_text, controlled, locate, open_model
from emu_jax.checkpoint import text_adapters
from emu_jax.checkpoint.adapters import FILE, write_adapter
from emu_jax.checkpoint.export import Model, load_model, save_model
from emu_jax.checkpoint.foreign import described_by
from emu_jax.checkpoint.paths import absolute_paths, opened_paths
from emu_jax.checkpoint.safetensors_io import cast_floats
from emu_jax.errors import UserError
from emu_jax.interop import components, deepfloyd, pipelines, single_file
from emu_jax.interop.files import copy_encoder_folder, copy_small
from emu_jax.nn.control import PREFIX as CONTROL
from emu_jax.nn.stack import unstacked
from emu_jax.nn.text_adapter import PREFIX

# What an exported model says of its training.
_RECORDED = ("step", "seed", "frozen", "chosen", "source")


def export_model(
    checkpoint: str,
    out: str,
    *,
    format: str = "emu_jax",
    dtype: str = "",
    text_encoders: bool = True,
) -> str:
    """Writes the model at ``checkpoint`` into ``out``; returns one sentence about it.

    ``format`` is ``emu_jax`` or one of :data:`PUBLIC`. ``dtype`` of the weights: ``keep``, or a
    name; by default bfloat16, in public layouts unchanged. A folder of ours contains its codec and,
    unless ``text_encoders`` is False, its text encoders. Raises UserError for a model that the
    format cannot represent.
    """
    write = PUBLIC.get(format)
    name = dtype or ("keep" if write else "bfloat16")
    target = None if name == "keep" else name
    model = open_model(checkpoint, dtype=None)
    # A discriminator is of no use outside training. Layers are numbered, scanned or not.
    kept = unstacked(
        {path: x for path, x in model.params.items() if not path.startswith("discriminator/")}
    )
    if write:
        if adapts_text(model.config):
            raise UserError(
                f"{checkpoint} has adapters of its text encoders, which the layout {format} cannot "
                "represent: leave --format out, or write them alone with --adapter."
            )
        if controlled(model.config):
            raise UserError(
                f"{checkpoint} has a ControlNet, a model of its own in the layout {format}: "
                "write it with --adapter --format=diffusers, and export its base."
            )
        model = Model(kept, model.config, model.meta, model.fingerprint)
        with described_by(checkpoint):
            kind = write(model, Path(out).expanduser(), target)
        return f"{out}: {kind}, step {model.meta.get('step')}"
    # The data's place on the machine of the training is of no use to others.
    for place in ("data_dir", "cache_dir"):
        (model.config.get("data") or {}).pop(place, None)
    needed = _include_parts(model.config, out, text_encoders)
    absolute_paths(model.config)
    meta = {name: model.meta[name] for name in _RECORDED if name in model.meta}
    save_model(out, kept, model.config, meta, target)
    size = sum(value.size for value in kept.values())
    done = f"{out}: step {meta.get('step')}, {size:,} parameters as {name}"
    return f"{done}; it also needs {', '.join(needed)}" if needed else done


def _include_parts(config: dict[str, Any], out: str, text_encoders: bool) -> list[str]:
    """Copies the models that ``config`` names into folders of ``out`` and makes their paths
    relative; codecs keep their dtype. Returns what stays outside, as "KEY (PATH)".

    Weights that come with emu_jax are not copied, and models of the hub keep their name.
    """
    needed = []
    for key, section, name in opened_paths(config):
        path = section[name]
        if not path or path.startswith("builtin:"):
            continue
        part = key.split(".")[0]
        local = "://" not in out and Path(path.split("@")[0]).expanduser().is_dir()
        if part.endswith("codec") and local:
            export_model(path, f"{out}/{part}", dtype="keep")
            section[name] = part
        elif part == "text" and local and text_encoders:
            folder = f"text_encoder_{key.split('.')[1]}"
            copy = copy_small if section.get("kind") == "bert_tokens" else copy_encoder_folder
            copy(Path(path).expanduser(), Path(out).expanduser() / folder)
            section[name] = folder
        else:
            needed.append(f"{key} ({path})")
    return needed


def export_adapter(checkpoint: str, out: str, *, dtype: str = "", format: str = "") -> str:
    """Writes the adapter of the run at ``checkpoint``; returns one sentence about it. LoRA is
    written in the layout of diffusers (the default) or of kohya, text adapters as one file, a
    ControlNet as a model of ours (the default) or in the layout of diffusers."""
    model = load_model(locate(checkpoint))
    config = ConfigDict(model.config)
    if controlled(model.config):
        return _export_control(checkpoint, model, out, dtype, format)
    if adapts_text(config):
        return _export_text_adapter(checkpoint, model, out, dtype, format)
    lora = make_lora(config)
    if lora is None:
        raise UserError(f"{checkpoint} has no adapter: its config has lora.rank 0.")
    folders = {known.kind: known.folder for known in components.DENOISERS}
    # A kind without a public class gets the prefix of the most similar class.
    similar = "unet" if config.denoiser.kind == "efficient_unet" else "transformer"
    # The factors in a checkpoint are float32.
    name = "float32" if dtype == "keep" else dtype or "bfloat16"
    write_adapter(
        out,
        model.params,
        lora.alpha,
        format=format or "diffusers",
        prefix=folders.get(config.denoiser.kind, similar),
        dtype=jnp.dtype(name),
    )
    size = sum(value.size for value in model.params.values())
    return (
        f"{out}/{FILE}: step {model.meta.get('step')}, {size:,} parameters as {name}, of rank "
        f"{lora.rank} for {config.init_from}"
    )


def _export_control(checkpoint: str, model: Model, out: str, dtype: str, format: str) -> str:
    if format == "kohya":
        raise UserError("--format=kohya is for LoRA: leave it out, or use --format=diffusers.")
    if make_lora(ConfigDict(model.config)):
        raise UserError(
            f"{checkpoint} has a ControlNet and a LoRA, trained for each other: export the model "
            "that they make, without --adapter."
        )
    head = f"{CONTROL}/"
    own = unstacked({path: x for path, x in model.params.items() if path.startswith(head)})
    model = Model(own, model.config, model.meta, model.fingerprint)
    if format == "diffusers":
        with described_by(checkpoint):
            typed = _typed(model, None if dtype in ("", "keep") else dtype)
            components.prepare_control(typed).write(Path(out).expanduser())
    else:
        for place in ("data_dir", "cache_dir"):
            (model.config.get("data") or {}).pop(place, None)
        absolute_paths(model.config)
        meta = {name: model.meta[name] for name in _RECORDED if name in model.meta}
        target = None if dtype == "keep" else dtype or "bfloat16"
        save_model(out, own, model.config, meta, dtype=target)
    size = sum(x.size for x in own.values())
    return (
        f"{out}: the ControlNet of {checkpoint}, step {model.meta.get('step')}, {size:,} parameters"
    )


def _export_text_adapter(checkpoint: str, model: Model, out: str, dtype: str, format: str) -> str:
    if format:
        raise UserError(f"--format={format} is for LoRA; text adapters have one layout only.")
    name = "float32" if dtype in ("", "keep") else dtype
    file = out if out.endswith(".safetensors") else f"{out}/{text_adapters.FILE}"
    adapter = model.config["adapter"]
    step = str(model.meta.get("step"))
    text_adapters.write_text_adapter(
        file,
        model.params,
        {key: adapter[key] for key in ("heads", "eta", "on_null")},
        jnp.dtype(name),
        step=step,
    )
    size = sum(x.size for path, x in model.params.items() if path.startswith(f"{PREFIX}/"))
    return f"{file}: text adapters of {checkpoint}, step {step}, {size:,} parameters as {name}"


def _export_diffusers(model: Model, out: Path, dtype: str | None) -> str:
    """Writes a folder in diffusers' layout; returns the class that was written."""
    match model.config.get("task"):
        case "generation":
            if model.config["codec"]["kind"] == "identity":
                return deepfloyd.export_pixels(_typed(model, dtype), out)
            pipeline = _pipeline(model, dtype)
            pipeline.write(out)
            return pipeline.kind
        case "autoencoding":
            side = (model.config.get("data") or {}).get("image_size", 512)
            components.prepare_autoencoder(_typed(model, dtype), side).write(out)
            return components.codec_class(model)
        case "denoiser":
            kind = components.denoiser_of(model.config)
            side = model.meta.get("source", {}).get(kind.folder, {}).get("sample_size") or 64
            components.prepare_denoiser(_typed(model, dtype), side, {}).write(out)
            return kind.public.CLASS
        case task:
            raise UserError(f"diffusers has no layout for a {task} model.")


def _export_single_file(model: Model, out: Path, dtype: str | None) -> str:
    """Writes one file in the original layout; returns the class of its pipeline."""
    if model.config.get("task") != "generation" or model.config["codec"]["kind"] == "identity":
        raise UserError(
            "--format=single_file needs a whole latent diffusion model: leave --format out."
        )
    single_file.family_for(pipelines.pipeline_of(model.config))  # refuses before a codec is read
    pipeline = _pipeline(model, dtype)
    single_file.write_single_file(pipeline, out)
    return pipeline.kind


PUBLIC = dict(diffusers=_export_diffusers, single_file=_export_single_file)


def _pipeline(model: Model, dtype: str | None) -> pipelines.Pipeline:
    pipelines.pipeline_of(model.config)  # refuses before a codec is read
    codec = load_model(locate(model.config["codec"]["path"]))
    return pipelines.prepare_pipeline(_typed(model, dtype), _typed(codec, dtype))


def _typed(model: Model, dtype: str | None) -> Model:
    """In ``dtype``, except a latent space's statistics, which become a setting and not a tensor."""
    cast = {
        path: x if path.startswith("latent/") else cast_floats(x, dtype)
        for path, x in model.params.items()
    }
    return Model(cast, model.config, model.meta, model.fingerprint)
