"""Each term of the autoencoder's losses against its definition, on a network of few weights."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from emu_jax.nn import autoencoder as gaussian
from emu_jax.nn.discriminator import PatchDiscriminator
from emu_jax.nn.functional import Network, subtree
from emu_jax.nn.layers import conv
from emu_jax.tasks import autoencoding
from emu_jax.tasks.autoencoding import Autoencoding, psnr
from emu_jax.tasks.base import Context, Group, Task, to_unit_range
from emu_jax.tasks.codecs import AutoencoderCodec, codec_params
from emu_jax.training.state import group_paths, init_state
from emu_jax.training.step import make_step

KEY = jax.random.key(5)


class Small(nnx.Module):
    """An autoencoder that compiles in no time: f = 2, two convolutions each way."""

    def __init__(self, *, rngs):
        self.conv_in = conv(3, 4, stride=2, rngs=rngs)
        self.moments = conv(4, 4, rngs=rngs)
        self.hidden = conv(2, 4, rngs=rngs)
        self.conv_out = conv(4, 12, rngs=rngs)

    def encode(self, x):
        return self.moments(jax.nn.silu(self.conv_in(x)))

    def decode(self, z):
        b, h, w, _ = z.shape
        quads = self.conv_out(jax.nn.silu(self.hidden(z))).reshape(b, h, w, 2, 2, 3)
        return quads.swapaxes(2, 3).reshape(b, 2 * h, 2 * w, 3)


AUTOENCODER = Network(lambda rngs: Small(rngs=rngs))
DISCRIMINATOR = Network(lambda rngs: PatchDiscriminator(4, 1, groups=0, rngs=rngs))


def make(discriminator=DISCRIMINATOR, **changes):
    sgd = optax.sgd(1e-2)
    groups = {
        "autoencoder": Group("autoencoder/", sgd, lambda n: 1e-2, ema_decay=0.9),
        "discriminator": Group("discriminator/", sgd, lambda n: 1e-2),
    }
    return Autoencoding(
        autoencoder=AUTOENCODER,
        discriminator=discriminator,
        lpips=None,
        latent_channels=2,
        groups=groups,
        frozen={},
        **changes,
    )


def rows(seed=0, n=4):
    image = np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3), np.uint8)
    return {"image": jnp.asarray(image), "valid": jnp.ones(n, bool)}


@pytest.fixture(scope="module")
def params():
    """Weights; the discriminator's are so large that its logits reach both sides of the hinge."""
    params, _ = jax.jit(make().init)(jax.random.key(0))
    grow = {path: 12.0 for path in params if path.startswith("discriminator/")}
    return {path: value * grow.get(path, 1.0) for path, value in params.items()}


def loss(task, params, group="autoencoder", step=0):
    """((loss, metrics), gradient in every parameter, the other group's too)."""

    @jax.jit
    def run(params):
        def scalar(params):
            context = Context(params, {}, {}, {"train": rows()}, KEY, jnp.int32(step))
            found = task.loss(group, context)
            return found.value, found.metrics

        return jax.value_and_grad(scalar, has_aux=True)(params)

    return run(params)


@pytest.fixture(scope="module")
def seen(params):
    """(x, x', moments) as the losses see them."""
    network, x = subtree(params, "autoencoder"), to_unit_range(rows()["image"])

    @jax.jit
    def run(network, x):
        moments = AUTOENCODER(network, x, method="encode")
        return AUTOENCODER(network, gaussian.sample(moments, KEY), method="decode"), moments

    return x, *run(network, x)


def parts(gradient):
    """Norm of the gradient in each network's parameters."""
    names = ("autoencoder", "discriminator")
    return {name: float(optax.tree.norm(subtree(gradient, name))) for name in names}


def test_psnr_is_that_of_8_bit_pictures():
    assert isinstance(make(), Task)
    for levels in (1, 16):
        expected = 20 * np.log10(255 / levels)
        np.testing.assert_allclose(psnr(jnp.array((levels / 127.5) ** 2)), expected, rtol=1e-5)


