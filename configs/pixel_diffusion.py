"""Pixel diffusion as Imagen does it: a small picture from text, then stages that enlarge it.

    emu-jax train --config=configs/pixel_diffusion.py:size=tiny,part=base --workdir=runs/pixels
    emu-jax train --config=configs/pixel_diffusion.py:size=tiny,part=super --workdir=runs/super
    emu-jax sample "a red fox" --checkpoint=runs/pixels+runs/super
    emu-jax upsample photo.png --prompt="a red fox" --checkpoint=runs/super
    emu-jax train --config=configs/pixel_diffusion.py:size=tiny,part=base,stage=quality_tune \\
        --config.init_from=runs/pixels --workdir=runs/tuned

Each part is a run of its own, and each can be quality-tuned. part=base draws; part=super enlarges
what it is shown, reading the text as well; part=super_1024 does so once more, trained on windows of
256 pixels.

size=tiny: 32 x 32 and then 64 x 64 pictures, two CPU cores. size=test: a few thousand parameters.
size=imagen: 64 (2.00 B parameters), 256 (0.60 B) and 1024 (0.41 B), conditioned on T5-XXL, on data
sets of yours: `folder/pictures`, for tuning `folder/needles`. What the paper does not say of the
networks is chosen to have its numbers of parameters.
"""

from ml_collections import ConfigDict

from emu_jax.assembly import haystack
from emu_jax.assembly.config import options, source
from emu_jax.errors import UserError


def get_config(argument: str | None = None) -> ConfigDict:
    chosen = options(
        argument,
        size=("tiny", "test", "imagen"),
        part=("base", "super", "super_1024"),
        stage=("pretrain", "quality_tune"),
    )
    base, tuning = chosen.part == "base", chosen.stage == "quality_tune"
    if chosen.part == "super_1024" and chosen.size != "imagen":
        raise UserError(
            "part=super_1024 is of size=imagen; the small cascade ends with part=super."
        )
    config = haystack.pretraining(needles_share=0.1 if base else 0.5)
    config.codec = dict(kind="identity")
    # How much smaller the picture is that it is shown; 0: none. ``level``: the noise in it, 0 to 1;
    # ``schedule``: whose steps it comes in, where in steps.
    config.low_resolution = dict(
        factor=0 if base else 2, level=0.1, crop=0, schedule="", align_corners=False
    )
    config.denoiser = (
        dict(
            kind="unet",
            widths=(16, 48, 128, 192),
            blocks=1,
            transformer_depth=(0, 0, 1, 1),
            mid_depth=1,
            head_width=16,
            groups=8,
            attention="added_kv",
            scale_shift=True,
            remat="none",  # or block, dots: what the backward pass computes anew
        )
        if base
        else dict(
            kind="efficient_unet",
            widths=(32, 48, 96),
            blocks=(1, 2, 3),
            attention=("none", "none", "full"),
            head_width=32,
            groups=8,
            remat="none",
        )
    )
    config.process = dict(
        schedule="cosine",
        # Behind its halved maps the small enlarger has no channels to say noise in: the picture.
        prediction="v" if base else "x0",
        time_input="continuous",
        weighting="none",
        gamma=5.0,
        time_density="logit_normal" if base and not tuning else "uniform",
        time_location=0.6,
        time_scale=1.2,
        noise_offset=0.1 if tuning else 0.0,
        bounds=(1e-3, 1.0),
        variance="fixed",  # or, in a second half of its output, learned_range; unread: ignored
    )
    config.sampling = dict(
        sampler="dpmpp_2m",
        steps=25,
        spacing="uniform",
        guidance_scale=2.5 if base else 1.0,
        guidance_rescale=0.0,
        threshold="static",  # dynamic greys pictures that are white to the edge
        threshold_quantile=0.995,
        threshold_limit=0.0,
        previews=16,
    )
    config.groups = haystack.generator(learning_rate=1e-3)
    config.data.image_size = 32 if base else 64
    config.data.cache_latents = True
    if not base:
        config.train.steps = 3000
    if tuning:
        # No judge by the way: it knows 64 pixels.
        name = "builtin:pixel_diffusion_32" if base else "builtin:pixel_super_64"
        haystack.quality_tune(config, name, judge="")
    if chosen.size == "test":
        haystack.shrink(config)
        _shrink(config, base)
    elif chosen.size == "imagen":
        _enlarge(config, chosen.part, tuning)
    return config


def _shrink(config: ConfigDict, base: bool) -> None:
    """Next to no arithmetic."""
    sizes = dict(widths=(8, 16), head_width=8, groups=4)
    with config.denoiser.ignore_type():
        if base:
            config.denoiser.update(dict(sizes, blocks=1, transformer_depth=(0, 1)))
        else:
            config.denoiser.update(dict(sizes, blocks=(1, 1), attention=("none", "full")))


def _enlarge(config: ConfigDict, part: str, tuning: bool) -> None:
    """The published sizes."""
    config.compute_dtype = "bfloat16"
    config.text = dict(t5=dict(kind="t5", size="xxl", path="", length=128, dtype="bfloat16"))
    eps = dict(prediction="eps", bounds=(1e-3, 0.999), time_density="uniform")
    adam = dict(name="adamw", b1=0.9, b2=0.999)
    with config.denoiser.ignore_type():
        if part == "base":
            config.denoiser.update(
                dict(
                    widths=(512, 1024, 1536, 2048),
                    blocks=3,
                    transformer_depth=(0, 1, 1, 1),
                    head_width=64,
                    groups=32,
                )
            )
            config.conditioner.width = 512
            side, pool, optimizer = 64, 8, dict(name="adafactor")
        else:
            first = part == "super"
            attention = "full" if first else "cross"
            config.denoiser.update(
                dict(
                    widths=(128, 256, 512, 1024),
                    blocks=(2, 4, 8, 8) if first else (2, 4, 8, 6),
                    attention=("none", "none", "none", attention),
                    head_width=64,
                    groups=32,
                )
            )
            config.denoiser.middle = 2 if first else 0
            config.conditioner.width = 0 if first else 1024
            config.low_resolution.factor = 4
            config.low_resolution.crop = 0 if first else 256
            if not first:
                eps |= dict(schedule="linear")
            side, pool, optimizer = 256 if first else 1024, 64 if first else 16, adam
    config.denoiser.text_pool_heads = pool
    config.denoiser.remat = "block"
    config.denoiser.time_width = 2048 if part == "base" else 1024
    config.process.update(eps)
    guidance = 7.5 if part == "base" else 3.0
    config.sampling.update(dict(steps=50, guidance_scale=guidance, threshold="dynamic"))
    config.groups.generator.ema_decay = 0.9999
    config.groups.generator.optimizer.update(
        dict(
            optimizer,
            learning_rate=1e-5 if tuning else 1e-4,
            schedule="constant",
            warmup=100 if tuning else 10_000,
        )
    )
    config.data.image_size = side
    config.data.update(dict(cache_latents=False, cache_text=tuning))
    config.data.train = dict(pictures=source("folder/needles" if tuning else "folder/pictures"))
    config.data.validation = dict()
    config.train.update(
        dict(steps=15_000, batch_size=64, checkpoint_every=250)
        if tuning
        else dict(steps=2_500_000, batch_size=2048, checkpoint_every=1000)
    )
    config.train.update(dict(validate_every=0, preview_every=1000))
