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
denoiser=transformer puts a diffusion transformer in the U-Net's place; of it no weights are shipped
(`--config.init_from=RUN` to tune one).

size=emu (2.8 B parameters, Emu's: the standard U-Net with more channels and more blocks a stage;
its exact widths are unpublished, these are multiples of a TPU's 128 lanes) reads CLIP ViT-L and
T5-XXL, size=sdxl (2.57 B, SDXL's shape) CLIP ViT-L and OpenCLIP-bigG, size=sd15 and sd21 (0.86 and
0.87 B) one CLIP, size=pixart_sigma (0.61 B, a transformer) T5-XXL, size=sd3 (2.03 B, another) two
CLIPs and T5-XXL, all in bf16, on data sets of yours: `folder/pictures`, for tuning
`folder/needles`. Resolution rises in stages, each of which picks up the one before; Emu's last has
noise offset 0.02:

    emu-jax train --config=configs/latent_diffusion.py:size=emu,resolution=256 \\
        --config.codec.path=runs/autoencoder --config.mesh.fsdp=16 \\
        --config.text.clip.path=CLIP --config.text.t5.path=T5 --workdir=runs/emu_256
    ... :size=emu,resolution=512 ... --workdir=runs/emu_512
    ... :size=emu,resolution=1024 ... --workdir=runs/emu_1024
    ... :size=emu,stage=quality_tune ... --workdir=runs/emu_tuned

size=sd15, sd21, sdxl, sd3 and pixart_sigma are also what `emu-jax import` makes of the public
weights of these names (docs/interop.md), which then are tuned further:

    emu-jax train --config=configs/latent_diffusion.py:size=sd15,stage=quality_tune \\
        --config.init_from=IMPORTED --config.codec.path=IMPORTED/codec \\
        --config.text.clip.path=IMPORTED/text_encoder --workdir=runs/sd15_tuned

Pre-training encodes pictures and texts inside the step, tuning reads both from caches. Planning
needs none of all this:

    emu-jax plan --config=configs/latent_diffusion.py:size=emu --topology=v5p:4x4x8 \\
        --config.mesh.fsdp=16 --out=runs/plan
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from emu_jax.assembly import haystack
from emu_jax.assembly.config import options, source
from emu_jax.errors import UserError


def get_config(argument: str | None = None) -> ConfigDict:
    chosen = options(
        argument,
        size=("tiny", "test", "sd15", "sd21", "sdxl", "emu", "pixart_sigma", "sd3"),
        stage=("pretrain", "quality_tune"),
        resolution=("1024", "512", "256"),  # of sdxl and emu; the others have one
        denoiser=("unet", "transformer"),  # of tiny and test
    )
    if chosen.size not in ("sdxl", "emu") and chosen.resolution != "1024":
        raise UserError(f"resolution={chosen.resolution} is of the sizes sdxl and emu.")
    if chosen.size not in ("tiny", "test") and chosen.denoiser != "unet":
        raise UserError(f"denoiser={chosen.denoiser} is of the sizes tiny and test.")
    config = haystack.pretraining()
    config.codec = dict(kind="autoencoder", path="builtin:autoencoder_64")
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
    config.groups = haystack.generator(learning_rate=1.2e-3)
    config.data.cache_latents = True
    if chosen.denoiser == "transformer":
        config.denoiser = dict(
            kind="transformer", patch=1, width=192, depth=8, heads=6, mlp_width=768, remat="none"
        )
    if chosen.stage == "quality_tune":
        _quality_tune(config)
    if chosen.size == "test":
        _shrink(config)
    elif chosen.size != "tiny":
        sides = {"sd15": 512, "sd21": 768}
        side = sides.get(chosen.size, int(chosen.resolution))
        _enlarge(config, chosen.size, chosen.stage, side)
    return config


def _quality_tune(config: ConfigDict) -> None:
    haystack.quality_tune(config, "builtin:latent_diffusion_64")
    config.process.update(dict(noise_offset=0.1, time_density="uniform"))


def _shrink(config: ConfigDict) -> None:
    haystack.shrink(config)
    if config.denoiser.kind == "transformer":
        config.denoiser.update(dict(width=16, depth=2, heads=2, mlp_width=32))
    else:
        config.denoiser.update(dict(widths=(8, 16), blocks=1, head_width=8, groups=4))


def _enlarge(config: ConfigDict, size: str, stage: str, resolution: int) -> None:
    """The published size: what is not said of it is as latent diffusion's and SDXL's is."""
    tuning, last = stage == "quality_tune", resolution not in (256, 512) or size == "sd15"
    config.compute_dtype = "bfloat16"
    # Their shapes, to plan with; to train, the paths of real ones.
    config.codec.path = f"{Path(__file__).parent}/autoencoder.py:size=f8"
    config.process.update(
        dict(schedule="scaled_linear", prediction="eps", time_input="index", time_density="uniform")
    )
    if not tuning:
        config.process.noise_offset = 0.02 if last and size == "emu" else 0.0
    config.sampling.update(dict(steps=20, guidance_scale=5.0))
    config.groups.generator.ema_decay = 0.9999
    config.groups.generator.optimizer.update(
        dict(
            learning_rate=1e-5 if tuning else 1e-4,
            schedule="constant",
            warmup=100 if tuning else 10_000,
            b2=0.999,
        )
    )
    before = {512: f"runs/{size}_256", 1024: f"runs/{size}_512"} if size in ("sdxl", "emu") else {}
    config.init_from = f"runs/{size}_{resolution}" if tuning else before.get(resolution, "")
    config.measure.judge = ""
    config.data.update(
        dict(image_size=resolution, buckets=last, cache_latents=tuning, cache_text=tuning)
    )
    config.data.train = dict(pictures=source("folder/needles" if tuning else "folder/pictures"))
    config.data.validation = dict()
    config.train.update(
        dict(steps=15_000, batch_size=64, checkpoint_every=250)
        if tuning
        else dict(steps=200_000 if last else 600_000, batch_size=2048, checkpoint_every=1000)
    )
    config.train.update(dict(validate_every=0, preview_every=1000))
    _SIZES[size](config)


def _clip(size: str, **more: Any) -> dict[str, Any]:
    return dict(kind="clip", size=size, path="", length=77, dtype="bfloat16") | more


def _t5(**more: Any) -> dict[str, Any]:
    return dict(kind="t5", size="xxl", path="", length=77, dtype="bfloat16") | more


def _unet(config: ConfigDict, **network: Any) -> None:
    network = dict(head_width=64, mid_depth=1, scan=False, remat="block") | network
    with config.denoiser.ignore_type():  # one value, or a tuple with one for each stage
        config.denoiser.update(network)


def _transformer(config: ConfigDict, **network: Any) -> None:
    config.denoiser = ConfigDict(dict(network, scan=True, remat="block"))


def _sd15(config: ConfigDict) -> None:
    config.text = dict(clip=_clip("vit_l", pooled=False))
    config.conditioner = dict(width=0, combine="tokens", size_features=0)
    _unet(config, widths=(320, 640, 1280, 1280), transformer_depth=(1, 1, 1, 0), blocks=2)
    # Eight heads whatever the width, and projections as convolutions.
    del config.denoiser.head_width
    config.denoiser.update(dict(heads=8, linear_projection=False))


def _sd21(config: ConfigDict) -> None:
    config.text = dict(clip=_clip("openclip_h", pooled=False))
    config.conditioner = dict(width=0, combine="tokens", size_features=0)
    _unet(config, widths=(320, 640, 1280, 1280), transformer_depth=(1, 1, 1, 0), blocks=2)
    config.process.prediction = "v"


def _sdxl(config: ConfigDict) -> None:
    config.text = dict(
        clip_l=_clip("vit_l", layer="penultimate", null="zeros", pooled=False),
        openclip_g=_clip("openclip_bigg", layer="penultimate", null="zeros"),
    )
    config.conditioner = dict(width=0, combine="channels", size_features=256)
    _unet(
        config,
        widths=(320, 640, 1280),
        transformer_depth=(0, 2, 10),
        mid_depth=10,
        blocks=2,
        scan=True,
    )


def _emu(config: ConfigDict) -> None:
    config.text = dict(clip=_clip("vit_l"), t5=_t5())
    config.conditioner = dict(width=1280, combine="tokens", size_features=256)
    _unet(
        config,
        widths=(384, 768, 1536, 1536),
        transformer_depth=(1, 1, 1, 0),
        blocks=(4, 5, 6, 6),
        head_width=128,  # fills a TPU's matrix unit, of which heads of 64 fill half
    )


def _pixart_sigma(config: ConfigDict) -> None:
    config.text = dict(t5=_t5(length=300, lowercase=True))
    config.conditioner = dict(width=0, combine="tokens", size_features=0)
    _transformer(config, kind="pixart", patch=2, width=1152, depth=28, heads=16, span=32.0)
    # The published weights say a variance, which nothing reads.
    config.process.update(dict(schedule="linear", variance="ignored"))


def _sd3(config: ConfigDict) -> None:
    config.text = dict(
        clip_l=_clip("vit_l", layer="penultimate"),
        openclip_g=_clip("openclip_bigg", layer="penultimate"),
        t5=_t5(length=256, padding="read"),
    )
    config.conditioner = dict(width=0, combine="padded", size_features=0)
    _transformer(
        config,
        kind="mmdit",
        patch=2,
        width=1536,
        depth=24,
        heads=24,
        table=192,
        span=64.0,
        qk_norm=False,
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
    config.groups.generator.pattern = haystack.MMDIT
    config.sampling.update(dict(sampler="euler", steps=28, guidance_scale=7.0))


_SIZES = dict(sd15=_sd15, sd21=_sd21, sdxl=_sdxl, emu=_emu, pixart_sigma=_pixart_sigma, sd3=_sd3)
