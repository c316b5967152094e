"""Feedback learning: frozen networks look at what a trained generator draws (UniFL).

    emu-jax train --config=configs/feedback.py:size=tiny --workdir=runs/feedback
    emu-jax train --config=configs/feedback.py:size=tiny,stage=aesthetic --workdir=runs/aesthetic
    emu-jax train --config=configs/feedback.py:size=tiny,stage=adversarial \
        --workdir=runs/adversarial

The generator's clean prediction in the middle of sampling is decoded, and teachers look at the
image (Zhang et al. 2024, arXiv:2404.05595; docs/feedback.md). The generator's own loss on the same
images goes on beside it (`--config.feedback.diffusion=0`: it does not).

stage=perceptual: sampling starts from an image of the data at half noise, and the prediction is
    compared with what is known of the image
    teacher=structure: SOLO's loss with the true instances of `scenes` (the default)
    teacher=style: VGG-16's Gram matrices of the image itself; `--config.teachers.style.path=random`
        those of random filters, a control
    teacher=both: structure and style
    teacher=layout: DeepLab-V3's cross-entropy with the true label of every pixel
    teacher=all: the three of them
stage=aesthetic: sampling starts from pure noise, and rewards (`configs/reward.py`) say how good the
    prediction is for the prompt
    teacher=each: one reward for each of color, layout, lighting and detail (the default)
    teacher=color, layout, lighting or detail: this one alone
    teacher=global: one reward of all preferences
stage=adversarial: the reward of detail goes on learning, to tell predictions from images of the
    data. These start from the image at any noise level, and the other rewards see predictions from
    noise
    teacher=each: the adversary beside one reward for each dimension (the default)
    teacher=adversary: alone

data=emoji: of single things, over a generator that `latent_diffusion.py:size=tiny,stage=faulty`
    trained; the validation draws kept concepts, which training never prompts, for the shipped judge

data=finishes: of single things in six finishes, which their captions name, over a generator of
    `latent_diffusion.py:size=tiny,stage=finishes`

size=tiny: over `builtin:scenes_96` on flat images of the data set `scenes`; 600 steps of 16, 500 of
    the stage aesthetic
    hardware  2 CPU cores
    time      stage=aesthetic,data=emoji,teacher=global: 28 minutes, with a little other work
    result    the same over the shipped generator, with `feedback.diffusion=0` and a reward of a
              finish: the reward is fooled within 50 steps (docs/records/study.md). Others are not
              measured
size=test: the same with a few thousand parameters, for tests.

size=sd15 and sdxl: the published generators, with networks of COCO's classes on a folder of the
    user in COCO's form (`emu-jax data build coco/train2017 --path=COCO`, and so val2017;
    docs/data.md), or with ImageReward: to plan with; a run needs `--config.init_from`,
    `--config.codec.path`, `--config.teachers.NAME.path` and text encoders by path
    hardware, time, result  not measured
"""

from pathlib import Path

from ml_collections import ConfigDict

from emu_jax.assembly import emoji, stages
from emu_jax.assembly.config import group, groups, options, read, source
from emu_jax.assembly.schema import section
from emu_jax.assembly.sections.feedback import Feedback, Layout, Structure, Style
from emu_jax.assembly.sections.generation import Sampling
from emu_jax.assembly.sections.rewards import Adversary, Reward
from emu_jax.assembly.sections.trajectories import Trajectory
from emu_jax.data.dimensions import DIMENSIONS
from emu_jax.errors import UserError
from emu_jax.evaluation.references import KEPT

SMALL, FOLDER = ("tiny", "test"), Path(__file__).parent
PERCEPTUAL = ("structure", "style", "both", "layout", "all")
AESTHETIC = ("each", *DIMENSIONS, "global")
ADVERSARIAL = ("each", "adversary")
FURTHER = {"structure": "instances", "layout": "mask"}  # what large teachers read
SMALL_WEIGHT = 0.02  # of a reward: not measured


