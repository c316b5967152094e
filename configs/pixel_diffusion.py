"""Pixel diffusion as Imagen does it: a small image from text, then stages that enlarge it.

    emu-jax train --config=configs/pixel_diffusion.py:size=tiny,part=base --workdir=runs/pixels
    emu-jax train --config=configs/pixel_diffusion.py:size=tiny,part=super --workdir=runs/super
    emu-jax sample "a red fox" --checkpoint=runs/pixels+runs/super
    emu-jax upsample photo.png --prompt="a red fox" --checkpoint=runs/super
    emu-jax train --config=configs/pixel_diffusion.py:size=tiny,part=base,stage=quality_tune \\
        --config.init_from=runs/pixels --workdir=runs/tuned

Each part is a run of its own and can be quality-tuned. part=base samples from text. part=super
enlarges an image, conditioned on the text too. part=super_1024 (size=imagen) enlarges the result of
part=super and is trained on windows of 256 pixels.

part=base, size=tiny: 32 x 32 pixels, 7.87 M parameters
    hardware  2 CPU cores, or one H100
    time      29 images a second on 2 CPU cores; a run of this config was not measured.
              `launch/pretrain.sh pixel`: six minutes for 8,000 steps of batch 128 on an H100
    result    `builtin:pixel_diffusion_32` by that command, enlarged by the next: 91 % of samples
              faithful, 3 % finished as the needles
part=base, size=tiny, stage=quality_tune: 300 steps
    hardware  2 CPU cores, or one H100
    time      three to six minutes for 100 steps on 2 CPU cores; a quarter of a minute for 300 steps
              on an H100, with `--config.deterministic=False` and other runs beside
    result    88 % faithful, 77 % finished as the needles (docs/records/study.md)
part=super, size=tiny: 32 x 32 to 64 x 64 pixels, 2.03 M parameters
    hardware  2 CPU cores, or one H100
    time      a run of this config was not measured. `launch/pretrain.sh super`: about three minutes
              for 8,000 steps of batch 128 on an H100
    result    `builtin:pixel_super_64` by that command, mean squared error 5.43e-3 on kept concepts
size=imagen: 64 (part=base, 2.00 B parameters), 256 (part=super, 0.60 B) and 1024 pixels
    (part=super_1024, 0.41 B), conditioned on T5-XXL, on data sets of the user: `folder/pictures`,
    for tuning `folder/needles`. What the paper does not state of the networks is chosen to have
    its numbers of parameters
    hardware  64 TPU v5p, modeled with older versions: 555, 335 and 211 ms a pre-training step
              (docs/records/scaling.md)
    time, result  not measured
size=test: a few thousand parameters, for tests

data=folder/mine trains any stage on a data set of the user in place of emoji: a tenth of its images
is held out for validation and previews, and no judge samples (docs/data.md).
"""

from ml_collections import ConfigDict

from emu_jax.assembly import emoji, stages
from emu_jax.assembly.config import options
from emu_jax.assembly.schema import section
from emu_jax.assembly.sections.denoisers import EfficientUNet, UNet
from emu_jax.assembly.sections.generation import (
    T5,
    Gaussian,
    IdentityCodec,
    LowResolution,
    Sampling,
)
from emu_jax.errors import UserError


