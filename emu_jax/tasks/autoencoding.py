"""Training of the autoencoder whose latents or tokens a generator works on (section 2.1 of Emu;
VQGAN in Muse).

Two groups are updated one after the other:

    autoencoder    L1 + w_p LPIPS + penalty + lambda(x') w_a (-D(x'))      (1)
    discriminator  hinge on D(x), D(x')                                    (2)

x' = decode(z). For latent diffusion z is a sample from q(z | x) and the penalty is w_kl KL; for
masked generation z is the nearest codes and the penalty is the commitment loss. lambda balances the
adversarial gradient against the gradient of the reconstruction,

    lambda = |d rec / d x'| / (|d adv / d x'| + 1e-6), clipped to [0, 100].               (3)

Both gradients are taken with respect to the reconstructed pixels. The latent diffusion paper takes
them with respect to the decoder's last layer, which costs another backward pass through that layer
and ranks the two losses in the same way.

The mean and standard deviation of each Gaussian latent channel are measured after training and
stored in the state, as a codebook is. A generator works on (z - shift) / scale.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from emu_jax.nn import autoencoder as gaussian
from emu_jax.nn.discriminator import hinge_discriminator_loss, hinge_generator_loss
from emu_jax.nn.functional import Network, Params, nest, subtree
from emu_jax.tasks.base import (
    NO_SETS,
    Batch,
    Context,
    Loss,
    Metrics,
    RowSpec,
    Sets,
    Task,
    cast,
    to_pixels,
    to_unit_range,
)
from emu_jax.tasks.bottlenecks import Bottleneck, GaussianBottleneck, Quantizer
from emu_jax.tasks.codecs import LATENT_SCALE, LATENT_SHIFT

STATISTICS_BATCHES = 64


@dataclass(frozen=True, kw_only=True)
class Autoencoding(Task):
    """Without ``discriminator`` equation (1) has no last term; without ``lpips`` it has no second
    term. Without ``quantizer`` the bottleneck is Gaussian and ``kl_weight`` is w_kl.

    The L1 is a mean over pixels, the KL a sum over an image's latents (nats per image).
    """

    autoencoder: Network
    discriminator: Network | None
    lpips: Network | None
    latent_channels: int
    kl_weight: float = 1e-6
    perceptual_weight: float = 0.0
    adversarial_weight: float = 0.0
    adversarial_start: int = 0
    compute_dtype: Any = jnp.float32
    stream: str = "train"
    quantizer: Quantizer | None = None

    @property
    def streams(self) -> dict[str, RowSpec]:
        return {self.stream: RowSpec()}

    @property
    def bottleneck(self) -> Bottleneck:
        return self.quantizer or GaussianBottleneck(self.latent_channels, self.kl_weight)

    def init(self, key: jax.Array) -> tuple[Params, Params]:
        first, second = jax.random.split(key)
        params = nest("autoencoder", self.autoencoder.init(first))
        if self.discriminator:
            params |= nest("discriminator", self.discriminator.init(second))
        return params, self.bottleneck.init(jax.random.fold_in(key, 2))

    def loss(self, group: str, context: Context) -> Loss:
        """Equation (1) or (2), by group."""
        key, state, lpips = context.key, context.state, self.lpips
        x = to_unit_range(context.batch[self.stream]["image"]).astype(self.compute_dtype)
        params = cast(context.params, self.compute_dtype)
        if group == "discriminator":
            # The groups do not need to share a posterior sample: a fresh one is as good.
            fake = jax.lax.stop_gradient(self._reconstruct(params, x, state, key)[0])
            return self._discriminator_loss(params, x, fake, state)
        fake, penalty, state, penalties = self._reconstruct(params, x, state, key)

        def reconstruction(fake: Array) -> tuple[Array, Metrics]:
            l1 = jnp.mean(jnp.abs(fake - x).astype(jnp.float32))
            total, metrics = l1, {"l1": l1}
            if lpips:
                distance = lpips(context.frozen["lpips"], fake, x).astype(jnp.float32)
                metrics["lpips"] = jnp.mean(distance)
                total = total + self.perceptual_weight * metrics["lpips"]
            return total, metrics

        rec, metrics = reconstruction(fake)
        mse = jnp.mean(jnp.square((fake - x).astype(jnp.float32)))
        metrics |= {**penalties, "psnr": psnr(mse)}
        loss = rec + penalty
        if self.discriminator:
            adversarial, weight = self._adversarial(params, fake, reconstruction, context.step)
            loss = loss + weight * adversarial
            metrics |= {"adversarial": adversarial, "adversarial_weight": weight}
        return Loss(loss, state, metrics)

    def _reconstruct(
        self, params: Params, x: Array, state: Params, key: jax.Array
    ) -> tuple[Array, Array, Params, Metrics]:
        """(images, penalty, new state, the bottleneck's scalars to log)."""
        network = subtree(params, "autoencoder")
        moments = self.autoencoder(network, x, method="encode")
        z, penalty, state, metrics = self.bottleneck(moments, state, key)
        return self.autoencoder(network, z, method="decode"), penalty, state, metrics

    def _adversarial(
        self, params: Params, fake: Array, reconstruction: Any, step: jax.Array | int
    ) -> tuple[Array, Array]:
        """(generator's adversarial loss, its weight); both 0 before ``adversarial_start``."""
        critic = jax.lax.stop_gradient(params)

        def adversarial(fake: Array) -> Array:
            return hinge_generator_loss(self._logits(critic, fake))

        def active(fake: Array) -> tuple[Array, Array]:
            pixels = jax.lax.stop_gradient(fake)
            g_rec = jax.grad(lambda f: reconstruction(f)[0])(pixels)
            balance = _norm(g_rec) / (_norm(jax.grad(adversarial)(pixels)) + 1e-6)
            return adversarial(fake), self.adversarial_weight * jnp.clip(balance, 0.0, 100.0)

        def idle(fake: Array) -> tuple[Array, Array]:
            return jnp.zeros(()), jnp.zeros(())

        return jax.lax.cond(step >= self.adversarial_start, active, idle, fake)

    def _discriminator_loss(self, params: Params, x: Array, fake: Array, state: Params) -> Loss:
        real_logits, fake_logits = self._logits(params, x), self._logits(params, fake)
        metrics = {"real": jnp.mean(real_logits), "fake": jnp.mean(fake_logits)}
        return Loss(hinge_discriminator_loss(real_logits, fake_logits), state, metrics)

    def _logits(self, params: Params, x: Array) -> Array:
        """The discriminator's logit for each patch, in fp32."""
        assert self.discriminator is not None
        return self.discriminator(subtree(params, "discriminator"), x).astype(jnp.float32)

    def validate(self, context: Context) -> dict[str, tuple[Array, Array]]:
        """L1 and PSNR (dB, mean over images, peak-to-peak 2) of reconstructions without noise."""
        rows = context.batch[self.stream]
        x = to_unit_range(rows["image"])
        fake = self.reconstruct(context.params, x, context.state)
        valid = rows["valid"].astype(jnp.float32)
        l1 = jnp.mean(jnp.abs(fake - x), axis=(1, 2, 3))
        decibel = psnr(jnp.mean(jnp.square(jnp.clip(fake, -1, 1) - x), axis=(1, 2, 3)))
        count = jnp.sum(valid)
        return {"l1": (jnp.sum(l1 * valid), count), "psnr": (jnp.sum(decibel * valid), count)}

    def preview(self, context: Context) -> dict[str, Array]:
        """Images and their reconstructions, alternating."""
        image = context.batch[self.stream]["image"][:16]
        fake = to_pixels(self.reconstruct(context.params, to_unit_range(image), context.state))
        pairs = jnp.stack([image, fake], axis=1).reshape(-1, *image.shape[1:])
        return {"original_and_reconstruction": pairs}

    def finish(
        self, context: Context, batches: Iterable[Batch], validation: Sets = NO_SETS
    ) -> Params:
        """Each latent channel's mean and standard deviation over the first training batches.

        A codebook needs no statistics. Where only the decoder is trained they stay as they are,
        because generators were trained on latents scaled with them.
        """
        group = self.groups["autoencoder"]
        if self.quantizer or all(
            path.startswith("autoencoder/decoder/") for path in group.paths(context.params)
        ):
            return context.state

        @jax.jit
        def sums(params: Params, image: Array, key: jax.Array) -> Array:
            network = subtree(params, "autoencoder")
            moments = self.autoencoder(network, to_unit_range(image), method="encode")
            z = gaussian.sample(moments, key)
            return jnp.stack([jnp.mean(z, (0, 1, 2)), jnp.mean(jnp.square(z), (0, 1, 2))])

        rows = [
            np.asarray(
                sums(context.params, batch[self.stream]["image"], jax.random.key(i)), np.float64
            )
            for i, batch in enumerate(islice(batches, STATISTICS_BATCHES))
        ]
        mean, square = np.mean(rows, axis=0)
        scale = np.sqrt(np.maximum(square - mean**2, 1e-12))
        return {
            **context.state,
            LATENT_SHIFT: mean.astype(np.float32),
            LATENT_SCALE: scale.astype(np.float32),
        }

    def reconstruct(
        self, params: Params, x: Float[Array, "b h w 3"], state: Params
    ) -> Float[Array, "b h w 3"]:
        """Reconstructions of images in [-1, 1] from the mean latents or the nearest codes."""
        network = cast(subtree(params, "autoencoder"), self.compute_dtype)
        moments = self.autoencoder(network, x.astype(self.compute_dtype), method="encode")
        z = self.bottleneck.settled(moments, state)
        return self.autoencoder(network, z, method="decode").astype(jnp.float32)


def psnr(mse: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Peak signal-to-noise ratio in dB of images in [-1, 1]."""
    return 10.0 * jnp.log10(4.0 / jnp.maximum(mse, 1e-10))


def _norm(x: Array) -> Array:
    return jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32))))