def test_reconstruction_and_kl_make_the_loss(params, seen):
    x, fake, moments = map(np.asarray, seen)
    mean, log_var = np.split(moments.astype(np.float64), 2, axis=-1)
    kl = np.mean(np.sum(mean**2 + np.exp(log_var) - 1 - log_var, axis=(1, 2, 3)) / 2)
    l1 = np.mean(np.abs(fake - x))
    for weight in (0.0, 1e-2):
        (value, metrics), _ = loss(make(None, kl_weight=weight), params)
        np.testing.assert_allclose(metrics["l1"], l1, rtol=1e-5)
        np.testing.assert_allclose(metrics["kl"], kl, rtol=1e-4)
        np.testing.assert_allclose(value, l1 + weight * kl, rtol=1e-5)
        decibel = 10 * np.log10(4 / np.mean((fake - x) ** 2))
        np.testing.assert_allclose(metrics["psnr"], decibel, rtol=1e-5)
    assert kl > 1.0


def test_before_its_start_the_adversary_counts_for_nothing(params):
    adversarial = make(adversarial_weight=0.5, adversarial_start=3)
    (value, metrics), gradient = loss(adversarial, params, step=2)
    (plain, _), expected = loss(make(None), params)
    assert metrics["adversarial"] == 0 and metrics["adversarial_weight"] == 0
    np.testing.assert_allclose(value, plain, rtol=1e-6)
    for path, slope in subtree(expected, "autoencoder").items():
        np.testing.assert_allclose(gradient[f"autoencoder/{path}"], slope, atol=1e-6)
    assert loss(adversarial, params, step=3)[0][1]["adversarial_weight"] > 0


