"""Latent diffusion as Emu does it: a frozen autoencoder's latents, a U-Net, frozen text encoders.

    emu-jax train --config=configs/latent_diffusion.py:size=tiny,stage=pretrain \\
        --workdir=runs/pretrain
    emu-jax train --config=configs/latent_diffusion.py:size=tiny,stage=quality_tune \\
        --workdir=runs/tuned

stage=pretrain, size=tiny: flat OpenMoji with a tenth of shaded Fluent images, 64 x 64 pixels,
    8.03 M parameters. Concepts of the held-out part are not trained on
    hardware  2 CPU cores, or one H100
    time      84 images a second on 2 CPU cores (AMD EPYC); a run of this config was not measured.
              `launch/pretrain.sh latent`: some five minutes for a million images on an H100
    result    by that command: 93 % of samples faithful, 11 % finished as the needles. The shipped
              `builtin:latent_diffusion_64` (92 %, 6 %) was trained in parts: see its card
stage=quality_tune, size=tiny: starts from the averaged weights of a pre-trained model
    (`--config.init_from=...`, by default the shipped ones) and trains on needles only: batch 64,
    noise offset 0.1, a small constant learning rate, 300 steps
    hardware  2 CPU cores, or one H100
    time      three to six minutes for 100 steps on 2 CPU cores; a quarter of a minute for 300 steps
              on an H100, with `--config.deterministic=False` and other runs beside
    result    86 % faithful, 97 % finished as the needles (docs/records/study.md)

stage=compose, size=tiny: tunes the shipped generator to draw scenes of several things in 96 x 96
    pixels, with flat images and complex captions of the data set `scenes` (docs/data.md)
    hardware  2 CPU cores
    time      80 minutes with some other work; 23 images per second alone
    result    the shipped `builtin:scenes_96`, after a first part in 64 x 64 pixels and with 12,000
              steps more (its model card): of 135 test prompts, four images each, 68.5 % are right,
              things 73.1 %, count 91.1 % (real images 85.9, 87.4 and 97.0 %;
              docs/records/study.md)

stage=faulty, size=tiny: tunes the shipped generator on drawings with faults of color, layout,
    lighting and detail, each in half of the images (data set `faulty`), so that feedback learning
    has something to mend; 600 steps of 32
    hardware  2 CPU cores
    time, result  not measured

stage=finishes, size=tiny: tunes the shipped generator on things in six finishes (data set
    `finishes`), which 3 % of the captions name: prompts hardly control the finish then, and
    feedback can make them (docs/feedback.md); 1,000 steps of 32
    hardware  2 CPU cores
    time, result  not measured

denoiser=transformer replaces the U-Net by a diffusion transformer. No weights of it are shipped
(`--config.init_from=RUN` tunes one), and it was not measured. size=test: a few thousand parameters,
for tests.

data=folder/mine trains any stage on a data set of the user in place of emoji: a tenth of its images
is held out for validation and previews, and no judge samples (docs/data.md).

Published sizes, all in bf16 and on data sets of the user, `folder/pictures` and for tuning
`folder/needles`. None was trained here: time and result are not measured.

size=emu: 2.8 B parameters, CLIP ViT-L and T5-XXL. Emu's: the standard U-Net with more channels and
    more blocks a stage. Its exact widths are unpublished; these are multiples of a TPU's 128 lanes
    hardware  128 TPU v5p, modeled: 915 ms a tuning step of 1,024 images; with an older version
              1,244 ms a pre-training step (docs/records/scaling.md). One H200: 489 ms a tuning step
              of 4 images (docs/records/speed.md)
size=sdxl: 2.57 B, SDXL's shape, CLIP ViT-L and OpenCLIP-bigG
    hardware  4 TPU v5p, modeled: 550 ms a tuning step of 32 images without scans; with scans and
              an older version 703 ms. One H200: 558 ms a tuning step of 8 images
size=sd15 and sd21: 0.86 and 0.87 B, one CLIP. size=pixart_sigma: 0.61 B, a transformer, T5-XXL.
    size=sd3: 2.03 B, another transformer, two CLIPs and T5-XXL
    hardware  not measured

The resolution rises in stages. Each starts from the one before; Emu's last has noise offset 0.02:

    emu-jax train --config=configs/latent_diffusion.py:size=emu,resolution=256 \\
        --config.codec.path=runs/autoencoder --config.mesh.fsdp=16 \\
        --config.text.clip.path=CLIP --config.text.t5.path=T5 --workdir=runs/emu_256
    ... :size=emu,resolution=512 ... --workdir=runs/emu_512
    ... :size=emu,resolution=1024 ... --workdir=runs/emu_1024
    ... :size=emu,stage=quality_tune ... --workdir=runs/emu_tuned

The sizes sd15, sd21, sdxl, sd3 and pixart_sigma are also what `emu-jax import` makes of the public
weights of these names (docs/interop.md), which are then tuned further:

    emu-jax train --config=configs/latent_diffusion.py:size=sd15,stage=quality_tune \\
        --config.init_from=IMPORTED --config.codec.path=IMPORTED/codec \\
        --config.text.clip.path=IMPORTED/text_encoder --workdir=runs/sd15_tuned

Pre-training encodes images and texts in the training step; tuning reads both from caches. Planning
needs no data and no weights:

    emu-jax plan --config=configs/latent_diffusion.py:size=emu --topology=v5p:4x4x8 \\
        --config.mesh.fsdp=16 --out=runs/plan
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from emu_jax.assembly import emoji, stages
from emu_jax.assembly.config import options
from emu_jax.assembly.schema import Section, section
from emu_jax.assembly.sections.denoisers import DiffusionTransformer, MMDiT, PixArt, UNet
from emu_jax.assembly.sections.generation import (
    T5,
    AutoencoderCodec,
    Clip,
    Conditioner,
    Gaussian,
    Sampling,
)
from emu_jax.errors import UserError

SMALL, IN_STAGES = ("tiny", "test"), ("sdxl", "emu")


def get_config(argument: str | None = None) -> ConfigDict:
    chosen = options(
        argument,
        size=(*SMALL, "sd15", "sd21", "sdxl", "emu", "pixart_sigma", "sd3"),
        stage=("pretrain", "quality_tune", "compose", "faulty", "finishes"),
        resolution=("1024", "512", "256"),
        denoiser=("unet", "transformer"),
        data="",
    )
    if chosen.size not in IN_STAGES and chosen.resolution != "1024":
        raise UserError(
            f"resolution={chosen.resolution} is only available for size=sdxl and size=emu."
        )
    if chosen.size not in SMALL and chosen.denoiser != "unet":
        raise UserError(
            f"denoiser={chosen.denoiser} is only available for size=tiny and size=test."
        )
    if chosen.stage in ("compose", "faulty", "finishes") and chosen.size not in SMALL:
        raise UserError(
            f"stage={chosen.stage} is only available for size=tiny and size=test, not "
            f"{chosen.size}."
        )
    config = emoji.pretraining() if chosen.size in SMALL else stages.generation()
    config.codec = section(AutoencoderCodec, path="builtin:autoencoder_64")
    config.denoiser = section(UNet, widths=(96, 160), blocks=1, head_width=32)
    config.process = section(
        Gaussian, time_density="logit_normal", time_location=0.6, time_scale=1.2
    )
    config.sampling = section(
        Sampling, sampler="dpmpp_2m", steps=25, spacing="uniform", guidance_scale=2.5
    )
    config.groups = stages.generator(learning_rate=1.2e-3)
    config.data.cache_latents = True
    if chosen.denoiser == "transformer":
        config.denoiser = section(
            DiffusionTransformer, patch=1, width=192, depth=8, heads=6, mlp_width=768
        )
    tuning = chosen.stage == "quality_tune"
    if tuning:
        config.process.update(dict(noise_offset=0.1, time_density="uniform"))
    if chosen.size not in SMALL:
        side = {"sd15": 512, "sd21": 768}.get(chosen.size, int(chosen.resolution))
        _enlarge(config, chosen.size, tuning, side)
    elif tuning:
        emoji.quality_tune(config, "builtin:latent_diffusion_64")
    elif chosen.stage == "compose":
        emoji.compose(config, "builtin:latent_diffusion_64")
    elif chosen.stage == "faulty":
        emoji.spoil(config, "builtin:latent_diffusion_64")
    elif chosen.stage == "finishes":
        emoji.vary_finishes(config, "builtin:latent_diffusion_64")
    if chosen.size == "test":
        _shrink(config)
    if chosen.data:
        stages.own_images(config, chosen.data)
    return config


def _shrink(config: ConfigDict) -> None:
    stages.shrink(config)
    if config.denoiser.kind == "transformer":
        config.denoiser.update(dict(width=16, depth=2, heads=2, mlp_width=32))
    else:
        config.denoiser.update(dict(widths=(8, 16), blocks=1, head_width=8, groups=4))


def _enlarge(config: ConfigDict, size: str, tuning: bool, resolution: int) -> None:
    """A published size; what is not published of it is as in latent diffusion and SDXL."""
    last = resolution not in (256, 512) or size == "sd15"
    before = {512: f"runs/{size}_256", 1024: f"runs/{size}_512"} if size in IN_STAGES else {}
    if tuning:
        stages.tune_large(config, f"runs/{size}_{resolution}")
    else:
        stages.pretrain_large(config, steps=200_000 if last else 600_000, batch_size=2048)
        config.init_from = before.get(resolution, "")
    config.groups.generator.optimizer.b2 = 0.999
    config.data.update(dict(image_size=resolution, buckets=last))
    # An untrained one, to plan with; training needs the path of a trained one.
    config.codec.path = f"{Path(__file__).parent}/autoencoder.py:size=f8"
    config.process.update(
        dict(schedule="scaled_linear", prediction="eps", time_input="index", time_density="uniform")
    )
    if not tuning:
        config.process.noise_offset = 0.02 if last and size == "emu" else 0.0
    config.sampling.update(dict(steps=20, guidance_scale=5.0))
    _SIZES[size](config)


def _clip(size: str, **more: Any) -> ConfigDict:
    return section(Clip, size=size, dtype="bfloat16", **more)


def _t5(**more: Any) -> ConfigDict:
    return section(T5, size="xxl", dtype="bfloat16", **more)


def _unet(config: ConfigDict, **network: Any) -> None:
    network = dict(head_width=64, remat="block") | network
    config.denoiser = section(UNet, **network)


def _transformer(config: ConfigDict, kind: type[Section], **network: Any) -> None:
    config.denoiser = section(kind, **network, scan=True, remat="block")


def _sd15(config: ConfigDict) -> None:
    config.text = dict(clip=_clip("vit_l", pooled=False))
    config.conditioner = section(Conditioner, size_features=0)
    _unet(
        config,
        widths=(320, 640, 1280, 1280),
        transformer_depth=(1, 1, 1, 0),
        heads=8,  # whatever the width
        head_width=None,
        linear_projection=False,
    )


def _sd21(config: ConfigDict) -> None:
    config.text = dict(clip=_clip("openclip_h", pooled=False))
    config.conditioner = section(Conditioner, size_features=0)
    _unet(config, widths=(320, 640, 1280, 1280), transformer_depth=(1, 1, 1, 0))
    config.process.prediction = "v"


def _sdxl(config: ConfigDict) -> None:
    config.text = dict(
        clip_l=_clip("vit_l", layer="penultimate", null="zeros", pooled=False),
        openclip_g=_clip("openclip_bigg", layer="penultimate", null="zeros"),
    )
    config.conditioner = section(Conditioner, combine="channels", size_features=256)
    _unet(
        config,
        widths=(320, 640, 1280),
        transformer_depth=(0, 2, 10),
        mid_depth=10,
        scan=True,
    )


def _emu(config: ConfigDict) -> None:
    config.text = dict(clip=_clip("vit_l"), t5=_t5())
    config.conditioner = section(Conditioner, width=1280, size_features=256)
    _unet(
        config,
        widths=(384, 768, 1536, 1536),
        transformer_depth=(1, 1, 1, 0),
        blocks=(4, 5, 6, 6),
        head_width=128,  # fills a TPU's matrix unit, of which heads of 64 fill half
    )


def _pixart_sigma(config: ConfigDict) -> None:
    config.text = dict(t5=_t5(length=300, lowercase=True))
    config.conditioner = section(Conditioner, size_features=0)
    _transformer(config, PixArt, patch=2, width=1152, depth=28, heads=16, span=32.0)
    # The published weights predict a variance, which nothing uses.
    config.process.update(dict(schedule="linear", variance="ignored"))


def _sd3(config: ConfigDict) -> None:
    config.text = dict(
        clip_l=_clip("vit_l", layer="penultimate"),
        openclip_g=_clip("openclip_bigg", layer="penultimate"),
        t5=_t5(length=256, padding="read"),
    )
    config.conditioner = section(Conditioner, combine="padded", size_features=0)
    _transformer(
        config,
        MMDiT,
        patch=2,
        width=1536,
        depth=24,
        heads=24,
        table=192,
        span=64.0,
    )
    config.process.update(
        dict(
            schedule="flow",
            shift=3.0,
            prediction="flow",
            time_input="continuous",
            time_density="logit_normal",
            time_location=0.0,
            time_scale=1.0,
            bounds=(3 / 1002, 1.0),  # the public sampler's lowest time
        )
    )
    config.groups.generator.pattern = stages.MMDIT
    config.sampling.update(dict(sampler="euler", steps=28, guidance_scale=7.0))


_SIZES = dict(sd15=_sd15, sd21=_sd21, sdxl=_sdxl, emu=_emu, pixart_sigma=_pixart_sigma, sd3=_sd3)
