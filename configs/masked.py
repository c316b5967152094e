"""Masked generation as Muse does it: a frozen codebook's tokens, transformers, frozen encoders.

    emu-jax train --config=configs/masked.py:size=tiny,stage=pretrain --workdir=runs/masked
    emu-jax train --config=configs/masked.py:size=tiny,stage=quality_tune \\
        --config.init_from=runs/masked --workdir=runs/masked_tuned

    emu-jax train --config=configs/autoencoder.py:size=tiny_f4,kind=vq --workdir=runs/vq_f4
    emu-jax train --config=configs/masked.py:size=tiny,part=super --workdir=runs/masked_super
    emu-jax sample "a red fox" --checkpoint=runs/masked+runs/masked_super

part=base draws. part=super draws the tokens of a finer codebook (`--config.codec.path`) from those
of a coarser one (`--config.low_codec.path`), the base's, and the text; it is trained and tuned by
itself, on the tokens of real pictures.

Data and stages are those of latent_diffusion.py: the haystack, then needles alone, batch 64, a
small constant rate, few steps. (Noise offset has no counterpart in tokens.)

size=tiny: 64 x 64 pictures as 8 x 8 tokens, 8.1 M parameters, for two CPU cores; part=super makes
16 x 16 tokens of them, 2.5 M. The coarser codebook is shipped (`builtin:vq_64`); the finer one is
trained first, by default as runs/vq_f4. size=test: a few thousand parameters for tests.

size=base is Muse's: 48 layers, width 2,048, MLP 8,192, texts of T5-XXL projected to that width,
256 x 256 as 16 x 16 tokens of 8,192 codes; Adafactor 1e-4, decay 0.045, batch 512, 1.5 M steps, in
bf16 with tokens and texts from caches. These sizes give 3.3 B parameters, which the paper calls
3 B. (Adafactor's second moment decays by its own 1 - n^-0.8 here, not by the paper's constant
0.96.) Its part=super, 16 low-resolution and 32 layers, width 1,024, MLP 4,096, 764 M parameters,
makes 512 x 512 as 64 x 64 tokens of them; 1 M steps. To train they take `--config.text.t5.path` and
runs of autoencoder.py:kind=vq, size=f16 as `--config.codec.path`, or, for part=super, size=f8 as
that and size=f16 as `--config.low_codec.path`; to plan they take neither:

    emu-jax plan --config=configs/masked.py:size=base --topology=v5p:4x4x8 \\
        --config.mesh.fsdp=16 --out=runs/plan

size=amused256 and amused512 (603.5 and 608.3 M) are what `emu-jax import` makes of the public
aMUSEd checkpoints (docs/interop.md), which then are tuned further, on pictures of one's own:

    emu-jax train --config=configs/masked.py:size=amused256,stage=quality_tune \\
        --config.init_from=IMPORTED --config.codec.path=IMPORTED/codec \\
        --config.text.clip.path=IMPORTED/text_encoder --workdir=runs/amused_tuned
"""

from pathlib import Path

from ml_collections import ConfigDict

from emu_jax.assembly import haystack
from emu_jax.assembly.config import options, source
from emu_jax.errors import UserError

# Pictures' sides.
AMUSED = {"amused256": 256, "amused512": 512}


