"""The Fourier-feature autoencoder (Emu, section 2.1 of its paper).

    emu-jax train --config=configs/autoencoder.py:size=tiny --workdir=runs/autoencoder

size=tiny: 64 x 64 pictures -> 8 x 8 x 16; the shipped weights `builtin:autoencoder_64` come from
it. size=f8: Emu's own, f = 8 with the widths of the field's standard autoencoder, trained on
256 x 256 crops of a data set of yours, `folder/pictures`; it wants `--config.loss.perceptual_path`
(weights of VGG-16 and LPIPS). size=test: a network of a few thousand parameters for tests.
`--config.latent_channels=4` or 8 gives the narrower spaces of the paper's comparison,
`--config.autoencoder.fourier_bands=0` the plain one.
"""

from ml_collections import ConfigDict

from emu_jax.cli.config import defaults, group, options, source

# Flags, logos and signs are left out.
PICTURES = "part == tuned|kept and group != flags|brands|extras|signs"


def get_config(argument: str | None = None) -> ConfigDict:
    chosen = options(argument, size=("tiny", "f8", "test"))
    tiny = chosen.size == "tiny"
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
    if chosen.size == "f8":
        _enlarge(config)
    return config


def _enlarge(config: ConfigDict) -> None:
    config.compute_dtype = "bfloat16"
    config.autoencoder.update(dict(widths=(128, 256, 512, 512), blocks=2, groups=32))
    config.autoencoder.update(
        dict(decoder_widths=(128, 256, 512, 512), decoder_blocks=3, mid_attention=True)
    )
    config.discriminator.update(dict(enabled=True, channels=64, layers=3, groups=32))
    config.loss.update(dict(perceptual_weight=1.0, adversarial_start=50_000))
    config.groups.autoencoder.ema_decay = 0.9999
    config.groups.autoencoder.optimizer.update(
        dict(learning_rate=1e-4, schedule="constant", warmup=10_000, b2=0.999)
    )
    config.groups.discriminator.first_step = 50_000
    config.groups.discriminator.optimizer.learning_rate = 1e-4
    config.data.image_size = 256
    config.data.random_crop = True
    config.data.train = dict(pictures=source("folder/pictures"))
    config.data.validation = dict()
    config.train.update(
        dict(
            steps=500_000,
            batch_size=256,
            log_every=100,
            validate_every=5000,
            preview_every=5000,
            checkpoint_every=5000,
        )
    )
