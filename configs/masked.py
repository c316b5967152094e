"""Masked generation as Muse does it: a frozen codebook's tokens, a transformer, frozen encoders.

    emu-jax train --config=configs/autoencoder.py:size=tiny,kind=vq --workdir=runs/vq
    emu-jax train --config=configs/masked.py:size=tiny,stage=pretrain --workdir=runs/masked
    emu-jax train --config=configs/masked.py:size=tiny,stage=quality_tune \\
        --config.init_from=runs/masked --workdir=runs/masked_tuned

Data and stages are those of latent_diffusion.py: the haystack, then needles alone, batch 64, a
small constant rate, few steps. (Noise offset has no counterpart in tokens.)

size=tiny: 64 x 64 pictures as 16 x 16 tokens, 5.8 M parameters, for two CPU cores. No weights of it
are shipped: `--config.codec.path` names the autoencoder (by default runs/vq), which is trained
first. size=test: a few thousand parameters for tests.

size=base is Muse's: 48 layers, width 2,048, MLP 8,192, texts of T5-XXL projected to that width,
256 x 256 as 16 x 16 tokens of 8,192 codes; Adafactor 1e-4, decay 0.045, batch 512, 1.5 M steps, in
bf16 with tokens and texts from caches. These sizes give 3.3 B parameters, which the paper calls
3 B. (Adafactor's second moment decays by its own 1 - n^-0.8 here, not by the paper's constant
0.96.) To train it takes `--config.codec.path`, a run of autoencoder.py:size=f16,kind=vq, and
`--config.text.t5.path`; to plan it takes neither:

    emu-jax plan --config=configs/masked.py:size=base --topology=v5p:4x4x8 \\
        --config.mesh.fsdp=16 --out=runs/plan
"""

from pathlib import Path

from ml_collections import ConfigDict

from emu_jax.cli import haystack
from emu_jax.cli.config import options


def get_config(argument: str | None = None) -> ConfigDict:
    chosen = options(argument, size=("tiny", "test", "base"), stage=("pretrain", "quality_tune"))
    config = haystack.pretraining()
    config.codec = dict(kind="autoencoder", path="builtin:vq_64")
    config.denoiser = dict(
        kind="token_transformer", width=224, depth=6, heads=7, mlp_width=896, remat=False
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
    if chosen.size == "base":
        _enlarge(config)
    if chosen.stage == "quality_tune":
        haystack.quality_tune(config, "runs/masked")
    if chosen.size == "test":
        haystack.shrink(config)
        config.denoiser.update(dict(width=16, depth=2, heads=2, mlp_width=32))
    return config


def _enlarge(config: ConfigDict) -> None:
    """Muse's base model and its training."""
    config.compute_dtype = "bfloat16"
    config.data.image_size = 256
    # Their shapes, to plan with; to train, the paths of real ones.
    config.codec.path = f"{Path(__file__).parent}/autoencoder.py:size=f16,kind=vq"
    config.text = dict(t5=dict(kind="t5", size="xxl", path="", length=128, dtype="bfloat16"))
    config.conditioner.width = 2048
    config.denoiser.update(dict(width=2048, depth=48, heads=16, mlp_width=8192, remat=True))
    config.sampling.steps = 24
    config.groups.generator.ema_decay = 0.9999
    config.groups.generator.optimizer.update(
        dict(name="adafactor", learning_rate=1e-4, schedule="constant", warmup=5000, b2=0.999)
    )
    config.train.update(dict(steps=1_500_000, batch_size=512))
