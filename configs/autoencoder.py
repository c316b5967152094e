"""Autoencoders: Emu's with Fourier features (section 2.1 of its paper), Muse's with a codebook.

    emu-jax train --config=configs/autoencoder.py:size=tiny --workdir=runs/autoencoder
    emu-jax train --config=configs/autoencoder.py:size=tiny,kind=vq --workdir=runs/vq

kind=kl, size=tiny: 64 x 64 pictures -> 8 x 8 x 16; the shipped weights `builtin:autoencoder_64`
come from it. size=f8: Emu's own, f = 8 with the widths of the field's standard autoencoder, trained
on 256 x 256 crops. `--config.latent_channels=4` or 8 gives the narrower spaces of the paper's
comparison, `--config.autoencoder.fourier_bands=0` the plain one.

kind=vq, size=tiny: 64 x 64 pictures -> 8 x 8 numbers of 2,048 codes, for masked generation; it
starts from the shipped Gaussian autoencoder, whose widths it has. size=tiny_f4: 16 x 16 numbers of
1,024 codes, for what enlarges the former's.
size=f16 (256 x 256 -> 16 x 16) and size=f8 (512 x 512 -> 64 x 64) are Muse's, with 8,192 codes:
convolutions only, 2 residual blocks a resolution, 128 channels times multiples that are ours, batch
256, a million steps in bf16. They need pictures of one's own
(`--config.data.train.pictures.dataset=folder/mine`, `--config.data.validation.held_out.pictures.
dataset`) and the perceptual network's weights (`--config.loss.perceptual_path=DIR`, or
`--config.loss.perceptual_weight=0` to do without).

stage=decoder trains a larger decoder for a trained autoencoder whose encoder and codebook stay as
they are, so that whatever was trained on its tokens fits still:

    emu-jax train --config=configs/autoencoder.py:size=tiny,kind=vq,stage=decoder \\
        --config.init_from=runs/vq --workdir=runs/vq_decoder

size=test: networks of a few thousand parameters for tests.
"""

from ml_collections import ConfigDict

from emu_jax.assembly.config import defaults, group, options, source
from emu_jax.errors import UserError

# Flags, logos and signs are left out.
PICTURES = "part == tuned|kept and group != flags|brands|extras|signs"
# Muse's two: stage widths from full size to the smallest, picture side, decoder's stage widths.
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
    )
    if chosen.kind == "kl" and (chosen.size in ("tiny_f4", "f16") or chosen.stage == "decoder"):
        raise UserError(f"size={chosen.size},stage={chosen.stage} is of kind=vq: add it.")
    tiny = chosen.size in ("tiny", "tiny_f4")
    config = defaults()
    config.task = "autoencoding"
    config.stream = "train"
    config.latent_channels = 16
    config.autoencoder = dict(
        widths=(16, 32, 64, 128) if tiny else (4, 4, 4, 4),
        blocks=1,
        # The decoder draws what every sample shows, the encoder runs in every training step.
        decoder_widths=(24, 48, 96, 160) if tiny else (4, 4, 4, 4),
        decoder_blocks=1,
        groups=8 if tiny else 4,
        fourier_bands=2,
        mid_attention=False,
        quant_conv=False,
    )
    # Without codes the latents are Gaussian.
    config.quantizer = dict(codes=0, commitment=0.25, decay=0.99, dead=0.03, frozen=False)
    config.discriminator = dict(
        enabled=not tiny, channels=32 if tiny else 4, layers=2, groups=8 if tiny else 4
    )
    # A critic makes edges crisp where there are steps to spare; on two cores it multiplies the
    # time of a step.
    adversarial_start = 1000 if tiny else 2
    config.loss = dict(
        kl_weight=1e-6,
        perceptual_weight=0.0,
        # A folder or file with VGG-16 and LPIPS weights; needed where perceptual_weight > 0.
        perceptual_path="",
        adversarial_weight=0.1,
        adversarial_start=adversarial_start,
    )
    config.groups = dict(
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
    config.data.train = dict(
        openmoji=source("emoji/openmoji", select=PICTURES, weight=0.6),
        fluent=source("emoji/fluent", select=PICTURES, weight=0.4),
    )
    config.data.validation = dict(
        held_out=dict(
            openmoji=source("emoji/openmoji", select="part == held_out"),
            fluent=source("emoji/fluent", select="part == held_out"),
        )
    )
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
        _quantise(config, chosen.size)
    if chosen.size in LARGE:
        _enlarge(config)
        (_muse if chosen.kind == "vq" else _emu)(config, chosen.size)
    if chosen.stage == "decoder":
        _larger_decoder(config)
    return config


def _quantise(config: ConfigDict, size: str) -> None:
    """Codes for latents."""
    config.quantizer.codes = {"tiny": 2048, "tiny_f4": 1024}.get(size, 16)
    if size == "tiny":
        config.init_from = "builtin:autoencoder_64"
        config.init_skip = "autoencoder/encoder/conv_out/"  # it gives a vector, not a Gaussian
    elif size == "tiny_f4":
        config.autoencoder.update(dict(widths=(16, 32, 96), decoder_widths=(24, 48, 128)))


def _enlarge(config: ConfigDict) -> None:
    """What the full sizes share."""
    config.compute_dtype = "bfloat16"
    config.autoencoder.groups = 32
    config.discriminator.update(dict(enabled=True, channels=64, layers=3, groups=32))
    config.groups.autoencoder.ema_decay = 0.9999
    config.groups.autoencoder.optimizer.update(
        dict(learning_rate=1e-4, schedule="constant", warmup=10_000)
    )
    config.groups.discriminator.optimizer.learning_rate = 1e-4
    config.data.train = dict(pictures=source("folder/pictures"))
    config.data.validation = dict(held_out=dict(pictures=source("folder/held_out")))
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
    """Emu's own factor and channels, with the widths and losses of the field's standard one."""
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
    with config.autoencoder.ignore_type():
        config.autoencoder.update(
            dict(widths=widths, decoder_widths=widths, blocks=2, decoder_blocks=2)
        )
    config.autoencoder.fourier_bands = 0
    config.loss.update(dict(perceptual_weight=0.05, adversarial_start=20_000))
    config.groups.autoencoder.optimizer.weight_decay = 1e-4
    config.groups.discriminator.first_step = 20_000
    config.groups.discriminator.optimizer.update(dict(b1=0.9, b2=0.99))
    config.data.image_size = side
    config.train.steps = 1_000_000


def _larger_decoder(config: ConfigDict) -> None:
    """A decoder one block deeper, anew; all else as it was trained."""
    config.init_skip = "autoencoder/decoder/"
    config.autoencoder.decoder_blocks += 1
    for widths, _, larger in LARGE.values():
        if config.autoencoder.decoder_widths == widths:
            config.autoencoder.decoder_widths = larger
    config.quantizer.frozen = True
    config.groups.autoencoder.pattern = "autoencoder/decoder/"
