"""aMUSEd's denoiser against diffusers' UVit2DModel."""

import jax
import jax.numpy as jnp
import numpy as np
import pipelines
import pytest
import torch
from diffusers import UVit2DModel
from state_dicts import from_torch

from emu_jax.errors import UserError
from emu_jax.nn.functional import Network
from emu_jax.nn.stack import relaid
from emu_jax.nn.uvit import GlobalResponseNorm, UVit

QUICK = dict(compiler_options={"xla_backend_optimization_level": 0})
CODES, VECTOR, CONTEXT = 11, 14, 10
SIZES = dict(codes=CODES, context_width=CONTEXT, vector_width=VECTOR)
# Odd widths; as many channels as width, so without a map between them, and halved.
PLAIN = dict(width=20, depth=2, heads=4, mlp_width=27, channels=9, embed_width=7, blocks=2)
PLAIN |= dict(block_heads=3, vocabulary=16)
HALVED = dict(width=12, depth=1, heads=2, mlp_width=10, channels=12, embed_width=5, blocks=1)
HALVED |= dict(block_heads=3, resample=True, eps=1e-4)


def network(**more):
    return Network(lambda rngs: UVit(**SIZES, **more, rngs=rngs))


def reference(a):
    return pipelines.shaken(
        UVit2DModel(
            hidden_size=a["width"],
            cond_embed_dim=VECTOR - 10,
            micro_cond_encode_dim=2,
            micro_cond_embed_dim=10,
            encoder_hidden_size=CONTEXT,
            vocab_size=a.get("vocabulary", CODES + 1),
            codebook_size=CODES,
            in_channels=a["embed_width"],
            block_out_channels=a["channels"],
            num_res_blocks=a["blocks"],
            downsample=a.get("resample", False),
            upsample=a.get("resample", False),
            block_num_heads=a["block_heads"],
            num_hidden_layers=a["depth"],
            num_attention_heads=a["heads"],
            intermediate_size=a["mlp_width"],
            layer_norm_eps=a.get("eps", 1e-6),
        ),
        0.2,
    )


@pytest.mark.parametrize("sizes", [PLAIN, HALVED], ids=["plain", "halved"])
def test_logits_are_diffusers(sizes):
    model, ours, rng = reference(sizes), network(**sizes), np.random.default_rng(0)
    params = from_torch(model.state_dict(), ours.shapes())
    x = rng.integers(0, CODES + 1, (2, 6, 4))
    assert np.any(x == CODES)
    rows = np.where(x == CODES, sizes.get("vocabulary", CODES + 1) - 1, x)
    text = rng.standard_normal((2, 5, CONTEXT)).astype(np.float32)
    pooled = rng.standard_normal((2, VECTOR - 10)).astype(np.float32)
    micro = np.float32([[16, 20, 0, 3, 6], [8, 8, 1, 0, 5.5]])
    with torch.no_grad():
        wanted = model(*map(torch.tensor, (rows, text, pooled, micro))).permute(0, 2, 3, 1).numpy()
    waves = np.stack([np.cos(micro), np.sin(micro)], -1).reshape(2, -1)
    vector = np.concatenate([pooled, waves], 1)
    call = jax.jit(ours, **QUICK)
    found = np.asarray(call(params, x, np.zeros(2), text, None, vector))
    error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
    print(f"a call differs by {error:.1e}")
    assert np.std(wanted) > 0.1 and found.shape == (2, 6, 4, CODES) and error < 1e-4

    if sizes["depth"] == 1:
        return
    # As one loop, rematerialised, it is the same.
    looped = network(**sizes, scan=True, remat="block")
    stacked = relaid(params, looped.shapes())
    again = jax.jit(looped, **QUICK)(stacked, x, np.zeros(2), text, None, vector)
    np.testing.assert_allclose(again, found, atol=1e-5)


def test_a_map_of_zeros_has_finite_gradients():
    """Its channels' energies are exactly 0, where a plain square root has no slope."""
    norm = GlobalResponseNorm(3)
    norm.gamma[...] = jnp.ones((1, 1, 1, 3))
    slope = jax.grad(lambda x: jnp.sum(norm(x)))(jnp.zeros((1, 2, 2, 3)))
    np.testing.assert_array_equal(slope, np.ones((1, 2, 2, 3)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(vocabulary=CODES), "vocabulary is 11; use more than 11"),
        (dict(heads=3), "20 is not a multiple of its 3"),
        (dict(block_heads=2), "9 is not a multiple of its 2"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, words):
    with pytest.raises(UserError, match=words):
        network(**PLAIN | change)


def test_an_odd_map_cannot_be_halved():
    ours = network(**HALVED)
    x = jnp.zeros((1, 3, 4), int)
    rest = jnp.zeros(1), jnp.zeros((1, 2, CONTEXT)), None, jnp.zeros((1, VECTOR))
    with pytest.raises(UserError, match="3 x 4 tokens cannot be halved"):
        jax.eval_shape(ours, ours.shapes(), x, *rest)