def test_the_adversarial_gradient_is_balanced_with_the_reconstructions(params, seen):
    x, fake, _ = seen
    critic = subtree(params, "discriminator")
    (value, metrics), gradient = loss(make(adversarial_weight=0.5, kl_weight=0.0), params)
    (plain, _), before = loss(make(None, kl_weight=0.0), params)

    @jax.jit
    def adversarial(fake):
        return jax.value_and_grad(lambda f: -jnp.mean(DISCRIMINATOR(critic, f)))(fake)

    term, slope = adversarial(fake)
    # L1's gradient is +-1/N at each of the N values.
    weight = 0.5 * x.size**-0.5 / (np.linalg.norm(slope) + 1e-6)
    np.testing.assert_allclose(metrics["adversarial"], term, rtol=1e-4)
    np.testing.assert_allclose(metrics["adversarial_weight"], weight, rtol=1e-4)
    np.testing.assert_allclose(value, plain + weight * term, rtol=1e-4)
    # The weight itself is a constant to the gradient.
    moved = subtree(gradient, "autoencoder")["conv_out/bias"]
    bias = subtree(before, "autoencoder")["conv_out/bias"]
    b, h, w, c = slope.shape
    quads = slope.reshape(b, h // 2, 2, w // 2, 2, c).sum((0, 1, 3)).reshape(-1)
    np.testing.assert_allclose(moved - bias, weight * quads, atol=1e-5)


def test_the_discriminators_loss_is_the_hinge(params, seen):
    x, fake, _ = seen
    critic = subtree(params, "discriminator")
    real, false = (np.asarray(jax.jit(DISCRIMINATOR)(critic, picture)) for picture in (x, fake))
    for logits, sign in ((real, -1), (false, 1)):
        assert np.any(1 + sign * logits > 0) and np.std(logits) > 0.1
    expected = (np.mean(np.maximum(0, 1 - real)) + np.mean(np.maximum(0, 1 + false))) / 2
    (value, metrics), _ = loss(make(), params, "discriminator")
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    np.testing.assert_allclose(metrics["real"], real.mean(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(metrics["fake"], false.mean(), rtol=1e-4, atol=1e-5)


def test_each_loss_pulls_at_its_own_network_alone(params):
    task = make(adversarial_weight=0.5)
    own = parts(loss(task, params)[1])
    assert own["autoencoder"] > 0 and own["discriminator"] == 0
    own = parts(loss(task, params, "discriminator")[1])
    assert own["autoencoder"] == 0 and own["discriminator"] > 0


def test_the_groups_share_out_all_parameters_and_one_step_moves_both(params):
    task = make(adversarial_weight=0.5)
    taken = group_paths(task, params)
    assert sorted(itertools.chain(*taken.values())) == sorted(params)
    before = jax.jit(lambda k: init_state(task, k))(jax.random.key(0))
    after, metrics = jax.jit(make_step(task, seed=0))(before, {}, {"train": rows()})
    for paths in taken.values():
        still = {p for p in paths if np.array_equal(before["params"][p], after["params"][p])}
        # Where all logits are within the hinge, real and fake pull the last bias equally.
        assert still <= {"discriminator/conv_out/bias"}
    assert metrics["autoencoder/grad_norm"] > 0 and metrics["skipped"] == 0


def test_validation_counts_valid_rows_of_mean_reconstructions(params):
    batch = rows(1)
    batch["valid"] = jnp.array([True, False, True, True])

    @jax.jit
    def reconstruct(network, x):
        mean = gaussian.mean(AUTOENCODER(network, x, method="encode"))
        return AUTOENCODER(network, mean, method="decode")

    x = np.asarray(to_unit_range(batch["image"]))
    fake = np.asarray(reconstruct(subtree(params, "autoencoder"), x))
    kept = np.array([0, 2, 3])
    l1 = np.abs(fake - x).mean((1, 2, 3))[kept]
    mse = np.square(np.clip(fake, -1, 1) - x).mean((1, 2, 3))[kept]
    found = jax.jit(make().validate)(Context(params, {}, {}, {"train": batch}, KEY))
    assert found.keys() == {"l1", "psnr"} and all(count == 3 for _, count in found.values())
    np.testing.assert_allclose(found["l1"][0], l1.sum(), rtol=1e-5)
    np.testing.assert_allclose(found["psnr"][0], (10 * np.log10(4 / mse)).sum(), rtol=1e-5)


def test_measured_statistics_make_the_codecs_latents_standard(params, monkeypatch):
    monkeypatch.setattr(autoencoding, "STATISTICS_BATCHES", 3)
    batches = ({"train": rows(seed, n=8)} for seed in itertools.count())  # Never ends by itself.
    task = make()
    state = task.finish(Context(params, {}, {"other": jnp.ones(1)}, {}, KEY), batches)
    assert state.keys() == {"other", "latent/shift", "latent/scale"}

    @jax.jit
    def draws(network, image, key):
        moments = AUTOENCODER(network, to_unit_range(image), method="encode")
        return moments, gaussian.sample(moments, key)

    network = subtree(params, "autoencoder")
    found = [draws(network, rows(i, n=8)["image"], jax.random.key(i)) for i in range(3)]
    z = np.concatenate([z for _, z in found]).astype(np.float64)
    np.testing.assert_allclose(state["latent/shift"], z.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(state["latent/scale"], z.std((0, 1, 2)), rtol=1e-4)

    codec, frozen = AutoencoderCodec(AUTOENCODER, 2, 2), codec_params({**params, **state})
    standard = [codec.sample(frozen, m, jax.random.key(i)) for i, (m, _) in enumerate(found)]
    standard = np.concatenate(standard)
    np.testing.assert_allclose(standard.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(standard.std((0, 1, 2)), 1, atol=1e-4)


def test_the_preview_pairs_originals_with_reconstructions(params):
    batch = rows(n=20)
    images = jax.jit(make().preview)(Context(params, {}, {}, {"train": batch}, KEY))
    pairs = images["original_and_reconstruction"]
    assert pairs.shape == (32, 8, 8, 3) and pairs.dtype == jnp.uint8
    assert np.array_equal(pairs[::2], batch["image"][:16])


def test_a_decoder_trained_alone_keeps_the_statistics_of_its_latents():
    group = Group("autoencoder/decoder/", optax.sgd(1e-2), lambda n: 1e-2)
    params = {f"autoencoder/{part}/kernel": jnp.ones(1) for part in ("encoder", "decoder")}
    state = {"latent/shift": jnp.ones(2), "latent/scale": jnp.full(2, 3.0)}
    alone = replace(make(), groups={"autoencoder": group})
    assert alone.finish(Context(params, {}, state, {}, KEY), iter(())) is state