def get_config(argument: str | None = None) -> ConfigDict:
    chosen = options(
        argument,
        size=("tiny", "test", "imagen"),
        part=("base", "super", "super_1024"),
        stage=("pretrain", "quality_tune"),
        data="",
    )
    base, tuning = chosen.part == "base", chosen.stage == "quality_tune"
    large = chosen.size == "imagen"
    if chosen.part == "super_1024" and not large:
        raise UserError(
            "part=super_1024 is only available for size=imagen; the small cascade ends with "
            "part=super."
        )
    config = stages.generation() if large else emoji.pretraining(0.1 if base else 0.5)
    config.codec = section(IdentityCodec)
    config.low_resolution = section(LowResolution, factor=0 if base else 2)
    config.denoiser = (
        section(
            UNet,
            widths=(16, 48, 128, 192),
            blocks=1,
            transformer_depth=(0, 0, 1, 1),
            head_width=16,
            groups=8,
            attention="added_kv",
            scale_shift=True,
        )
        if base
        else section(
            EfficientUNet,
            widths=(32, 48, 96),
            blocks=(1, 2, 3),
            attention=("none", "none", "full"),
            head_width=32,
            groups=8,
        )
    )
    config.process = section(
        Gaussian,
        # The small network of part=super computes on halved maps with too few channels to predict
        # noise: it predicts the image.
        prediction="v" if base else "x0",
        time_density="logit_normal" if base and not tuning else "uniform",
        time_location=0.6,
        time_scale=1.2,
        noise_offset=0.1 if tuning else 0.0,
    )
    config.sampling = section(
        Sampling,
        sampler="dpmpp_2m",
        steps=25,
        spacing="uniform",
        guidance_scale=2.5 if base else 1.0,
        threshold="static",  # dynamic turns images gray that are white to the edge
    )
    config.groups = stages.generator(learning_rate=1e-3)
    config.data.image_size = 32 if base else 64
    config.data.cache_latents = True
    if not base:
        config.train.steps = 3000
    if tuning and not large:
        # No judge in training: it was trained on 64 pixels.
        name = "builtin:pixel_diffusion_32" if base else "builtin:pixel_super_64"
        emoji.quality_tune(config, name, judge="")
    if chosen.size == "test":
        stages.shrink(config)
        _shrink(config, base)
    elif large:
        _enlarge(config, chosen.part, tuning)
    if chosen.data:
        stages.own_images(config, chosen.data)
    return config


def _shrink(config: ConfigDict, base: bool) -> None:
    """Next to no arithmetic."""
    sizes = dict(widths=(8, 16), head_width=8, groups=4)
    if base:
        config.denoiser.update(dict(sizes, transformer_depth=(0, 1)))
    else:
        config.denoiser.update(dict(sizes, blocks=(1, 1), attention=("none", "full")))


def _enlarge(config: ConfigDict, part: str, tuning: bool) -> None:
    """The published sizes."""
    base = part == "base"
    if tuning:
        stages.tune_large(
            config, "builtin:pixel_diffusion_32" if base else "builtin:pixel_super_64"
        )
    else:
        stages.pretrain_large(config, steps=2_500_000, batch_size=2048)
    config.text = dict(t5=section(T5, size="xxl", length=128, dtype="bfloat16"))
    config.process.update(dict(prediction="eps", bounds=(1e-3, 0.999), time_density="uniform"))
    config.sampling.update(dict(steps=50, guidance_scale=7.5 if base else 3.0, threshold="dynamic"))
    config.data.cache_latents = False
    {"base": _imagen_64, "super": _imagen_256, "super_1024": _imagen_1024}[part](config)


def _imagen_64(config: ConfigDict) -> None:
    config.denoiser.update(
        dict(
            widths=(512, 1024, 1536, 2048),
            blocks=3,
            transformer_depth=(0, 1, 1, 1),
            head_width=64,
            groups=32,
            text_pool_heads=8,
            time_width=2048,
            remat="block",
        )
    )
    config.conditioner.width = 512
    config.data.image_size = 64
    config.groups.generator.optimizer.name = "adafactor"


def _imagen_256(config: ConfigDict) -> None:
    _efficient(config, blocks=(2, 4, 8, 8), attention="full", middle=2, text_pool_heads=64)
    config.data.image_size = 256


def _imagen_1024(config: ConfigDict) -> None:
    _efficient(config, blocks=(2, 4, 8, 6), attention="cross", middle=0, text_pool_heads=16)
    config.conditioner.width = 1024
    config.low_resolution.crop = 256
    config.process.schedule = "linear"
    config.data.image_size = 1024


def _efficient(config: ConfigDict, attention: str, **network: object) -> None:
    config.denoiser.update(
        dict(
            network,
            widths=(128, 256, 512, 1024),
            attention=("none", "none", "none", attention),
            head_width=64,
            groups=32,
            time_width=1024,
            remat="block",
        )
    )
    config.low_resolution.factor = 4
    config.groups.generator.optimizer.b2 = 0.999
