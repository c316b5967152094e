"""Self-attention guidance against the functions of diffusers' pipeline, on a small U-Net."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.pipelines.deprecated.stable_diffusion_sag.pipeline_stable_diffusion_sag import (
    CrossAttnStoreProcessor,
    StableDiffusionSAGPipeline,
    gaussian_blur_2d,
)
from state_dicts import from_torch

from emu_jax.errors import UserError
from emu_jax.nn.functional import Network
from emu_jax.nn.unet import UNet
from emu_jax.process.gaussian import GaussianProcess, Prediction
from emu_jax.process.guidance import guided
from emu_jax.process.schedules import Discrete
from emu_jax.process.self_attention import blur, self_attention_guided
from emu_jax.tasks.sampling import Sampling

STEP, TIME, SCALE, SAG = 300, 301 / 1000, 3.0, 0.75
TRAITS = dict(in_channels=4, out_channels=4, widths=(32, 64), blocks=1, heads=2, context_width=8)
TRAITS |= dict(transformer_depth=0)  # the middle block has an attention all the same
NETWORK = Network(lambda rngs: UNet(**TRAITS, linear_projection=False, rngs=rngs))
RUN = jax.jit(partial(NETWORK, attention=True))
SHAPES = NETWORK.shapes()
EPS = GaussianProcess(Discrete("scaled_linear"), prediction="eps", time_input="index")


@pytest.fixture(scope="module")
def theirs():
    """diffusers' U-Net, and its pipeline's state without the rest."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=8,
    ).eval()
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            # Sharp attention, so that the mask is neither empty nor full.
            parameter.mul_(4 if "to_q" in name or "to_k" in name else 1)
    store = CrossAttnStoreProcessor()
    unet.mid_block.attentions[0].transformer_blocks[0].attn1.processor = store
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False
    )
    return SimpleNamespace(unet=unet, scheduler=scheduler, store=store)


@pytest.fixture(scope="module")
def inputs():
    """x, and the states of the two texts."""
    x, *texts = (
        np.random.default_rng(i).normal(size=size).astype(np.float32)
        for i, size in enumerate([(2, 10, 6, 4), (2, 3, 8), (2, 3, 8)])
    )
    return x, *({"context": jnp.asarray(text)} for text in texts)


def guided_by_theirs(theirs, x, cond, uncond):
    """The pipeline's step from x to the guided eps, in its order, with its own functions."""
    pipeline, t = StableDiffusionSAGPipeline, torch.tensor(STEP)
    x = torch.tensor(x).permute(0, 3, 1, 2)

    def call(x, conditions):
        text = torch.tensor(np.asarray(conditions["context"]))
        with torch.no_grad():
            return theirs.unet(x, t, text).sample

    base = call(x, uncond or cond)
    attention = theirs.store.attention_probs
    eps = base if uncond is None else base + SCALE * (call(x, cond) - base)
    clean = pipeline.pred_x0(theirs, x, base, t)
    noise = pipeline.pred_epsilon(theirs, x, base, t)
    degraded = pipeline.sag_masking(theirs, clean, attention, (5, 3), t, noise)
    share = (degraded != x).any(1).float().mean()
    eps = eps + SAG * (base - call(degraded, uncond or cond))
    return eps.permute(0, 2, 3, 1).numpy(), float(share)


@pytest.mark.parametrize("free", [True, False], ids=["classifier-free", "alone"])
def test_every_prediction_is_guided_as_the_pipeline_guides_eps(free, theirs, inputs):
    x, cond, uncond = inputs
    uncond = uncond if free else None
    wanted, share = guided_by_theirs(theirs, x, cond, uncond)
    assert 0.05 < share < 0.95  # of the positions are blurred
    params = from_torch(theirs.unet.state_dict(), SHAPES)
    t = jnp.full(2, TIME, jnp.float32)
    calls = []

    def network(process):
        def call(x, t, conditions):
            """The same eps, as the output of another prediction."""
            calls.append(len(x))
            timestep = EPS.timestep_input(t)
            eps, attention = RUN(params, x, timestep, **conditions)
            alpha, sigma = (
                f(t)[:, None, None, None] for f in (EPS.schedule.alpha, EPS.schedule.sigma)
            )
            return process.output(Prediction((x - sigma * eps) / alpha, eps), t), attention

        return call

    for prediction in ("eps", "v", "flow", "x0"):
        process = GaussianProcess(EPS.schedule, prediction=prediction)
        denoise = self_attention_guided(network(process), process, cond, uncond, SAG, SCALE)
        found = process.predict(denoise(x, t), x, t).eps
        np.testing.assert_allclose(found, wanted, atol=2e-4, err_msg=prediction)
    assert calls[:2] == ([4, 2] if free else [2, 2])
    without = guided(lambda *a: network(EPS)(*a)[0], cond, uncond, SCALE)(x, t)
    assert np.abs(without - wanted).max() > 0.02


def test_the_blur_is_the_pipeline_s_and_is_defined_on_small_maps():
    x = np.random.default_rng(0).normal(size=(2, 9, 5, 3)).astype(np.float32)
    wanted = gaussian_blur_2d(torch.tensor(x).permute(0, 3, 1, 2), 9, 1.0).permute(0, 2, 3, 1)
    np.testing.assert_allclose(blur(x), wanted, atol=1e-6)
    np.testing.assert_allclose(blur(jnp.ones((1, 2, 1, 1))), 1, atol=1e-6)


def test_the_program_is_the_same_where_the_map_is_not_asked_for(inputs):
    x, cond, _ = inputs
    plain, named, asked = (
        str(jax.make_jaxpr(lambda p, more=more: NETWORK(p, x, jnp.ones(2), **cond, **more))(SHAPES))
        for more in ({}, {"attention": False}, {"attention": True})
    )
    assert plain == named
    assert len(asked) > len(plain)


@pytest.mark.parametrize(
    "traits",
    [dict(mid_depth=0), dict(only_cross_attention=(False, True)), dict(attention="added_kv")],
)
def test_a_network_without_the_map_is_refused(traits):
    network = Network(lambda rngs: UNet(**TRAITS | traits, rngs=rngs))
    with pytest.raises(UserError, match="needs a U-Net with self-attention of its own"):
        jax.eval_shape(partial(network, method="require_attention"), network.shapes())


def test_a_scanned_middle_block_has_the_map():
    network = Network(lambda rngs: UNet(**TRAITS, scan=True, rngs=rngs))
    jax.eval_shape(partial(network, method="require_attention"), network.shapes())


def test_a_scale_below_zero_is_refused_and_calls_are_counted():
    sampler = SimpleNamespace(calls=lambda steps: steps)
    with pytest.raises(UserError, match="sag_scale is -1; use 0 or more"):
        Sampling(sampler, sag_scale=-1)
    counts = [
        Sampling(sampler, 10, guidance_scale=scale, sag_scale=sag).calls
        for scale, sag in ((1, 0), (5, 0), (1, 0.75), (5, 0.75))
    ]
    assert counts == [10, 20, 20, 30]
