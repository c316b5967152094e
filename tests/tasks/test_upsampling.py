"""The low-resolution condition: pixels against torch's resizing and the closed form of their noise;
tokens by a denoiser that is a table of what they stand for.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from flax import nnx

from emu_jax.errors import UserError
from emu_jax.nn.functional import Network
from emu_jax.process.decoding import ParallelDecoding
from emu_jax.process.masking import MaskingProcess
from emu_jax.process.noise import normal
from emu_jax.process.schedules import Cosine, Discrete
from emu_jax.tasks.base import Context
from emu_jax.tasks.codecs import CODEBOOK, TokenCodec
from emu_jax.tasks.generation import Generation
from emu_jax.tasks.sampling import Sampling
from emu_jax.tasks.upsampling import LOW_CODEC, LowResolution, LowTokens, shrink

KEY = jax.random.key(3)
COLOURS = np.array([[-1, -1, -1], [1, -1, -1], [1, 1, 1]], np.float32)  # three codes
# What two fine tokens side by side are together, for each of two coarse tokens.
JOINT = np.array(
    [
        [[0.35, 0.05, 0.1], [0.02, 0.2, 0.03], [0.05, 0.05, 0.15]],
        [[0.04, 0.3, 0.06], [0.1, 0.05, 0.15], [0.2, 0.06, 0.04]],
    ]
)


class Mosaic(nnx.Module):
    """An autoencoder of means of 2 x 2 pixels, the codes being colours; no parameters."""

    def __init__(self, *, rngs):
        pass

    def encode(self, x):
        return shrink(x, 2)

    def decode(self, z):
        return jnp.repeat(jnp.repeat(z, 2, 1), 2, 2)


class Plain(nnx.Module):
    """A conditioner that has nothing to say."""

    def __init__(self, *, rngs):
        pass

    def __call__(self, encoded, sizes):
        return jnp.zeros((len(sizes), 1, 1)), jnp.ones((len(sizes), 1), bool), None

    unconditional = __call__


class Oracle(nnx.Module):
    """Of maps of 1 x 2 the logits of each token given the other, where that is not masked, and the
    coarse token.
    """

    def __init__(self, *, rngs):
        pass

    def __call__(self, x, t, context, mask, vector=None, *, low):
        first, second = JOINT / JOINT.sum(1, keepdims=True), JOINT / JOINT.sum(2, keepdims=True)
        first = np.concatenate([first.swapaxes(1, 2), JOINT.sum(2)[:, None]], 1)  # [low, given, k]
        second = np.concatenate([second, JOINT.sum(1)[:, None]], 1)
        low, x = low[:, 0, 0], x[:, 0]
        found = jnp.asarray(first)[low, x[:, 1]], jnp.asarray(second)[low, x[:, 0]]
        return jnp.log(jnp.stack(found, 1))[:, None]


MOSAIC = Network(lambda rngs: Mosaic(rngs=rngs))
COARSE, FINE = (TokenCodec(MOSAIC, len(COLOURS), 3, 2) for _ in range(2))
# The coarse codebook has the same colours, numbered from the other end.
FROZEN = {
    "codec": {CODEBOOK: jnp.asarray(COLOURS)},
    LOW_CODEC: {CODEBOOK: jnp.asarray(COLOURS[::-1])},
}


def tokens_of_tokens(denoiser, factor=2, **changes):
    """A super-resolution stage with a denoiser of no parameters."""
    arguments = dict(
        denoiser=Network(lambda rngs: denoiser(rngs=rngs)),
        conditioner=Network(lambda rngs: Plain(rngs=rngs)),
        codec=FINE,
        process=MaskingProcess(len(COLOURS)),
        encoders={},
        null={},
        sampling=Sampling(ParallelDecoding(1e4), steps=2, guidance_scale=3.0),
        groups={},
        frozen={},
        low=LowTokens(COARSE, factor),
    )
    return Generation(**(arguments | changes))


X = np.random.default_rng(0).standard_normal((2, 8, 12, 3), np.float32)


def torched(x):
    return torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("factor", [2, 4])
def test_shrinking_and_enlarging_equal_torchs(factor):
    low = LowResolution(factor)
    small = shrink(X, factor)
    want = F.avg_pool2d(torched(X), factor)
    np.testing.assert_allclose(torched(small), want, atol=1e-6)
    want = F.interpolate(want, scale_factor=factor, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(torched(low.enlarge(small)), want, atol=1e-5)


@pytest.mark.parametrize("factor", [2, 4])
def test_enlarging_from_corner_to_corner_equals_torchs(factor):
    low = LowResolution(factor, align_corners=True)
    size = (8 * factor, 12 * factor)
    want = F.interpolate(torched(X), size, mode="bilinear", align_corners=True)
    np.testing.assert_allclose(torched(low.enlarge(X)), want, atol=1e-5)


def test_noise_by_steps_is_a_schedulers_and_told_as_one():
    schedule = Discrete("cosine")
    low = LowResolution(2, level=0.251, schedule=schedule)
    seen = low.sampling_conditions(KEY, X)
    np.testing.assert_array_equal(seen["level"], [250, 250])
    noise = normal(KEY, (2, 16, 24, 3))
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    want = scheduler.add_noise(
        torched(low.enlarge(X)), torched(noise), torch.tensor([250, 250])
    ).permute(0, 2, 3, 1)
    np.testing.assert_allclose(seen["spatial"], want, atol=1e-5)
    told = low.training_conditions(KEY, jnp.zeros((400, 2, 2, 3)))["level"]
    np.testing.assert_array_equal(told, jnp.round(told))  # steps, as those of times
    assert 0 <= told.min() < 50 and 950 < told.max() <= 999
    with pytest.raises(UserError, match=r"schedule is Cosine, which has no discrete steps"):
        LowResolution(2, schedule=Cosine())


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_noise_of_a_level_has_its_mean_and_variance(level):
    low = LowResolution(2)
    z = jnp.full((64, 16, 16, 3), 0.7)
    seen, told = low.augment(KEY, z, level)
    assert seen.shape == (64, 32, 32, 3)
    np.testing.assert_allclose(told, 1000 * level)
    n = seen.size
    sigma = np.sin(np.pi * level / 2)
    np.testing.assert_allclose(seen.mean(), 0.7 * np.cos(np.pi * level / 2), atol=4 / n**0.5)
    np.testing.assert_allclose(seen.std(), sigma, atol=4 / n**0.5)


def test_a_rows_noise_is_its_own_keys():
    low = LowResolution(2)
    keys = jax.random.split(KEY, 2)
    both, _ = low.augment(keys, X, 0.5)
    alone, _ = low.augment(keys[1:], X[1:], 0.5)
    np.testing.assert_allclose(both[1:], alone, atol=1e-6)  # to the rounding of vector units


def test_levels_in_training_are_all_and_told():
    low = LowResolution(2)
    seen, told = low.training_conditions(KEY, jnp.zeros((400, 4, 4, 3))).values()
    # Of nothing but noise: its deviation is the level's sine, row by row.
    np.testing.assert_allclose(
        seen.std((1, 2, 3)), np.sin(np.pi / 2 * told / 1000), atol=0.25, rtol=0.25
    )
    assert told.min() < 50 and told.max() > 950 and abs(told.mean() - 500) < 60


def test_windows_are_parts_of_their_pictures_everywhere():
    x = jnp.arange(8 * 12, dtype=jnp.float32).reshape(1, 8, 12, 1).repeat(3, -1).repeat(300, 0)
    windows = LowResolution(2, crop=4).window(KEY, x)
    assert windows.shape == (300, 4, 4, 3)
    corners = {(int(c) // 12, int(c) % 12) for c in windows[:, 0, 0, 0]}
    assert corners == {(i, j) for i in range(5) for j in range(9)}
    first = windows[0, :, :, 0]
    np.testing.assert_array_equal(first - first[0, 0], x[0, :4, :4, 0])
    np.testing.assert_array_equal(LowResolution(2).window(KEY, x), x)


def test_tokens_are_the_shrunk_pictures_own():
    """Squares of one colour, of 4 pixels a side: one token each of the picture half as large."""
    wanted = np.random.default_rng(0).integers(0, 3, (2, 3, 5))
    x = jnp.asarray(COLOURS[2 - wanted].repeat(4, 1).repeat(4, 2))
    low = LowTokens(COARSE, 2)
    np.testing.assert_array_equal(low.latents(FROZEN, x)["low"], wanted)
    fine = FINE.moments(FROZEN["codec"], x)
    np.testing.assert_array_equal(fine, 2 - wanted.repeat(2, 1).repeat(2, 2))
    np.testing.assert_array_equal(low.to_image(FROZEN, jnp.asarray(wanted)), shrink(x, 2))
    # Given are tokens, or a picture as small as what they stand for.
    small = ((np.asarray(shrink(x, 2)) + 1) * 127.5).astype(np.uint8)
    for shown in (jnp.asarray(wanted), jnp.asarray(small)):
        np.testing.assert_array_equal(low.encode(FROZEN, shown), wanted)
    assert low.scale == 4 and low.blank(2, 20).shape == (2, 5, 5)


def test_fine_tokens_are_drawn_from_their_law_given_the_coarse_ones():
    """Two steps in any order draw both tokens from their joint distribution, whatever guidance: its
    other condition, too, is shown the coarse tokens.
    """
    rows = 20_000
    task = tokens_of_tokens(Oracle)

    @jax.jit
    def draw(low):
        sizes, keys = jnp.zeros((rows, 6), int), jax.random.split(KEY, rows)
        return task.generate({}, FROZEN, {}, sizes, keys, (1, 2), low=low, decode=False)

    for low, joint in enumerate(JOINT):
        x = np.asarray(draw(jnp.full((rows, 1, 1), low)))[:, 0]
        found = np.bincount(3 * x[:, 0] + x[:, 1], minlength=9).reshape(3, 3) / rows
        error = np.abs(found - joint) / np.sqrt(joint * (1 - joint) / rows)
        assert error.max() < 4.5
        assert np.abs(found - JOINT[1 - low]).max() > 0.1


class Marginal(nnx.Module):
    """Each token by itself, given the coarse one at its place."""

    def __init__(self, *, rngs):
        pass

    def __call__(self, x, t, context, mask, vector=None, *, low):
        low = low.repeat(x.shape[1] // low.shape[1], 1).repeat(x.shape[2] // low.shape[2], 2)
        return jnp.log(jnp.asarray(JOINT.sum(2)))[low]


@pytest.mark.parametrize("cached", [False, True])
def test_the_loss_is_the_cross_entropy_given_the_coarse_tokens(cached):
    """Of pictures of one colour, so that it does not matter which of a row's tokens are masked."""
    colour, n = np.array([1, 2, 1, 2]), 4
    task = tokens_of_tokens(Marginal)
    image = (
        ((COLOURS[colour] + 1) * 127.5).astype(np.uint8)[:, None, None].repeat(8, 1).repeat(8, 2)
    )
    rows = {
        "image": jnp.asarray(image),
        "sizes": jnp.zeros((n, 6), int),
        "valid": jnp.ones(n, bool),
    }
    if cached:
        latents = task.latents(FROZEN, rows.pop("image"))
        assert {name: x.shape for name, x in latents.items()} == dict(
            moments=(n, 4, 4), low=(n, 2, 2)
        )
        rows |= latents

    def loss(group, batch):
        return task.loss(group, Context({}, FROZEN, {}, {"train": batch}, KEY)).value

    x0 = jnp.asarray(colour)[:, None, None].repeat(4, 1).repeat(4, 2)
    weight = task.process.corrupt(jax.random.split(KEY, 3)[2], x0).weight
    entropy = -np.log(JOINT.sum(2)[2 - colour, colour])
    np.testing.assert_allclose(loss("generator", rows), np.mean(weight * entropy), rtol=1e-5)
    sums = task.validate(Context({}, FROZEN, {}, {"train": rows}, KEY))
    assert sums["loss"][1] == n and np.isfinite(sums["loss"][0])
    shown = jax.jit(lambda rows: task.preview(Context({}, FROZEN, {}, {"train": rows}, KEY)))(rows)
    np.testing.assert_array_equal(shown["low_resolution"], image[:, ::2, ::2])
    assert shown["samples"].shape == image.shape


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LowResolution(1), "factor is 1; use 2 or more"),
        (lambda: LowResolution(2, level=1.5), "level is 1.5; use a value from 0 to 1"),
        (lambda: LowResolution(4, crop=6), "crop is 6; use a multiple of the factor, 4"),
        (lambda: shrink(X, 3), "8 x 12 pixels cannot be shrunk 3-fold"),
        (lambda: LowResolution(2, crop=10).window(KEY, X), "is 10, but an image has only 8x12"),
        (lambda: LowTokens(COARSE, 0), "factor is 0; use 1 or more"),
        (lambda: LowTokens(COARSE, 2).latents({}, jnp.zeros((1, 6, 8, 3))), "has 3 x 4 pixels"),
    ],
)
def test_what_does_not_fit_is_refused(make, words):
    with pytest.raises(UserError, match=words):
        make()
