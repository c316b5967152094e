"""Guidance against its equations written in numpy, and diffusers where it has a function."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers import DDPMScheduler
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from emu_jax.process.guidance import (
    dynamic_threshold,
    guide,
    guided,
    guided_by_image,
    rescale,
    static_clip,
)

C, U = jnp.float32(np.random.default_rng(0).normal(size=(2, 3, 4, 4, 2)))


def as_tensor(x):
    return torch.tensor(np.asarray(x))


def test_guide_runs_from_uncond_through_cond_and_beyond():
    np.testing.assert_allclose(guide(C, U, 0.0), U, atol=1e-6)
    np.testing.assert_allclose(guide(C, U, 1.0), C, atol=1e-6)
    np.testing.assert_allclose(guide(C, U, 5.0), 5 * C - 4 * U, atol=1e-5)


def test_rescale_is_diffusers():
    ours = rescale(5 * C - 4 * U, C, 0.7)
    theirs = rescale_noise_cfg(as_tensor(5 * C - 4 * U), as_tensor(C), guidance_rescale=0.7)
    # torch divides by n - 1 in both deviations, whose ratio is the same.
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)
    np.testing.assert_allclose(np.std(rescale(9 * C, C, 1.0)), np.std(C), rtol=1e-5)


def test_guided_runs_both_conditions_in_one_call_and_keeps_rows_apart():
    calls = []

    def network(x, t, conditioning):
        calls.append(x.shape)
        return x * t[:, None, None, None] + conditioning["text"][:, None, None, :]

    x = jax.random.normal(jax.random.key(0), (3, 4, 4, 2))
    t = jnp.array([0.1, 0.5, 0.9])
    cond, uncond = {"text": jnp.asarray(C[:, 0, 0])}, {"text": jnp.asarray(U[:, 0, 0])}
    got = guided(network, cond, uncond, 3.0)(x, t)
    assert calls == [(6, 4, 4, 2)]
    expected = guide(network(x, t, cond), network(x, t, uncond), 3.0)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    got = guided(network, cond, uncond, 3.0, phi=0.7)(x, t)
    np.testing.assert_allclose(got, rescale(expected, network(x, t, cond), 0.7), atol=1e-5)
    np.testing.assert_array_equal(guided(network, cond, None, 3.0)(x, t), network(x, t, cond))


def test_a_variance_is_the_conditions_own():
    def network(x, t, conditioning):
        return jnp.concatenate([x, 2 * x], -1) + conditioning[:, None, None, None]

    def split(output):
        return jnp.split(output, 2, -1)

    x, t = jnp.ones((2, 1, 1, 1)), jnp.ones(2)
    got = guided(network, jnp.array([1.0, 3.0]), jnp.zeros(2), 2.0, split=split)(x, t)
    np.testing.assert_allclose(got[:, 0, 0], [[3.0, 3.0], [7.0, 5.0]])


def test_a_negative_prompt_is_another_u():
    def network(x, t, conditioning):
        return x + conditioning[:, None, None, None]

    x, t = jnp.zeros((2, 1, 1, 1)), jnp.ones(2)
    got = guided(network, jnp.array([1.0, 1.0]), jnp.array([0.0, -1.0]), 2.0)(x, t)
    np.testing.assert_allclose(got[:, 0, 0, 0], [2.0, 3.0])


def test_static_clip():
    np.testing.assert_array_equal(static_clip(3 * C), np.clip(3 * C, -1, 1))


def test_dynamic_threshold_is_diffusers():
    scheduler = DDPMScheduler(thresholding=True, sample_max_value=1e6)
    for x0 in (3 * C, 0.1 * C):
        theirs = scheduler._threshold_sample(as_tensor(x0)).numpy()
        np.testing.assert_allclose(dynamic_threshold(x0), theirs, atol=1e-6)
    assert float(jnp.abs(dynamic_threshold(3 * C)).max()) <= 1
    np.testing.assert_array_equal(dynamic_threshold(0.1 * C), 0.1 * C)
    for limit in (1.0, 1.5, 9.0):  # DeepFloyd IF's stages have the first two
        told = dict(dynamic_thresholding_ratio=0.95, sample_max_value=limit)
        scheduler = DDPMScheduler(thresholding=True, **told)
        theirs = scheduler._threshold_sample(as_tensor(3 * C)).numpy()
        np.testing.assert_allclose(dynamic_threshold(3 * C, 0.95, limit), theirs, atol=1e-6)


def test_an_editing_model_is_guided_by_text_and_image():
    """In one call; rows stay apart, and with equal scales both conditions act as one."""
    x, t = jnp.array([1.0, 2.0]), jnp.array([0.5, 0.5])
    network = lambda x, t, c: x * c  # noqa: E731
    both, image, none = jnp.array([5.0, 7.0]), jnp.array([3.0, 4.0]), jnp.array([1.0, 2.0])
    got = guided_by_image(network, (both, image, none), 3.0, 1.5)(x, t)
    np.testing.assert_allclose(got, x * (none + 1.5 * (image - none) + 3.0 * (both - image)))
    together = guided_by_image(network, (both, image, none), 3.0, 3.0)(x, t)
    np.testing.assert_allclose(together, guided(network, both, none, 3.0)(x, t))
