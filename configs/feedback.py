"""Perceptual feedback learning: frozen networks look at what a trained generator draws (UniFL).

    emu-jax train --config=configs/feedback.py:size=tiny --workdir=runs/feedback

Sampling starts from an image of the data at half noise; some steps later the generator's clean
prediction is decoded, and a teacher compares it with what is known of the image
(Zhang et al. 2024, arXiv:2404.05595; docs/feedback.md). The generator's own loss on the same images
goes on beside it (`--config.feedback.diffusion=0`: it does not).

teacher=structure: SOLO's loss with the true instances of `scenes`
teacher=style: VGG-16's Gram matrices of the image itself
teacher=both: structure and style
teacher=layout: DeepLab-V3's cross-entropy with the true label of every pixel
teacher=all: the three of them

size=tiny: over a generator that `latent_diffusion.py:size=tiny,stage=compose` trained; 600 steps of
    16
    hardware  2 CPU cores
    time, result  not measured
size=test: the same with a few thousand parameters, for tests.

size=sd15 and sdxl: the published generators, with a SOLO of 80 classes, on a folder of the user in
    COCO's form (`emu-jax data build coco/train2017 --path=COCO`, and so val2017; docs/data.md): to
    plan with; a run needs `--config.init_from`, `--config.codec.path`,
    `--config.teachers.structure.path` and text encoders by path
    hardware, time, result  not measured
"""

from pathlib import Path

from ml_collections import ConfigDict

from emu_jax.assembly import emoji, stages
from emu_jax.assembly.config import options, read
from emu_jax.assembly.schema import section
from emu_jax.assembly.sections.feedback import Feedback, Layout, Structure, Style
from emu_jax.assembly.sections.generation import Sampling

SMALL, FOLDER = ("tiny", "test"), Path(__file__).parent
FURTHER = {"structure": "instances", "layout": "mask"}  # what large teachers read


def get_config(argument: str | None = None) -> ConfigDict:
    chosen = options(
        argument,
        size=(*SMALL, "sd15", "sdxl"),
        teacher=("structure", "style", "both", "layout", "all"),
    )
    small = chosen.size in SMALL
    base = f"{FOLDER}/latent_diffusion.py:size={chosen.size}"
    config = read(base)
    parser = f"{FOLDER}/parser.py:size={'coco' if not small else chosen.size}"
    teachers = ConfigDict()
    if chosen.teacher in ("structure", "both", "all"):
        teachers.structure = section(Structure, path=parser if not small else "runs/parser")
    if chosen.teacher in ("style", "both", "all"):
        teachers.style = section(Style)
    if chosen.teacher in ("layout", "all"):
        path = f"{parser},network=deeplab" if not small else "runs/deeplab"
        teachers.layout = section(Layout, path=path)
    with config.unlocked():
        config.task = "feedback"
        config.feedback, config.teachers = section(Feedback), teachers
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
            config.train.update(dict(steps=600, batch_size=16, validate_every=200))
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
