"""T5's encoder against transformers' T5 with random weights, and in shape at XXL's size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from state_dicts import from_torch
from transformers import T5Config, T5EncoderModel
from transformers.models.t5.modeling_t5 import T5Attention

from emu_jax.nn.functional import Network
from emu_jax.nn.t5 import T5Encoder, relative_buckets
from emu_jax.nn.torch_layout import torch_paths

LENGTHS = (9, 4, 1)


def published(**sizes):
    return T5Config(
        vocab_size=sizes["vocabulary"],
        d_model=sizes["width"],
        num_layers=sizes["layers"],
        num_heads=sizes["heads"],
        d_kv=sizes["head_width"],
        d_ff=sizes["feed_forward"],
        relative_attention_num_buckets=sizes["buckets"],
        relative_attention_max_distance=sizes["max_distance"],
        layer_norm_epsilon=sizes["eps"],
        feed_forward_proj="gated-gelu",
    )


def pair(**changes):
    sizes = dict(vocabulary=50, width=24, layers=3, heads=3, head_width=5, feed_forward=40)
    sizes |= dict(buckets=8, max_distance=6, eps=1e-6) | changes
    torch.manual_seed(0)
    reference = T5EncoderModel(published(**sizes)).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(0.5).add_(0.2 * torch.randn_like(parameter))
    state = reference.state_dict()
    del state["encoder.embed_tokens.weight"]  # is shared.weight
    ours = Network(lambda rngs: T5Encoder(**sizes, rngs=rngs))
    return reference, ours, from_torch(state, ours.shapes())


@pytest.fixture(scope="module")
def tokens():
    ids = np.random.default_rng(0).integers(1, 50, (len(LENGTHS), 9)).astype(np.int32)
    mask = np.arange(9) < np.array(LENGTHS)[:, None]
    return np.where(mask, ids, 0), mask


@pytest.mark.parametrize(
    "changes",
    [{}, dict(heads=4, head_width=16, layers=1, buckets=32, max_distance=128, eps=1e-3)],
)
def test_equals_transformers(changes, tokens):
    reference, ours, params = pair(**changes)
    ids, mask = tokens
    with torch.no_grad():
        want = reference(torch.tensor(ids), torch.tensor(mask)).last_hidden_state.numpy()
    got = np.asarray(jax.jit(ours)(params, ids, mask))
    np.testing.assert_allclose(got[mask], want[mask], atol=1e-4)


def test_padding_changes_nothing(tokens):
    _, ours, params = pair()
    ids, mask = tokens
    run = jax.jit(ours)
    padded_otherwise = np.where(mask, ids, 49)
    np.testing.assert_allclose(
        np.asarray(run(params, ids, mask))[mask],
        np.asarray(run(params, padded_otherwise, mask))[mask],
        atol=1e-6,
    )


@pytest.mark.parametrize("buckets, max_distance", [(32, 128), (8, 20), (16, 9)])
def test_buckets_of_every_distance(buckets, max_distance):
    length = 300
    offset = torch.arange(length)[None, :] - torch.arange(length)[:, None]
    want = T5Attention._relative_position_bucket(
        offset, num_buckets=buckets, max_distance=max_distance
    )
    np.testing.assert_array_equal(relative_buckets(length, buckets, max_distance), want)


def test_compute_dtype_follows_the_parameters(tokens):
    _, ours, params = pair()
    params = {path: value.astype(jnp.bfloat16) for path, value in params.items()}
    assert jax.eval_shape(ours, params, *tokens).dtype == jnp.bfloat16


def test_every_tensor_of_xxl_has_its_place():
    sizes = dict(vocabulary=32128, width=4096, layers=24, heads=64, head_width=64)
    sizes |= dict(feed_forward=10240, buckets=32, max_distance=128, eps=1e-6)
    with torch.device("meta"):
        reference = T5EncoderModel(published(**sizes)).state_dict()
    del reference["encoder.embed_tokens.weight"]
    ours = Network(lambda rngs: T5Encoder(rngs=rngs)).shapes()  # XXL is the default
    torch_paths(reference, ours)  # refuses keys too many, too few or of another shape
    assert sum(x.size for x in ours.values()) == 4_762_310_656
