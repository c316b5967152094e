"""``emu-jax export CHECKPOINT --out DIR``: a run's weights as a model folder to pass on.

The folder holds ``config.json`` and ``model.safetensors``: the averaged weights where the run keeps
an average, and what the task measured (a latent space's shift and scale). With
``--format=diffusers`` it is a pipeline, or of an autoencoder the component, as diffusers opens it.
An adapter is merged into its base, or with ``--adapter`` written by itself, as diffusers'
``load_lora_weights`` reads it.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from emu_jax.checkpoint.adapters import FILE, write_adapter
from emu_jax.checkpoint.export import Model, load_model, save_model
from emu_jax.checkpoint.safetensors_io import cast_floats
from emu_jax.cli.models import locate, make_lora, open_model
from emu_jax.errors import UserError
from emu_jax.interop import components, deepfloyd, pipelines
from emu_jax.nn.stack import unstacked


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="emu-jax export", description=__doc__)
    parser.add_argument("checkpoint", help="a run's folder, or DIR@step")
    parser.add_argument("--out", required=True, help="folder for the model")
    parser.add_argument("--format", default="emu_jax", choices=("emu_jax", "diffusers"))
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float16", "float32", "keep"),
        help="of the weights; by default bfloat16, for diffusers as they are",
    )
    parser.add_argument("--adapter", action="store_true", help="a lora run's adapter alone")
    arguments = parser.parse_args(argv)
    if arguments.adapter and arguments.format != "emu_jax":
        raise UserError("--adapter has one layout, which diffusers reads: leave --format out.")
    if arguments.adapter:
        return _adapter(arguments)
    dtype = arguments.dtype or ("keep" if arguments.format == "diffusers" else "bfloat16")
    model = open_model(arguments.checkpoint, dtype=None)
    # A critic is of no use without its training; and layers go by number, however they were run.
    kept = unstacked(
        {path: x for path, x in model.params.items() if not path.startswith("discriminator/")}
    )
    if arguments.format == "diffusers":
        kind = _export_public(model, kept, Path(arguments.out).expanduser(), dtype)
        print(f"{arguments.out}: {kind}, step {model.meta['step']}")
        return 0
    # Where the data lay on the machine that trained is nobody else's business.
    for place in ("data_dir", "cache_dir"):
        model.config.get("data", {}).pop(place, None)
    recorded = ("step", "seed", "frozen", "chosen", "source")
    meta = {name: model.meta[name] for name in recorded if name in model.meta}
    save_model(arguments.out, kept, model.config, meta, None if dtype == "keep" else dtype)
    size = sum(value.size for value in kept.values())
    print(f"{arguments.out}: step {meta['step']}, {size:,} parameters as {dtype}")
    return 0


def _export_public(model: Model, kept: Mapping[str, Any], out: Path, dtype: str) -> str:
    """Writes the public layout; the class that was written."""

    def typed(model: Model, params: Mapping[str, Any]) -> Model:
        target = None if dtype == "keep" else dtype
        # But for a latent space's figures, which become a setting and not a tensor.
        cast = {
            path: x if path.startswith("latent/") else cast_floats(x, target)
            for path, x in params.items()
        }
        return Model(cast, model.config, model.meta, model.fingerprint)

    match model.config.get("task"):
        case "generation":
            if model.config["codec"]["kind"] == "identity":
                return deepfloyd.export_pixels(typed(model, kept), out)
            pipelines.pipeline_of(model.config)  # refuses before a codec is read
            codec = load_model(locate(model.config["codec"]["path"]))
            return pipelines.export_pipeline(typed(model, kept), typed(codec, codec.params), out)
        case "autoencoding":
            side = model.config.get("data", {}).get("image_size", 512)
            components.prepare_autoencoder(typed(model, kept), side)(out)
            return components.codec_class(model)
        case "denoiser":
            kind = components.denoiser_of(model.config)
            side = model.meta.get("source", {}).get(kind.folder, {}).get("sample_size") or 64
            components.prepare_denoiser(typed(model, kept), side, {})(out)
            return kind.public.CLASS
        case task:
            raise UserError(f"diffusers has no layout for a {task} model.")


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
        f"{arguments.out}/{FILE}: step {model.meta['step']}, {size:,} parameters as "
        f"{name}, of rank {lora.rank} for {config.init_from}"
    )
    return 0
