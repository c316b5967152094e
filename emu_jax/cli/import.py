"""``emu-jax import PIPELINE --out DIR``: public weights as a model folder.

PIPELINE is a folder or a hub name: a whole pipeline as diffusers writes it (Stable Diffusion 1.5,
2.1, XL, 3, aMUSEd, PixArt-Sigma, DeepFloyd IF's stages), one component of one (AutoencoderKL,
VQModel, UNet2DConditionModel, UVit2DModel, PixArtTransformer2DModel, SD3Transformer2DModel), or a
single file in the original layout (Stable Diffusion 1.5, XL base). Weights keep their dtype.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emu_jax.checkpoint.export import save_model
from emu_jax.checkpoint.foreign import described_by, read_json
from emu_jax.checkpoint.huggingface import find_pipeline
from emu_jax.cli import haystack
from emu_jax.cli.config import defaults
from emu_jax.errors import UserError
from emu_jax.interop import autoencoder, components, pipelines, pixart, single_file, vq
from emu_jax.interop.files import CONFIG, watched

# How noise is trained on where a config of ours says nothing else.
_NOISE = dict(
    weighting="none",
    gamma=5.0,
    time_density="uniform",
    time_location=0.0,
    time_scale=1.0,
    noise_offset=0.0,
)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="emu-jax import", description=__doc__)
    parser.add_argument("pipeline", help="a folder, a file, or a hub's OWNER/NAME[/SUBFOLDER]")
    parser.add_argument("--out", required=True, help="folder for the model")
    parser.add_argument(
        "--variant", default="", help="of the weights: fp16, non_ema, ema; by default plain"
    )
    parser.add_argument(
        "--tokenizer", default="", help="of a single file: folder or hub name of CLIP's tokenizer"
    )
    parser.add_argument(
        "--compute_dtype", default="float32", choices=("float32", "bfloat16"), help="to draw with"
    )
    parser.add_argument(
        "--allow_pickle",
        action="store_true",
        help="read a pickle (tensors alone) where there is no safetensors file",
    )
    parser.add_argument(
        "--drop_variance",
        action="store_true",
        help="of DeepFloyd IF: leave behind the half of its output that says a variance",
    )
    arguments = parser.parse_args(argv)
    with described_by(arguments.pipeline):
        return _import(arguments)


def _import(arguments: argparse.Namespace) -> int:
    out = Path(arguments.out).expanduser()
    file = Path(arguments.pipeline).expanduser()
    if file.suffix in single_file.ENDINGS and not file.is_dir():
        if not file.is_file():
            raise UserError(f"There is no file {file}.")
        single = single_file.open_single_file(
            file, arguments.tokenizer, arguments.variant, arguments.allow_pickle
        )
        _import_generator(single, out, arguments)
        return 0
    if arguments.tokenizer:
        raise UserError("--tokenizer is for single files: a folder has its own.")
    folder = find_pipeline(arguments.pipeline, arguments.variant, arguments.allow_pickle)
    source = components.Source(folder, arguments.variant, arguments.allow_pickle)
    if out.exists() and folder.resolve() == out.resolve():
        raise UserError("--out is the very folder that is imported: name another.")
    if (folder / pipelines.INDEX).is_file():
        _import_generator(source, out, arguments)
        return 0
    kind = read_json(folder / CONFIG).get("_class_name")
    codecs = {
        autoencoder.CLASS: components.import_autoencoder,
        vq.CLASS: components.import_vq,
    }
    denoisers = {known.public.CLASS: known for known in components.DENOISERS}
    denoisers[pixart.OLD_CLASS] = components.PIXART
    if kind in codecs:
        components.save_autoencoder(codecs[kind](source), out)
        print(f"{out}: an autoencoder, for --config.codec.path={out}")
    elif kind in denoisers:
        imported = components.import_denoiser(source, denoisers[kind])
        _save(imported, {"task": "denoiser", "denoiser": imported.sections["denoiser"]}, out)
        print(f"{out}: a denoiser alone, for --config.init_from={out}")
    else:
        names = ", ".join([*codecs, *denoisers])
        raise UserError(f"{folder} is a {kind}; known are whole pipelines, {names}.")
    return 0


def _import_generator(source: components.Parts, out: Path, arguments: argparse.Namespace) -> None:
    imported = pipelines.import_pipeline(source, out, arguments.drop_variance)
    _save(imported, generator_config(imported.sections, arguments.compute_dtype), out)
    print(_advice(out, imported.sections))


def generator_config(sections: Mapping[str, Any], compute_dtype: str) -> dict[str, Any]:
    """A generation config that draws as it is, and trains once it is given data."""
    config = defaults()
    config.task = "generation"
    config.compute_dtype = compute_dtype
    config.drop_text = 0.1
    for name in ("codec", "text", "conditioner", "denoiser", "low_resolution"):
        if name in sections:
            config[name] = sections[name]
    for options in config.text.values():
        if options.kind == "t5":  # up to 19 GB in fp32
            options.dtype = compute_dtype
    config.process = sections["process"] if _masks(sections) else {**_NOISE, **sections["process"]}
    pooled = "openclip_g" in sections["text"]
    config.sampling = {
        **dict(steps=25, guidance_scale=5.0 if pooled else 7.5, guidance_rescale=0.0, previews=16),
        **sections["sampling"],
    }
    config.groups = haystack.generator(learning_rate=1e-5, schedule="constant", warmup=100)
    if config.denoiser.kind == "mmdit":
        config.groups.generator.pattern = haystack.MMDIT
    config.data.image_size = sections["image_size"]
    found = config.to_dict()
    for place in ("data_dir", "cache_dir"):  # nobody else's business
        del found["data"][place]
    return found


def _masks(sections: Mapping[str, Any]) -> bool:
    return sections["process"].get("kind") == "masking"


def _save(imported: components.Imported, config: Mapping[str, Any], out: Path) -> None:
    params = watched(imported.params, "denoiser", passes=2)
    save_model(str(out), params, config, {"step": 0, "source": imported.source}, dtype=None)


def _advice(out: Path, sections: Mapping[str, Any]) -> str:
    enlarges = sections.get("low_resolution", {}).get("factor")
    found = (
        f"{out}: drawn with by  emu-jax sample PROMPT --checkpoint={'BASE+' if enlarges else ''}"
        f"{out}, and tuned by  emu-jax train --config=configs/imported.py:{out}"
    )
    if sections["codec"]["kind"] == "identity":  # no config has these sizes
        return found
    paths = [f"--config.codec.path={sections['codec']['path']}"]
    paths += [f"--config.text.{name}.path={x['path']}" for name, x in sections["text"].items()]
    # The noise that it was trained on, where the config of a family says another.
    process = sections["process"]
    said = () if _masks(sections) else ("schedule", "prediction", "shift", "variance")
    paths += [f"--config.process.{key}={process[key]}" for key in said if key in process]
    training = " \\\n    ".join([f"--config.init_from={out}", *paths])
    return f"{found}, or by the config of its size with\n    {training}"
