"""CLIP's towers against transformers' CLIP with random weights, and in shape at every public size.

What lies in files, and both spellings of its keys, is tested in tests/text/test_clip.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from state_dicts import from_torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from emu_jax.nn.clip import ClipText, ClipVision
from emu_jax.nn.functional import Network
from emu_jax.nn.torch_layout import torch_paths


def shake(model):
    """Norms and biases are no longer ones and zeros."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def text_pair(eos=49, **changes):
    sizes = dict(vocabulary=50, width=24, layers=3, heads=3, feed_forward=40, positions=11)
    sizes |= dict(act="quick_gelu", eps=1e-5, projection=10) | changes
    config = CLIPTextConfig(
        vocab_size=sizes["vocabulary"],
        hidden_size=sizes["width"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        intermediate_size=sizes["feed_forward"],
        max_position_embeddings=sizes["positions"],
        hidden_act=sizes["act"],
        layer_norm_eps=sizes["eps"],
        projection_dim=sizes["projection"],
        bos_token_id=0,
        eos_token_id=eos,
        pad_token_id=1,
    )
    reference = shake(CLIPTextModelWithProjection(config))
    ours = Network(lambda rngs: ClipText(**sizes, eos=eos, rngs=rngs))
    return reference, ours, from_torch(reference.state_dict(), ours.shapes())


# Rows end in EOS (49) and are padded by it, by "!" (3), or not at all; the last lacks it.
IDS = np.array(
    [
        [0, 7, 9, 49, 49, 49, 49],
        [0, 7, 9, 12, 49, 3, 3],
        [0, 31, 8, 22, 5, 40, 49],
        [0, 31, 8, 22, 5, 40, 6],
    ],
    np.int32,
)


@pytest.mark.parametrize(
    ("eos", "changes"),
    [
        (49, {}),
        (2, dict(act="gelu", layers=2, eps=1e-3)),  # files older than their own EOS
        (49, dict(act="gelu", width=20, heads=5, layers=1, feed_forward=13, projection=31)),
    ],
)
def test_text_equals_transformers(eos, changes):
    reference, ours, params = text_pair(eos, **changes)
    with torch.no_grad():
        want = reference(torch.tensor(IDS), output_hidden_states=True)
        last = reference.text_model(torch.tensor(IDS)).last_hidden_state

    @jax.jit
    def run(params, ids):
        return ours(params, ids), ours(params, ids, layer="penultimate")

    (states, pooled), (penultimate, same) = run(params, IDS)
    np.testing.assert_allclose(states, last, atol=1e-4)
    np.testing.assert_allclose(penultimate, want.hidden_states[-2], atol=1e-4)
    np.testing.assert_allclose(pooled, want.text_embeds, atol=1e-4)
    np.testing.assert_array_equal(pooled, same)


def test_what_follows_the_end_of_text_changes_nothing_before_it():
    _, ours, params = text_pair()
    run = jax.jit(ours)
    otherwise = IDS.copy()
    otherwise[1, 5:] = 17
    (states, pooled), (other_states, other_pooled) = run(params, IDS), run(params, otherwise)
    np.testing.assert_array_equal(states[1, :5], other_states[1, :5])
    assert np.abs(states[1, 5:] - other_states[1, 5:]).max() > 0.1
    np.testing.assert_array_equal(pooled, other_pooled)


@pytest.mark.parametrize(
    "changes",
    [
        dict(image_size=12, patch_size=4, act="quick_gelu", projection=10),
        dict(image_size=15, patch_size=7, act="gelu", projection=31, layers=1, eps=1e-3),
    ],
)
def test_vision_equals_transformers(changes):
    sizes = dict(width=24, layers=2, heads=3, feed_forward=40, eps=1e-5) | changes
    config = CLIPVisionConfig(
        hidden_size=sizes["width"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        intermediate_size=sizes["feed_forward"],
        image_size=sizes["image_size"],
        patch_size=sizes["patch_size"],
        hidden_act=sizes["act"],
        layer_norm_eps=sizes["eps"],
        projection_dim=sizes["projection"],
    )
    reference = shake(CLIPVisionModelWithProjection(config))
    ours = Network(lambda rngs: ClipVision(**sizes, rngs=rngs))
    params = from_torch(reference.state_dict(), ours.shapes())
    side = sizes["image_size"]
    x = np.random.default_rng(0).normal(size=(2, side, side, 3)).astype(np.float32)
    with torch.no_grad():
        want = reference(torch.tensor(x.transpose(0, 3, 1, 2))).image_embeds
    np.testing.assert_allclose(jax.jit(ours)(params, x), want, atol=1e-4)


def test_compute_dtype_follows_the_parameters():
    _, ours, params = text_pair()
    params = {path: value.astype(jnp.bfloat16) for path, value in params.items()}
    states, pooled = jax.eval_shape(ours, params, IDS)
    assert states.dtype == pooled.dtype == jnp.bfloat16
    sizes = dict(image_size=8, patch_size=4, width=8, layers=1, heads=2, feed_forward=8)
    vision = Network(lambda rngs: ClipVision(**sizes, projection=None, rngs=rngs))
    half = {path: x.update(dtype=jnp.bfloat16) for path, x in vision.shapes().items()}
    seen = jax.eval_shape(vision, half, jnp.zeros((1, 8, 8, 3)))
    assert (seen.dtype, seen.shape) == (jnp.bfloat16, (1, 8))


# The numbers of the published configs.
TEXT_SIZES = {
    "ViT-L": (123_650_304, 768, 12, 12, 3072, "quick_gelu", 768),
    "OpenCLIP-H": (340_387_840 + 1024 * 1024, 1024, 23, 16, 4096, "gelu", 1024),
    "OpenCLIP-bigG": (694_659_840, 1280, 32, 20, 5120, "gelu", 1280),
}


@pytest.mark.parametrize("name", TEXT_SIZES)
def test_every_tensor_of_a_public_text_tower_has_its_place(name):
    count, width, layers, heads, feed_forward, act, projection = TEXT_SIZES[name]
    sizes = dict(width=width, layers=layers, heads=heads, feed_forward=feed_forward, act=act)
    ours = Network(lambda rngs: ClipText(**sizes, projection=projection, rngs=rngs))
    config = CLIPTextConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=feed_forward,
        hidden_act=act,
        projection_dim=projection,
    )
    with torch.device("meta"):
        reference = CLIPTextModelWithProjection(config).state_dict()
    torch_paths(reference, ours.shapes())  # refuses keys too many, too few or of another shape
    assert sum(x.size for x in ours.shapes().values()) == count


def test_every_tensor_of_the_public_picture_tower_has_its_place():
    config = CLIPVisionConfig(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        patch_size=14,
        projection_dim=768,
    )
    with torch.device("meta"):
        reference = CLIPVisionModelWithProjection(config).state_dict()
    torch_paths(reference, Network(lambda rngs: ClipVision(rngs=rngs)).shapes())
