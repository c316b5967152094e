"""Masked generation as Muse does it: a frozen codebook's tokens, transformers, frozen encoders.

    emu-jax train --config=configs/masked.py:size=tiny,stage=pretrain --workdir=runs/masked
    emu-jax train --config=configs/masked.py:size=tiny,stage=quality_tune \\
        --config.init_from=runs/masked --workdir=runs/masked_tuned

    emu-jax train --config=configs/autoencoder.py:size=tiny_f4,kind=vq --workdir=runs/vq_f4
    emu-jax train --config=configs/masked.py:size=tiny,part=super --workdir=runs/masked_super
    emu-jax sample "a red fox" --checkpoint=runs/masked+runs/masked_super

part=base samples from text. part=super samples the tokens of a finer codebook
(`--config.codec.path`) from those of a coarser one (`--config.low_codec.path`), the base's, and the
text. It is trained and tuned on its own, on the tokens of real images.

Data and stages are those of latent_diffusion.py: flat emoji, then needles alone, batch 64, a small
constant learning rate, few steps. (Noise offset has no counterpart in tokens.)

part=base, size=tiny: 64 x 64 pixels as 8 x 8 tokens of `builtin:vq_64`, 8.14 M parameters
    hardware  2 CPU cores, or one H100
    time      a run of this config was not measured. `launch/pretrain.sh masked`: two and a half
              minutes for 8,000 steps of batch 128 on an H100
    result    `builtin:masked_64` by that command: 91 % of samples faithful, 10 % finished as the
              needles
part=base, size=tiny, stage=quality_tune: 300 steps
    hardware  2 CPU cores, or one H100
    time      three to six minutes for 100 steps on 2 CPU cores; a quarter of a minute for 300 steps
              on an H100, with `--config.deterministic=False` and other runs beside
    result    95 % faithful, 98 % finished as the needles (docs/records/study.md)
part=super, size=tiny: 16 x 16 tokens from 8 x 8, 2.5 M parameters. The finer codebook is trained
    first, by default as runs/vq_f4
    hardware, time, result  not measured
size=base: Muse's. 48 layers, width 2,048, MLP 8,192, texts of T5-XXL projected to that width;
    256 x 256 pixels as 16 x 16 tokens of 8,192 codes; Adafactor 1e-4, decay 0.045, batch 512, 1.5 M
    steps, in bf16 with tokens and texts from caches. These sizes give 3.3 B parameters, which the
    paper calls 3 B. (Adafactor's second moment decays by its own 1 - n^-0.8 here, not by the
    paper's constant 0.96.) Its part=super has 16 low-resolution and 32 layers, width 1,024, MLP
    4,096, 764 M parameters, and samples 512 x 512 pixels as 64 x 64 tokens; 1 M steps
    hardware  128 TPU v5p, modeled with an older version: 99 ms a step, part=super 567 ms
              (docs/records/scaling.md)
    time, result  not measured
size=amused256 and amused512: 603.5 and 608.3 M parameters, what `emu-jax import` makes of the
    public aMUSEd checkpoints (docs/interop.md)
    hardware, time, result  not measured
size=test: a few thousand parameters, for tests

data=folder/mine trains any stage on a data set of the user in place of emoji: a tenth of its images
is held out for validation and previews, and no judge samples (docs/data.md).

To train size=base set `--config.text.t5.path`, and runs of autoencoder.py:kind=vq as
`--config.codec.path`: of size=f16, for part=super of size=f8, with the run of size=f16 as
`--config.low_codec.path`. Planning needs none of them:

    emu-jax plan --config=configs/masked.py:size=base --topology=v5p:4x4x8 \\
        --config.mesh.fsdp=16 --out=runs/plan

An imported aMUSEd is tuned further on data sets of the user:

    emu-jax train --config=configs/masked.py:size=amused256,stage=quality_tune \\
        --config.init_from=IMPORTED --config.codec.path=IMPORTED/codec \\
        --config.text.clip.path=IMPORTED/text_encoder --workdir=runs/amused_tuned
"""

from pathlib import Path

from ml_collections import ConfigDict

from emu_jax.assembly import emoji, stages
from emu_jax.assembly.config import options
from emu_jax.assembly.schema import section
from emu_jax.assembly.sections.denoisers import (
    SuperResolutionTransformer,
    TokenTransformer,
    UVit,
)
from emu_jax.assembly.sections.generation import (
    T5,
    AutoencoderCodec,
    Clip,
    Conditioner,
    LowResolution,
    Masking,
    Sampling,
)
from emu_jax.errors import UserError

# Sides of the images.
AMUSED = {"amused256": 256, "amused512": 512}


