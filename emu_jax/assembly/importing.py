"""Public weights as a model folder: whole pipelines, single components, single files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emu_jax.assembly import stages
from emu_jax.assembly.config import group, groups
from emu_jax.assembly.published_rewards import open_image_reward
from emu_jax.assembly.schema import section
from emu_jax.assembly.sections.generation import BertTokens
from emu_jax.assembly.sections.rewards import Blip
from emu_jax.assembly.sections.runs import RewardLearning, Run
from emu_jax.checkpoint.export import save_model
from emu_jax.checkpoint.foreign import blaming, read_json
from emu_jax.checkpoint.huggingface import find_pipeline
from emu_jax.errors import UserError
from emu_jax.evaluation.quality_metrics import IMAGE_REWARD_FILE, read_image_reward
from emu_jax.interop import (
    autoencoder,
    components,
    control,
    pipelines,
    pixart,
    schedulers,
    single_file,
    vq,
)
from emu_jax.interop.files import CONFIG, copy_small, watched

# The noise settings for training, which no public config has.
_NOISE = dict(
    weighting="none",
    gamma=5.0,
    time_density="uniform",
    time_location=0.0,
    time_scale=1.0,
    noise_offset=0.0,
)


@blaming("pipeline")
def import_weights(
    pipeline: str,
    out: str,
    *,
    variant: str = "",
    tokenizer: str = "",
    compute_dtype: str = "float32",
    allow_pickle: bool = False,
    drop_variance: bool = False,
) -> str:
    """Writes the model folder ``out`` from ``pipeline``, a folder, a file or a hub name; returns
    advice on how to use it. Weights keep their dtype.

    Raises:
      UserError: an unknown class, or anything in it that cannot be represented.
    """
    target, file = Path(out).expanduser(), Path(pipeline).expanduser()
    if file.suffix in single_file.ENDINGS and not file.is_dir():
        if not file.is_file():
            raise UserError(f"There is no file {file}.")
        single = single_file.open_single_file(file, tokenizer, variant, allow_pickle)
        return _import_generator(single, target, compute_dtype, drop_variance)
    if tokenizer:
        raise UserError("--tokenizer is for single files: a folder has its own tokenizer.")
    folder = find_pipeline(pipeline, variant, allow_pickle)
    source = components.Source(folder, variant, allow_pickle)
    if target.exists() and folder.resolve() == target.resolve():
        raise UserError(f"--out={out} is the folder that is imported: name another.")
    if (folder / pipelines.INDEX).is_file():
        return _import_generator(source, target, compute_dtype, drop_variance)
    if (folder / IMAGE_REWARD_FILE).is_file():
        return _import_reward(folder, target, compute_dtype)
    settings = read_json(folder / CONFIG)
    kind = settings.get("_class_name")
    if kind is None and isinstance(settings.get("config"), dict):
        raise UserError(
            f"{folder} is already a model of emu_jax: use it without an import, "
            f"--checkpoint={folder}."
        )
    codecs = {
        autoencoder.CLASS: components.import_autoencoder,
        vq.CLASS: components.import_vq,
    }
    denoisers = {known.public.CLASS: known for known in components.DENOISERS}
    denoisers[pixart.OLD_CLASS] = components.PIXART
    if kind in codecs:
        components.save_autoencoder(codecs[kind](source), target)
        return f"{target}: an autoencoder, for --config.codec.path={target}"
    if kind in denoisers:
        imported = components.import_denoiser(source, denoisers[kind])
        _save(imported, {"task": "denoiser", "denoiser": imported.sections["denoiser"]}, target)
        return f"{target}: a denoiser alone, for --config.init_from={target}"
    if kind == control.CLASS:
        imported = components.import_control(source)
        found = {"task": "control", **imported.sections}
        params = watched(imported.params, "control", passes=2)
        save_model(str(target), params, found, {"step": 0, "source": imported.source}, dtype=None)
        return (
            f"{target}: a ControlNet, to draw with  emu-jax sample PROMPT --checkpoint=MODEL "
            f"--control={target} --control_image=HINT; for edges --control_image=canny:IMAGE"
        )
    names = ", ".join([*codecs, *denoisers, control.CLASS])
    raise UserError(
        f"{folder} has the class {kind} (_class_name in {CONFIG}), which is not supported; use a "
        f"whole pipeline, or one of {names}."
    )


def _import_generator(
    source: components.Parts, out: Path, compute_dtype: str, drop_variance: bool
) -> str:
    imported = pipelines.import_pipeline(source, out, drop_variance)
    _save(imported, generator_config(imported.sections, compute_dtype), out)
    advice = _advice(out, imported.sections)
    replaced = "; ".join(schedulers.replaced(imported.source["scheduler"]))
    if replaced and imported.sections["codec"]["kind"] != "identity":
        advice += f"\nSampling differs from that of the scheduler: {replaced}."
    return advice


def _import_reward(folder: Path, out: Path, compute_dtype: str) -> str:
    """ImageReward as a model of task=reward, with its published standard and ReFL's alpha."""
    opened, (_, _, sizes) = open_image_reward(str(folder)), read_image_reward(folder)
    config, text = section(RewardLearning, compute_dtype=compute_dtype), "text_encoder_bert"
    copy_small(folder, out / text)  # BERT's tokenizer
    length = opened.encoder.length if opened.encoder else 0
    config.text = dict(
        bert=section(BertTokens, path=text, length=length, vocabulary=sizes["vocabulary"])
    )
    own = {name: size for name, size in sizes.items() if name not in ("image_size", "vocabulary")}
    config.reward, config.data.image_size = section(Blip, **own), sizes["image_size"]
    config.groups = groups(reward=group(""))
    found = config.to_dict()
    for place in ("data_dir", "cache_dir"):  # of no use to others
        del found["data"][place]
    save_model(str(out), dict(opened.weights.tensors()), found, {"step": 0}, dtype=None)
    return (
        f"{out}: a reward, for --config.teachers.NAME.path={out}; train it further with "
        f"--config=configs/reward.py:size=blip --config.init_from={out} "
        f"--config.text.bert.path={out / text}"
    )


def generator_config(sections: Mapping[str, Any], compute_dtype: str) -> dict[str, Any]:
    """A complete generation config; for training only the data are missing."""
    config = section(Run)
    config.task = "generation"
    config.compute_dtype = compute_dtype
    config.drop_text = 0.1
    for name in ("codec", "text", "conditioner", "denoiser", "low_resolution", "spatial"):
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
    config.groups = stages.generator(learning_rate=1e-5, schedule="constant", warmup=100)
    if config.denoiser.kind == "mmdit":
        config.groups.generator.pattern = stages.MMDIT
    config.data.image_size = sections["image_size"]
    found = config.to_dict()
    for place in ("data_dir", "cache_dir"):  # of no use to others
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
        f"{out}: draw with  emu-jax sample PROMPT --checkpoint={'BASE+' if enlarges else ''}{out}, "
        f"tune with  emu-jax train --config=configs/imported.py:{out}"
    )
    if sections["codec"]["kind"] == "identity":  # no shipped config has these sizes
        return found
    paths = [f"--config.codec.path={out / sections['codec']['path']}"]
    paths += [
        f"--config.text.{name}.path={out / x['path']}" for name, x in sections["text"].items()
    ]
    # The noise of its training, which the config of the family may not have.
    process = sections["process"]
    differs = () if _masks(sections) else ("schedule", "prediction", "shift", "variance")
    paths += [f"--config.process.{key}={process[key]}" for key in differs if key in process]
    training = " \\\n    ".join([f"--config.init_from={out}", *paths])
    return f"{found}, or with the config of its size and\n    {training}"
