"""``emu-jax export CHECKPOINT --out DIR``: a run's weights as a model folder to pass on.

The folder holds ``config.json`` and ``model.safetensors``: the averaged weights where the run keeps
an average, and what the task measured (a latent space's shift and scale). With
``--format=diffusers`` it is a pipeline, or of an autoencoder the component, as diffusers opens it;
with ``--format=single_file`` one file in the original layout of Stable Diffusion 1.5 or XL base.
An adapter is merged into its base, or with ``--adapter`` written by itself, as diffusers'
``load_lora_weights`` reads it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
from ml_collections import ConfigDict

from emu_jax.checkpoint.adapters import FILE, write_adapter
from emu_jax.checkpoint.export import Model, load_model, save_model
from emu_jax.checkpoint.foreign import described_by
from emu_jax.checkpoint.paths import absolute_paths
from emu_jax.checkpoint.safetensors_io import cast_floats
from emu_jax.cli.models import locate, make_lora, open_model
from emu_jax.errors import UserError
from emu_jax.interop import components, deepfloyd, pipelines, single_file
from emu_jax.nn.stack import unstacked


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="emu-jax export", description=__doc__)
    parser.add_argument("checkpoint", help="a run's folder, or DIR@step")
    parser.add_argument("--out", required=True, help="folder for the model, or single file")
    parser.add_argument("--format", default="emu_jax", choices=("emu_jax", *PUBLIC))
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float16", "float32", "keep"),
        help="of the weights; by default bfloat16, in public layouts as they are",
    )
    parser.add_argument("--adapter", action="store_true", help="a lora run's adapter alone")
    arguments = parser.parse_args(argv)
    if arguments.adapter and arguments.format != "emu_jax":
        raise UserError("--adapter has one layout, which diffusers reads: leave --format out.")
    if arguments.adapter:
        return _adapter(arguments)
    if arguments.format == "single_file" and not arguments.out.endswith(".safetensors"):
        raise UserError(f"--format=single_file needs a file, --out={arguments.out}.safetensors.")
    write = PUBLIC.get(arguments.format)
    name = arguments.dtype or ("keep" if write else "bfloat16")
    dtype = None if name == "keep" else name
    model = open_model(arguments.checkpoint, dtype=None)
    # A critic is of no use without its training; and layers go by number, however they were run.
    kept = unstacked(
        {path: x for path, x in model.params.items() if not path.startswith("discriminator/")}
    )
    if write:
        model = Model(kept, model.config, model.meta, model.fingerprint)
        with described_by(arguments.checkpoint):
            kind = write(model, Path(arguments.out).expanduser(), dtype)
        print(f"{arguments.out}: {kind}, step {model.meta.get('step')}")
        return 0
    # Where the data lay on the machine that trained is nobody else's business.
    for place in ("data_dir", "cache_dir"):
        model.config.get("data", {}).pop(place, None)
    absolute_paths(model.config)
    recorded = ("step", "seed", "frozen", "chosen", "source")
    meta = {name: model.meta[name] for name in recorded if name in model.meta}
    save_model(arguments.out, kept, model.config, meta, dtype)
    size = sum(value.size for value in kept.values())
    print(f"{arguments.out}: step {meta.get('step')}, {size:,} parameters as {name}")
    return 0


def _export_diffusers(model: Model, out: Path, dtype: str | None) -> str:
    """Writes a folder in diffusers' layout; the class that was written."""
    match model.config.get("task"):
        case "generation":
            if model.config["codec"]["kind"] == "identity":
                return deepfloyd.export_pixels(_typed(model, dtype), out)
            pipeline = _pipeline(model, dtype)
            pipeline.write(out)
            return pipeline.kind
        case "autoencoding":
            side = model.config.get("data", {}).get("image_size", 512)
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
    """Writes one file in the original layout; the class of pipelines that it is."""
    if model.config.get("task") != "generation" or model.config["codec"]["kind"] == "identity":
        raise UserError("Single files are of whole models on latents: leave --format out.")
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
    """In ``dtype``, but for a latent space's figures, which become a setting and not a tensor."""
    cast = {
        path: x if path.startswith("latent/") else cast_floats(x, dtype)
        for path, x in model.params.items()
    }
    return Model(cast, model.config, model.meta, model.fingerprint)


def _adapter(arguments: argparse.Namespace) -> int:
    model = load_model(locate(arguments.checkpoint))
    config = ConfigDict(model.config)
    lora = make_lora(config)
    if lora is None:
        raise UserError(f"{arguments.checkpoint} has no adapter: it was trained with lora.rank 0.")
    folders = {known.kind: known.folder for known in components.DENOISERS}
    # A kind that is ours alone is called as the likest is.
    likest = "unet" if config.denoiser.kind == "efficient_unet" else "transformer"
    # A checkpoint's factors are in float32.
    name = "float32" if arguments.dtype == "keep" else arguments.dtype or "bfloat16"
    write_adapter(
        arguments.out,
        model.params,
        lora.alpha / lora.rank,
        prefix=folders.get(config.denoiser.kind, likest),
        dtype=jnp.dtype(name),
    )
    size = sum(value.size for value in model.params.values())
    print(
        f"{arguments.out}/{FILE}: step {model.meta.get('step')}, {size:,} parameters as "
        f"{name}, of rank {lora.rank} for {config.init_from}"
    )
    return 0