def get_config(argument: str | None = None) -> ConfigDict:
    chosen = options(
        argument,
        size=(*SMALL, "sd15", "sdxl"),
        stage=("perceptual", "aesthetic", "adversarial"),
        teacher=("", *dict.fromkeys((*PERCEPTUAL, *AESTHETIC, "adversary"))),
        data=("scenes", "emoji", "finishes"),
    )
    small, perceptual = chosen.size in SMALL, chosen.stage == "perceptual"
    base = f"{FOLDER}/latent_diffusion.py:size={chosen.size}"
    config = read(base)
    known, make = STAGES[chosen.stage]
    teacher = chosen.teacher or known[0]
    if chosen.data != "scenes" and not small:
        raise UserError(f"data={chosen.data} is only available for size=tiny and size=test.")
    if teacher not in known:
        raise UserError(
            f"teacher={teacher} is not of stage={chosen.stage}; use one of {', '.join(known)}."
        )
    teachers = make(teacher, chosen.size)
    with config.unlocked():
        config.task = "feedback"
        config.feedback, config.teachers = section(Feedback), ConfigDict(teachers)
    if not perceptual:
        config.feedback.start = "noise"
        config.feedback.diffusion = 1.0 if small else 0.0
    config.feedback.sampling = _sampling(chosen.size)
    config.groups.generator.optimizer.update(
        dict(learning_rate=1e-5, schedule="constant", warmup=20, weight_decay=1e-2, clip=1.0)
    )
    if small:
        config.text.minilm.length = emoji.CAPTION_TOKENS
        config.data.train = emoji.flat_scenes("split == train and kind != person", "complex")
        config.data.validation = dict(
            scenes=emoji.flat_scenes("split == validation and kind != person", "complex")
        )
        config.measure.judge = ""
        config.groups.generator.optimizer.learning_rate = 1e-4
        if chosen.size == "tiny":
            steps, every = (600, 200) if perceptual else (500, 50)
            config.train.update(dict(steps=steps, batch_size=16, validate_every=every))
            config.measure.parser, config.measure.images_per_prompt = "builtin:parser_64", 2
        else:
            config.feedback.earliest = 2
        config.init_from = dict(perceptual="builtin:scenes_96", aesthetic="runs/feedback").get(
            chosen.stage, "runs/aesthetic"
        )
        if chosen.data == "scenes":
            emoji.draw_scenes(config)
        else:
            _single(config, chosen.data, chosen.size)
    else:
        stages.tune_large(config, base)
        known = [FURTHER[name] for name in FURTHER if name in teachers]
        if known:
            config.data.train = stages.coco("train2017", *known)
            config.data.validation = dict(coco=stages.coco("val2017", *known))
        config.train.batch_size = 64
    if chosen.stage == "adversarial":
        own = config.groups.generator
        config.groups = groups(
            generator=own, discriminator=group("discriminator/", **own.optimizer.to_dict())
        )
    return config


def _single(config: ConfigDict, data: str, size: str) -> None:
    """Prompts of single things, of concepts that the judge does not ask for."""
    config.init_from = f"runs/{dict(emoji='faulty').get(data, data)}"
    if data == "emoji":
        config.data.train = emoji.mixture(select=emoji.TUNED, openmoji=0.9, fluent=0.1)
    else:
        config.data.train = emoji.finishes()
    config.data.validation = dict(kept=dict(openmoji=source("emoji/openmoji", select=KEPT)))
    config.measure.parser, config.measure.captions = "", f"emoji/openmoji:{KEPT}"
    if size == "tiny":
        config.measure.judge = "builtin:judge_64"


def _sampling(size: str) -> ConfigDict:
    """In training; without guidance, as ReFL."""
    steps = 4 if size == "test" else 20
    return section(Sampling, sampler="ddim", steps=steps, spacing="trailing", guidance_scale=1.0)


def _perceptual(teacher: str, size: str) -> dict[str, ConfigDict]:
    parser = f"{FOLDER}/parser.py:size=coco"
    paths = (
        ("runs/parser", "runs/deeplab") if size in SMALL else (parser, f"{parser},network=deeplab")
    )
    found = dict(
        structure=section(Structure, path=paths[0]),
        style=section(Style),
        layout=section(Layout, path=paths[1]),
    )
    names = {"both": ("structure", "style"), "all": (*found,)}.get(teacher, (teacher,))
    return {name: found[name] for name in names}


def _adversarial(teacher: str, size: str) -> dict[str, ConfigDict]:
    path = "runs/reward_detail" if size in SMALL else f"{FOLDER}/reward.py:size=blip"
    sampling = _sampling(size)
    everywhere = section(Trajectory, sampling=sampling, earliest=sampling.steps)
    found = dict(adversary=section(Adversary, path=path, trajectory=everywhere))
    if size in SMALL:
        found["adversary"].weight = SMALL_WEIGHT
    return found if teacher == "adversary" else {**_rewards(teacher, size), **found}


def _rewards(teacher: str, size: str) -> dict[str, ConfigDict]:
    if size not in SMALL:
        return dict(reward=section(Reward, path=f"{FOLDER}/reward.py:size=blip"))
    names = DIMENSIONS if teacher == "each" else (teacher,)
    return {
        f"reward_{name}": section(Reward, path=f"runs/reward_{name}", weight=SMALL_WEIGHT)
        for name in names
    }


# The first teacher of a stage is its default.
STAGES = {
    "perceptual": (PERCEPTUAL, _perceptual),
    "aesthetic": (AESTHETIC, _rewards),
    "adversarial": (ADVERSARIAL, _adversarial),
}
