"""Latent diffusion as Emu does it: a frozen autoencoder's latents, a U-Net, frozen text encoders.

    emu-jax train --config=configs/latent_diffusion.py:size=tiny,stage=pretrain \\
        --workdir=runs/pretrain
    emu-jax train --config=configs/latent_diffusion.py:size=tiny,stage=quality_tune \\
        --workdir=runs/tuned

stage=pretrain: the haystack, flat OpenMoji with a tenth of shaded Fluent pictures; concepts of the
held-out part are never shown. stage=quality_tune starts from the pre-trained EMA weights
(`--config.init_from=...`, by default the shipped ones) and sees needles only: batch 64, noise
offset 0.1, a small constant rate, few steps.

size=tiny: 64 x 64 pictures, two CPU cores. size=test: a few thousand parameters for tests.

size=sdxl (2.57 B parameters, SDXL's shape) and size=emu (2.8 B, Emu's: the standard U-Net with more
channels and more blocks a stage; its exact widths are unpublished) are 1024 x 1024 in bf16, with
latents and texts from caches. Their texts are known by widths only, and the shipped autoencoder
stands in for one of its 16 channels at their size, which is enough to plan, not to train:

    emu-jax plan --config=configs/latent_diffusion.py:size=emu --topology=v5p:4x4x8 \\
        --config.mesh.fsdp=16 --out=runs/plan
"""

from ml_collections import ConfigDict

from emu_jax.cli.config import defaults, group, options, source
from emu_jax.evaluation.references import KEPT, Sets

# Flags, logos and signs are left out.
HAYSTACK = "part == tuned|kept and group != flags|brands|extras|signs"
NEEDLES = "needle >= 0"  # a thousand; "... and needle < 100" for a hundred of them


def get_config(argument: str | None = None) -> ConfigDict:
    chosen = options(
        argument, size=("tiny", "test", "sdxl", "emu"), stage=("pretrain", "quality_tune")
    )
    config = defaults()
    config.task = "generation"
    config.drop_text = 0.1
    config.codec = dict(kind="autoencoder", path="builtin:autoencoder_64")
    config.text = dict(minilm=dict(length=16, path=""))
    config.conditioner = dict(width=0, combine="tokens", size_features=0)
    config.denoiser = dict(
        kind="unet",
        widths=(96, 160),
        blocks=1,
        transformer_depth=1,
        mid_depth=1,
        head_width=32,
        groups=32,
        scan=False,  # each stack of transformer layers as one loop
        remat="none",  # or block, dots: what the backward pass computes anew
    )
    config.process = dict(
        schedule="cosine",
        prediction="v",
        time_input="continuous",
        weighting="none",
        gamma=5.0,
        time_density="logit_normal",
        time_location=0.6,
        time_scale=1.2,
        noise_offset=0.0,
    )
    config.sampling = dict(
        sampler="dpmpp_2m",
        steps=25,
        spacing="uniform",
        guidance_scale=2.5,
        guidance_rescale=0.0,
        previews=16,
    )
    # Pictures of kept concepts, drawn and judged at every validation; no judge: none.
    config.measure = dict(
        judge="",
        count=64,
        captions=Sets.captions,
        needles=Sets.needles,
        haystack=Sets.haystack,
    )
    config.groups = dict(
        generator=group(
            "denoiser/|conditioner/",
            ema_decay=0.999,
            learning_rate=1.2e-3,
            schedule="cosine",
            warmup=200,
            final=0.02,
            b2=0.99,
            weight_decay=0.01,
        )
    )
    config.data.flip = False  # clocks, letters and right hands are not to be learnt mirrored
    config.data.cache_latents = True
    config.data.cache_text = True
    config.data.train = dict(
        openmoji=source("emoji/openmoji", select=HAYSTACK, weight=0.9),
        fluent=source("emoji/fluent", select=HAYSTACK, weight=0.1),
    )
    config.data.validation = dict(
        kept=dict(openmoji=source("emoji/openmoji", select=KEPT)),
        held_out=dict(
            openmoji=source("emoji/openmoji", select="part == held_out"),
            fluent=source("emoji/fluent", select="part == held_out"),
        ),
    )
    config.train.update(dict(steps=16000, batch_size=32, validate_every=1000, preview_every=1000))
    if chosen.stage == "quality_tune":
        _quality_tune(config)
    if chosen.size == "test":
        _shrink(config)
    elif chosen.size != "tiny":
        _enlarge(config, chosen.size)
    return config


def _quality_tune(config: ConfigDict) -> None:
    """Emu's second stage: a few superb pictures, a small constant rate, stopped early."""
    config.init_from = "builtin:latent_diffusion_64"
    config.process.update(dict(noise_offset=0.1, time_density="uniform"))
    config.groups.generator.optimizer.update(
        dict(learning_rate=1e-4, schedule="constant", warmup=20, weight_decay=0.0)
    )
    config.measure.judge = "builtin:judge_64"
    config.data.train = dict(needles=source("emoji/fluent", select=NEEDLES))
    config.train.update(
        dict(steps=300, batch_size=64, validate_every=100, preview_every=100, checkpoint_every=100)
    )


def _shrink(config: ConfigDict) -> None:
    """The same program with next to no arithmetic."""
    config.denoiser.update(dict(widths=(8, 16), blocks=1, head_width=8, groups=4))
    config.sampling.update(dict(steps=2, previews=8))
    config.measure.judge = ""
    config.groups.generator.optimizer.warmup = 1
    config.data.cache_latents = False
    config.data.cache_text = False
    config.train.update(
        dict(
            steps=6,
            batch_size=8,
            log_every=1,
            validate_every=3,
            preview_every=0,
            checkpoint_every=2,
        )
    )


def _enlarge(config: ConfigDict, size: str) -> None:
    """1024 x 1024, told its sizes as SDXL is."""
    config.compute_dtype = "bfloat16"
    config.data.image_size = 1024
    config.conditioner.size_features = 256
    config.train.batch_size = 256
    if size == "sdxl":
        config.text = dict(clip=dict(kind="given", length=77, width=2048, pooled_width=1280))
        unet = dict(widths=(320, 640, 1280), transformer_depth=(0, 2, 10), mid_depth=10, blocks=2)
    else:
        config.text = dict(
            clip=dict(kind="given", length=77, width=768, pooled_width=768),
            t5=dict(kind="given", length=77, width=4096, pooled_width=0),
        )
        config.conditioner.width = 1280
        unet = dict(
            widths=(448, 896, 1792, 1792), transformer_depth=(1, 1, 1, 0), mid_depth=1, blocks=4
        )
    with config.denoiser.ignore_type():
        config.denoiser.update(dict(unet, head_width=64))
