"""Diffusion-DPO: a generator learns from pairs of images, of which one is preferred.

    emu-jax train --config=configs/dpo.py:size=tiny --workdir=runs/dpo

Each record has an image and the further image `other` (docs/data.md): in a folder `cat.jpg` and
`cat.other.jpg`. The columns `votes` and `votes_other` say which one is preferred, or with
`--config.dpo.votes=none` it is the image. The model that training starts from is the reference
(Wallace et al. 2023, arXiv:2311.12908; docs/feedback.md). Texts are not dropped.

base=latent_diffusion, pixel_diffusion or masked (tokens: by their likelihood)

pairs=finish: the shaded drawing of a thing is preferred over the flat one (data set
    `finishes/preference`), over the shipped generator
    hardware  2 CPU cores
    time      500 steps: 11 minutes, with a little other work
    result    after 500 steps 82 % faithful, 84 % finished like the preferred ones (before: 95 %,
              6 %; docs/records/study.md)

size=tiny: over `builtin:scenes_96` on flat images of the data set `preferences`; another family
    over a generator of `--config.init_from`; 1,000 steps of 16
    hardware  2 CPU cores
    time, result  not measured
size=test: the same with a few thousand parameters, for tests
size=sd15 and sdxl: the published settings, on pairs of the user, `folder/pairs`: 2,000 steps of
    2,048, learning rate 1e-8 times the batch size, beta 5,000. A run needs `--config.init_from`,
    `--config.codec.path` and text encoders by path
    hardware, time, result  not measured
"""

from pathlib import Path

from ml_collections import ConfigDict

from emu_jax.assembly import emoji, stages
from emu_jax.assembly.config import options, read, source
from emu_jax.assembly.schema import section
from emu_jax.assembly.sections.feedback import Dpo
from emu_jax.errors import UserError
from emu_jax.evaluation.references import KEPT

SMALL, FAMILIES = ("tiny", "test"), ("latent_diffusion", "pixel_diffusion", "masked")


def get_config(argument: str | None = None) -> ConfigDict:
    chosen = options(
        argument,
        size=(*SMALL, "sd15", "sdxl"),
        base=FAMILIES,
        pairs=("faults", "finish"),
    )
    small = chosen.size in SMALL
    if not small and chosen.base != "latent_diffusion":
        raise UserError(f"base={chosen.base} is only available for size=tiny and size=test.")
    if chosen.pairs == "finish" and not small:
        raise UserError("pairs=finish is only available for size=tiny and size=test.")
    base = f"{Path(__file__).parent}/{chosen.base}.py:size={chosen.size}"
    config = read(base)
    if small:
        stages.quality_tune(config, "builtin:scenes_96")
        config.text.minilm.length = emoji.CAPTION_TOKENS
        config.data.train = _pairs("split == train")
        config.data.validation = dict(unseen=_pairs("split == validation"))
        if chosen.pairs == "finish":
            config.init_from = "builtin:latent_diffusion_64"
            config.data.train = emoji.finish_pairs(emoji.TUNED)
            config.data.validation = dict(unseen=emoji.finish_pairs(KEPT))
        elif chosen.base == "latent_diffusion":
            emoji.draw_scenes(config)
        config.measure.judge = ""
        config.groups.generator.optimizer.update(dict(learning_rate=1e-5, warmup=20))
        train = dict(steps=1000, batch_size=16, validate_every=200)
        if chosen.size == "test":
            train = dict(steps=4, batch_size=4, log_every=1, validate_every=2)
            train |= dict(checkpoint_every=2, preview_every=0)
    else:
        stages.tune_large(config, base)
        stages.own_images(config, "folder/pairs", "pairs")
        warmup = 500 if chosen.size == "sd15" else 200
        config.groups.generator.optimizer.update(dict(learning_rate=1e-8 * 2048, warmup=warmup))
        train = dict(steps=2000, batch_size=2048, validate_every=500)
    config.train.update(train)
    with config.unlocked():
        config.task = "dpo"
        beta = 0.1 if chosen.base == "masked" else 5000.0
        config.dpo = section(Dpo, beta=beta, votes="majority" if small else "none")
    return config


def _pairs(select: str) -> ConfigDict:
    """Of flat drawings, which the small generator of scenes draws."""
    drawn = source("preferences/openmoji", select=select, captions="complex")
    return ConfigDict({"openmoji": drawn})
