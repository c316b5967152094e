"""From a config to the autoencoding task, and the networks that its codecs share."""

from functools import partial

from ml_collections import ConfigDict

from emu_jax.assembly.groups import make_groups
from emu_jax.assembly.networks import compute_dtype, frozen_arrays, module
from emu_jax.assembly.streams import require_side
from emu_jax.errors import UserError
from emu_jax.nn.autoencoder import Autoencoder
from emu_jax.nn.discriminator import PatchDiscriminator
from emu_jax.nn.functional import Network
from emu_jax.nn.perceptual import PACKAGE, Lpips, load_lpips
from emu_jax.parallel.placement import Constrain, Placement
from emu_jax.tasks.autoencoding import Autoencoding
from emu_jax.tasks.bottlenecks import Quantizer


def autoencoder_network(config: ConfigDict, constrain: Constrain) -> Network:
    arguments = dict(config.autoencoder, latent_channels=config.latent_channels)
    if quantized(config):
        arguments["variational"] = False
    return Network(partial(module, Autoencoder, {**arguments, "constrain": constrain}))


def autoencoder_factor(config: ConfigDict) -> int:
    """Pixels along a side of one position of the latents."""
    return 2 ** (len(config.autoencoder.widths) - 1)


def quantized(config: ConfigDict) -> int:
    """Number of codes of an autoencoder; 0: its latents are Gaussian."""
    return config.quantizer.codes if "quantizer" in config else 0


def make_autoencoding(config: ConfigDict, on: Placement) -> Autoencoding:
    require_side(config, autoencoder_factor(config), config.get("stream", "train"))
    critic = config.discriminator.to_dict()
    discriminator = None
    if critic.pop("enabled"):
        discriminator = Network(partial(module, PatchDiscriminator, critic))
    loss, lpips, frozen = config.loss, None, {}
    if loss.perceptual_weight:
        lpips, path = Network(partial(module, Lpips, {})), loss.perceptual_path
        frozen["lpips"] = frozen_arrays(path or PACKAGE, load_lpips(path))
    groups = make_groups(config)
    if not discriminator:
        groups.pop("discriminator", None)
    quantizer = None
    if quantized(config):
        quantizer = Quantizer(config.latent_channels, **config.quantizer)
        if quantizer.frozen and not config.init_from:
            raise UserError(
                "quantizer.frozen needs init_from: the trained autoencoder whose codes are kept."
            )
    return Autoencoding(
        autoencoder=autoencoder_network(config, on.constrain),
        discriminator=discriminator,
        lpips=lpips,
        latent_channels=config.latent_channels,
        groups=groups,
        frozen=frozen,
        kl_weight=loss.kl_weight,
        perceptual_weight=loss.perceptual_weight,
        adversarial_weight=loss.adversarial_weight,
        adversarial_start=loss.adversarial_start,
        compute_dtype=compute_dtype(config),
        quantizer=quantizer,
    )