def get_config(argument: str | None = None) -> ConfigDict:
    chosen = options(
        argument,
        size=("tiny", "test", "base", *AMUSED),
        part=("base", "super"),
        stage=("pretrain", "quality_tune"),
        data="",
    )
    base, tuning = chosen.part == "base", chosen.stage == "quality_tune"
    if chosen.size in AMUSED and not base:
        raise UserError(
            f"part={chosen.part} is not available for size={chosen.size}; leave part out."
        )
    config = stages.generation() if chosen.size in AMUSED else emoji.pretraining()
    config.codec = section(AutoencoderCodec, path="builtin:vq_64")
    config.denoiser = section(TokenTransformer, width=224, depth=6, heads=7, mlp_width=896)
    config.process = section(Masking)
    config.sampling = section(
        Sampling,
        sampler="parallel",
        steps=12,
        temperature=3.0,
        guidance_scale=3.0,
        guidance_ramp=True,
    )
    config.groups = stages.generator(learning_rate=6e-4, warmup=500, b2=0.96, weight_decay=0.045)
    config.data.cache_latents = True
    if not base:
        _super_resolution(config)
    if chosen.size == "base":
        _enlarge(config, base)
    if chosen.size in AMUSED:
        _amused(config, AMUSED[chosen.size], tuning)
    elif tuning and base:
        emoji.quality_tune(config, "builtin:masked_64")
    elif tuning:  # without a judge in training, which samples from text alone
        emoji.quality_tune(config, "runs/masked_super", judge="")
    if chosen.size == "test":
        stages.shrink(config)
        config.denoiser.update(dict(width=16, depth=2, heads=2, mlp_width=32))
        if not base:
            config.conditioner.width = 16
            config.denoiser.update(dict(low_depth=1, block=2))
    if chosen.data:
        stages.own_images(config, chosen.data)
    return config


def _super_resolution(config: ConfigDict) -> None:
    """Finer tokens of the same images, conditioned on the base's."""
    config.codec.path = "runs/vq_f4"
    config.low_codec = section(AutoencoderCodec, path="builtin:vq_64")
    config.low_resolution = section(LowResolution, factor=1)
    config.conditioner.width = 128
    config.denoiser = section(
        SuperResolutionTransformer,
        width=128,
        low_depth=2,
        depth=4,
        heads=4,
        mlp_width=512,
        block=4,
    )
    config.sampling.steps = 8
    config.train.steps = 8000


def _enlarge(config: ConfigDict, base: bool) -> None:
    """Muse's two models and their training."""
    config.compute_dtype = "bfloat16"
    config.data.image_size = 256 if base else 512
    # Untrained ones, to plan with; training needs the paths of trained ones.
    autoencoders = f"{Path(__file__).parent}/autoencoder.py:kind=vq,size="
    config.codec.path = autoencoders + ("f16" if base else "f8")
    config.text = dict(t5=section(T5, size="xxl", length=128, dtype="bfloat16"))
    if base:
        config.denoiser.update(dict(width=2048, depth=48, heads=16, mlp_width=8192, remat="block"))
        config.sampling.steps = 24
    else:
        config.low_codec.path = autoencoders + "f16"
        config.low_resolution.factor = 2
        config.denoiser.update(dict(width=1024, low_depth=16, depth=32, heads=16, mlp_width=4096))
        config.denoiser.update(dict(block=8, remat="block"))
    config.conditioner.width = config.denoiser.width
    config.groups.generator.ema_decay = 0.9999
    config.groups.generator.optimizer.update(
        dict(name="adafactor", learning_rate=1e-4, schedule="constant", warmup=5000, b2=0.999)
    )
    config.train.update(dict(steps=1_500_000 if base else 1_000_000, batch_size=512))


def _amused(config: ConfigDict, side: int, tuning: bool) -> None:
    """The published network and conditioning; its training here is ours."""
    if tuning:
        stages.tune_large(config, f"models/amused{side}")
    else:
        stages.pretrain_large(config, steps=1_000_000, batch_size=1024)
    config.groups.generator.optimizer.update(dict(weight_decay=0.01, b2=0.999))
    config.data.image_size = side
    # An untrained one, to plan with; training needs the path of a trained one.
    config.codec.path = f"{Path(__file__).parent}/autoencoder.py:size=f16,kind=vq"
    config.text = dict(
        clip=section(Clip, size="vit_l", layer="penultimate", pooled=True, dtype="bfloat16")
    )
    config.conditioner = section(Conditioner, size_features=256, aesthetic_score=6.0)
    config.denoiser = section(UVit, vocabulary=8256, resample=side == 512, scan=True, remat="block")
    config.sampling.update(dict(temperature=24 / 11, guidance_scale=10.0, guidance_ramp=False))
