"""Stable Diffusion 3's denoiser against diffusers' SD3Transformer2DModel."""

import jax
import jax.numpy as jnp
import numpy as np
import pipelines
import pytest
import torch
from diffusers import SD3Transformer2DModel
from state_dicts import from_torch

from emu_jax.errors import UserError
from emu_jax.nn.functional import Network
from emu_jax.nn.mmdit import MMDiT
from emu_jax.nn.stack import relaid, unstacked

QUICK = dict(compiler_options={"xla_backend_optimization_level": 0})
TEXT, POOLED = 7, 5
SIZES = dict(in_channels=3, out_channels=3, context_width=TEXT, vector_width=POOLED, patch=2)
SIZES |= dict(width=24, depth=3, heads=3, table=6, span=4.0)


def network(**more):
    return Network(lambda rngs: MMDiT(**SIZES | more, rngs=rngs))


def reference(**settings):
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=3,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=3,
        joint_attention_dim=TEXT,
        caption_projection_dim=24,
        pooled_projection_dim=POOLED,
        out_channels=3,
        pos_embed_max_size=6,
        **settings,
    )


def inputs(height: int, width: int):
    rng = np.random.default_rng(0)
    sizes = (2, height, width, 3), (2, 5, TEXT), (2, POOLED)
    x, text, vector = (np.float32(rng.standard_normal(size)) for size in sizes)
    return x, np.float32([3, 900]), text, vector


@pytest.mark.parametrize("qk_norm", [None, "rms_norm"])
@pytest.mark.parametrize("shape", [(8, 8), (4, 12)], ids=["square", "wide"])
def test_a_call_is_diffusers(qk_norm, shape):
    model, ours = pipelines.shaken(reference(qk_norm=qk_norm), 0.2), network(qk_norm=bool(qk_norm))
    params = from_torch(model.state_dict(), ours.shapes())
    x, t, text, vector = inputs(*shape)
    with torch.no_grad():
        wanted = model(
            torch.tensor(x).permute(0, 3, 1, 2),
            encoder_hidden_states=torch.tensor(text),
            pooled_projections=torch.tensor(vector),
            timestep=torch.tensor(t),
        ).sample
    wanted = wanted.permute(0, 2, 3, 1).numpy()
    mask = np.ones((2, 5), bool)
    found = np.asarray(jax.jit(ours, **QUICK)(params, x, t, text, mask, vector))
    error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
    print(f"a call differs by {error:.1e}")
    assert np.std(wanted) > 0.1 and found.shape == x.shape and error < 1e-4

    # As one loop but for the last layer, rematerialised, it is the same; and cut again.
    looped = network(qk_norm=bool(qk_norm), scan=True, remat="dots")
    stacked = relaid(params, looped.shapes())
    assert stacked.keys() == looped.shapes().keys()
    again = jax.jit(looped, **QUICK)(stacked, x, t, text, None, vector)
    np.testing.assert_allclose(again, found, atol=1e-5)
    assert unstacked(stacked).keys() == params.keys()


def test_the_position_table_starts_as_diffusers_does_and_does_not_train():
    ours = network()
    params = jax.jit(ours.init, **QUICK)(jax.random.key(0))
    table = reference().pos_embed.pos_embed.numpy()
    np.testing.assert_allclose(params["pos_embed/pos_embed"], table, atol=1e-6)
    params["proj_out/kernel"] = jnp.ones_like(params["proj_out/kernel"])
    x, t, text, vector = inputs(4, 4)

    def loss(params):
        return jnp.sum(ours(params, x, t, text, None, vector)[..., 0] ** 2)

    slopes = jax.jit(jax.grad(loss), **QUICK)(params)
    assert not np.any(slopes["pos_embed/pos_embed"]) and np.any(slopes["pos_embed/proj/kernel"])


def test_masked_tokens_are_not_attended_to():
    ours = network()
    params = from_torch(pipelines.shaken(reference(), 0.2).state_dict(), ours.shapes())
    x, t, text, vector = inputs(4, 4)
    mask = np.array([[True] * 5, [True] * 2 + [False] * 3])
    call = jax.jit(ours, **QUICK)
    first = call(params, x, t, text, mask, vector)
    other = np.where(mask[..., None], text, text + 1)
    np.testing.assert_array_equal(first, call(params, x, t, other, mask, vector))
    assert np.any(first != call(params, x, t, text + 1, mask, vector))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(vector_width=None), "needs a vector"),
        (dict(heads=5), "width is 24; .* of its 5 heads"),
        (dict(remat="all"), "remat is 'all'"),
    ],
)
def test_what_does_not_fit_is_refused(change, words):
    with pytest.raises(UserError, match=words):
        network(**change)


@pytest.mark.parametrize("shape", [(3, 4), (4, 14)])
def test_a_map_beyond_the_table_or_between_patches_is_refused(shape):
    ours = network()
    x, t, text, vector = inputs(*shape)
    with pytest.raises(UserError, match="patches of 2 x 2, at most 6 of them"):
        jax.eval_shape(ours, ours.shapes(), x, t, text, None, vector)