def get_config(argument: str | None = None) -> ConfigDict:
    chosen = options(
        argument,
        size=("tiny", "test", "base", *AMUSED),
        part=("base", "super"),
        stage=("pretrain", "quality_tune"),
    )
    base = chosen.part == "base"
    if chosen.size in AMUSED and not base:
        raise UserError(f"size={chosen.size} has one part: leave part={chosen.part} out.")
    config = haystack.pretraining()
    config.codec = dict(kind="autoencoder", path="builtin:vq_64")
    config.denoiser = dict(
        kind="token_transformer", width=224, depth=6, heads=7, mlp_width=896, remat="none"
    )
    config.process = dict(kind="masking")
    config.sampling = dict(
        sampler="parallel",
        steps=12,
        spacing="trailing",
        temperature=3.0,
        guidance_scale=3.0,
        guidance_rescale=0.0,
        guidance_ramp=True,
        previews=16,
    )
    config.groups = haystack.generator(learning_rate=6e-4, warmup=500, b2=0.96, weight_decay=0.045)
    config.data.cache_latents = True
    if not base:
        _super_resolution(config)
    if chosen.size == "base":
        _enlarge(config, base)
    if chosen.stage == "quality_tune":
        # No judge by the way of a part that cannot draw by itself.
        if base:
            haystack.quality_tune(config, "builtin:masked_64")
        else:
            haystack.quality_tune(config, "runs/masked_super", judge="")
    if chosen.size in AMUSED:
        _amused(config, AMUSED[chosen.size], chosen.stage == "quality_tune")
    if chosen.size == "test":
        haystack.shrink(config)
        config.denoiser.update(dict(width=16, depth=2, heads=2, mlp_width=32))
        if not base:
            config.conditioner.width = 16
            config.denoiser.update(dict(low_depth=1, block=2))
    return config


def _super_resolution(config: ConfigDict) -> None:
    """Finer tokens of the same pictures, given the base's."""
    config.codec.path = "runs/vq_f4"
    config.low_codec = dict(kind="autoencoder", path="builtin:vq_64")
    # How much smaller the picture is whose tokens it is shown.
    config.low_resolution = dict(factor=1)
    config.conditioner.width = 128
    config.denoiser = dict(
        kind="super_resolution_transformer",
        width=128,
        low_depth=2,
        depth=4,
        heads=4,
        mlp_width=512,
        block=4,
        remat="none",
    )
    config.sampling.steps = 8
    config.train.steps = 8000


def _enlarge(config: ConfigDict, base: bool) -> None:
    """Muse's two models and their training."""
    config.compute_dtype = "bfloat16"
    config.data.image_size = 256 if base else 512
    # Their shapes, to plan with; to train, the paths of real ones.
    autoencoders = f"{Path(__file__).parent}/autoencoder.py:kind=vq,size="
    config.codec.path = autoencoders + ("f16" if base else "f8")
    config.text = dict(t5=dict(kind="t5", size="xxl", path="", length=128, dtype="bfloat16"))
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
    """The published network and conditions; how it is trained here is ours."""
    config.compute_dtype = "bfloat16"
    # Its tokens' shapes, to plan with; to train, the paths of real ones.
    config.codec.path = f"{Path(__file__).parent}/autoencoder.py:size=f16,kind=vq"
    config.text = dict(
        clip=dict(
            kind="clip",
            size="vit_l",
            path="",
            length=77,
            layer="penultimate",
            pooled=True,
            dtype="bfloat16",
        )
    )
    config.conditioner = dict(width=0, combine="tokens", size_features=256, aesthetic_score=6.0)
    config.denoiser = dict(
        kind="uvit",
        width=1024,
        depth=22,
        heads=16,
        mlp_width=2816,
        channels=768,
        embed_width=768,
        blocks=3,
        block_heads=12,
        vocabulary=8256,
        resample=side == 512,
        scan=True,
        remat="block",
    )
    config.sampling.update(
        dict(steps=12, temperature=24 / 11, guidance_scale=10.0, guidance_ramp=False)
    )
    config.groups.generator.ema_decay = 0.9999
    config.groups.generator.optimizer.update(
        dict(
            learning_rate=1e-5 if tuning else 1e-4,
            schedule="constant",
            warmup=100 if tuning else 10_000,
            weight_decay=0.01,
            b2=0.999,
        )
    )
    config.init_from = f"models/amused{side}" if tuning else ""
    config.measure.judge = ""
    config.data.update(dict(image_size=side, cache_latents=tuning, cache_text=tuning))
    config.data.train = dict(pictures=source("folder/needles" if tuning else "folder/pictures"))
    config.data.validation = dict()
    config.train.update(
        dict(steps=15_000, batch_size=64, checkpoint_every=250)
        if tuning
        else dict(steps=1_000_000, batch_size=1024, checkpoint_every=1000)
    )
    config.train.update(dict(validate_every=0, preview_every=1000))
