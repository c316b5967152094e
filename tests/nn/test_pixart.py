"""PixArt's denoiser against diffusers' PixArtTransformer2DModel."""

import jax
import jax.numpy as jnp
import numpy as np
import pipelines
import pytest
import torch
from diffusers import PixArtTransformer2DModel
from state_dicts import from_torch

from emu_jax.errors import UserError
from emu_jax.nn.functional import Network
from emu_jax.nn.pixart import PixArt
from emu_jax.nn.stack import relaid

QUICK = dict(compiler_options={"xla_backend_optimization_level": 0})
TEXT = 7
SIZES = dict(in_channels=3, context_width=TEXT, width=24, depth=2, heads=3)
# Sigma's, with a variance beside every number; and one trained on other patches and places.
NETWORKS = {
    "sigma": (
        dict(patch=2, span=4.0, out_channels=6),
        dict(patch_size=2, sample_size=16, interpolation_scale=2, out_channels=6),
    ),
    "plain": (
        dict(patch=1, span=5.0, out_channels=3),
        dict(patch_size=1, sample_size=5, interpolation_scale=None, out_channels=3),
    ),
}


def network(**more):
    return Network(lambda rngs: PixArt(**SIZES | more, rngs=rngs))


def reference(**settings):
    return pipelines.shaken(
        PixArtTransformer2DModel(
            in_channels=3,
            num_attention_heads=3,
            attention_head_dim=8,
            num_layers=2,
            cross_attention_dim=24,
            caption_channels=TEXT,
            use_additional_conditions=False,
            **settings,
        ),
        0.2,
    )


def inputs(height: int, width: int):
    rng = np.random.default_rng(0)
    x, text = rng.standard_normal((2, height, width, 3)), rng.standard_normal((2, 5, TEXT))
    mask = np.array([[True] * 5, [True] * 2 + [False] * 3])
    return np.float32(x), np.float32([3, 900]), np.float32(text), mask


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("shape", [(8, 8), (4, 12)], ids=["square", "wide"])
def test_a_call_is_diffusers(name, shape):
    sizes, settings = NETWORKS[name]
    model, ours = reference(**settings), network(**sizes)
    params = from_torch(model.state_dict(), ours.shapes())
    x, t, text, mask = inputs(*shape)
    with torch.no_grad():
        wanted = model(
            torch.tensor(x).permute(0, 3, 1, 2),
            encoder_hidden_states=torch.tensor(text),
            encoder_attention_mask=torch.tensor(mask).long(),
            timestep=torch.tensor(t),
        ).sample
    wanted = wanted.permute(0, 2, 3, 1).numpy()
    found = np.asarray(jax.jit(ours, **QUICK)(params, x, t, text, mask))
    error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
    print(f"{name}: a call differs by {error:.1e}")
    assert np.std(wanted) > 0.1 and found.shape == wanted.shape and error < 1e-4

    # As one loop, rematerialised, it is the same.
    looped = network(**sizes, scan=True, remat="dots")
    again = jax.jit(looped, **QUICK)(relaid(params, looped.shapes()), x, t, text, mask)
    np.testing.assert_allclose(again, found, atol=1e-5)


def test_masked_tokens_are_not_attended_to_and_everything_learns():
    sizes, settings = NETWORKS["sigma"]
    ours = network(**sizes)
    params = from_torch(reference(**settings).state_dict(), ours.shapes())
    x, t, text, mask = inputs(4, 4)
    call = jax.jit(ours, **QUICK)
    other = np.where(mask[..., None], text, text + 1)
    first = call(params, x, t, text, mask)
    np.testing.assert_array_equal(first, call(params, x, t, other, mask))
    assert np.any(first != call(params, x, t, text + 1, mask))

    slopes = jax.jit(jax.grad(lambda p: jnp.sum(ours(p, x, t, text, mask) ** 2)), **QUICK)(params)
    # Keys' biases shift all of a softmax's logits alike.
    still = [p for p, slope in slopes.items() if np.max(np.abs(slope)) < 1e-6]
    assert all(p.endswith("to_k/bias") for p in still)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(vector_width=4), "takes no vector"),
        (dict(heads=5), "width is 24; .* of its 5 heads"),
        (dict(width=6, heads=3), "width is 6; use a multiple of 4"),
        (dict(remat="all"), "remat is 'all'"),
    ],
)
def test_what_does_not_fit_is_refused(change, words):
    with pytest.raises(UserError, match=words):
        network(**NETWORKS["plain"][0] | change)


def test_a_map_that_patches_do_not_cover_is_refused():
    ours = network(**NETWORKS["sigma"][0])
    rest = jnp.zeros(1), jnp.zeros((1, 2, TEXT))
    with pytest.raises(UserError, match="3 x 4 does not divide into patches of 2 x 2"):
        jax.eval_shape(ours, ours.shapes(), jnp.zeros((1, 3, 4, 3)), *rest)
