"""Feedback learning: frozen networks look at what a trained generator draws (UniFL).

    emu-jax train --config=configs/feedback.py:size=tiny --workdir=runs/feedback
    emu-jax train --config=configs/feedback.py:size=tiny,stage=aesthetic --workdir=runs/aesthetic

The generator's clean prediction in the middle of sampling is decoded, and teachers look at the
image (Zhang et al. 2024, arXiv:2404.05595; docs/feedback.md). The generator's own loss on the same
images goes on beside it (`--config.feedback.diffusion=0`: it does not).

stage=perceptual: sampling starts from an image of the data at half noise, and the prediction is
    compared with what is known of the image
    teacher=structure: SOLO's loss with the true instances of `scenes`
    teacher=style: VGG-16's Gram matrices of the image itself
    teacher=both: structure and style
    teacher=layout: DeepLab-V3's cross-entropy with the true label of every pixel
    teacher=all: the three of them
stage=aesthetic: sampling starts from pure noise, and rewards (`configs/reward.py`) say how good the
    prediction is for the prompt
    teacher=each: one reward for each of color, layout, lighting and detail (the default)
    teacher=color, layout, lighting or detail: this one alone
    teacher=global: one reward of all preferences

size=tiny: over a generator that `latent_diffusion.py:size=tiny,stage=compose` trained; 600 steps of
    16, 500 of the stage aesthetic
    hardware  2 CPU cores
    time, result  not measured
size=test: the same with a few thousand parameters, for tests.

size=sd15 and sdxl: the published generators, with a SOLO of 80 classes on a folder of the user in
    COCO's form (`emu-jax data build coco/train2017 --path=COCO`, and so val2017; docs/data.md), or
    with ImageReward: to plan with; a run needs `--config.init_from`, `--config.codec.path`,
    `--config.teachers.NAME.path` and text encoders by path
    hardware, time, result  not measured
"""

from pathlib import Path

from ml_collections import ConfigDict

from emu_jax.assembly import emoji, stages
from emu_jax.assembly.config import options, read
from emu_jax.assembly.schema import section
from emu_jax.assembly.sections.feedback import Feedback, Layout, Structure, Style
from emu_jax.assembly.sections.generation import Sampling
from emu_jax.assembly.sections.rewards import Reward
from emu_jax.data.faults import DIMENSIONS
from emu_jax.errors import UserError

SMALL, FOLDER = ("tiny", "test"), Path(__file__).parent
FURTHER = {"structure": "instances", "layout": "mask"}  # what large teachers read
PERCEPTUAL = ("structure", "style", "both", "layout", "all")
AESTHETIC = ("each", *DIMENSIONS, "global")
SMALL_WEIGHT = 0.02  # of a reward: not measured


def get_config(argument: str | None = None) -> ConfigDict:
    chosen = options(
        argument,
        size=(*SMALL, "sd15", "sdxl"),
        stage=("perceptual", "aesthetic"),
        teacher=("", *PERCEPTUAL, *AESTHETIC),
    )
    small, aesthetic = chosen.size in SMALL, chosen.stage == "aesthetic"
    base = f"{FOLDER}/latent_diffusion.py:size={chosen.size}"
    config = read(base)
    teacher = chosen.teacher or ("each" if aesthetic else "structure")
    if teacher not in (AESTHETIC if aesthetic else PERCEPTUAL):
        raise UserError(f"teacher={teacher} is not of stage={chosen.stage}.")
    teachers = (_rewards if aesthetic else _perceptual)(teacher, chosen.size)
    with config.unlocked():
        config.task = "feedback"
        config.feedback, config.teachers = section(Feedback), ConfigDict(teachers)
    if aesthetic:
        config.feedback.start = "noise"
        config.feedback.diffusion = 1.0 if small else 0.0
    config.feedback.sampling = section(
        Sampling, sampler="ddim", steps=20, spacing="trailing", guidance_scale=1.0
    )
    config.groups.generator.optimizer.update(
        dict(learning_rate=1e-5, schedule="constant", warmup=20, weight_decay=1e-2, clip=1.0)
    )
    if small:
        config.init_from = "runs/compose"
        config.text.minilm.length = emoji.CAPTION_TOKENS
        config.data.train = emoji.scenes("split == train and kind != person", "complex")
        config.data.validation = dict(
            scenes=emoji.scenes("split == validation and kind != person", "complex")
        )
        config.measure.judge = ""
        config.groups.generator.optimizer.learning_rate = 1e-4
        if chosen.size == "tiny":
            steps, every = (500, 50) if aesthetic else (600, 200)
            config.train.update(dict(steps=steps, batch_size=16, validate_every=every))
            config.measure.parser, config.measure.images_per_prompt = "builtin:parser_64", 2
        else:
            config.feedback.sampling.steps = 4
            config.feedback.earliest = 2
    else:
        stages.tune_large(config, base)
        known = [FURTHER[name] for name in FURTHER if name in teachers]
        if known:
            config.data.train = stages.coco("train2017", *known)
            config.data.validation = dict(coco=stages.coco("val2017", *known))
        config.train.batch_size = 64
    return config


def _perceptual(teacher: str, size: str) -> dict[str, ConfigDict]:
    small, parser = size in SMALL, f"{FOLDER}/parser.py:size=coco"
    found = dict(
        structure=section(Structure, path="runs/parser" if small else parser),
        style=section(Style),
        layout=section(Layout, path="runs/deeplab" if small else f"{parser},network=deeplab"),
    )
    chosen = {"both": ("structure", "style"), "all": tuple(found)}.get(teacher, (teacher,))
    return {name: found[name] for name in chosen}


def _rewards(teacher: str, size: str) -> dict[str, ConfigDict]:
    if size not in SMALL:
        return dict(reward=section(Reward, path=f"{FOLDER}/reward.py:size=blip"))
    names = DIMENSIONS if teacher == "each" else (teacher,)
    return {
        f"reward_{name}": section(Reward, path=f"runs/reward_{name}", weight=SMALL_WEIGHT)
        for name in names
    }
