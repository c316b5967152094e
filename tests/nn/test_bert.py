"""The BERT encoder against transformers' BertModel with random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from state_dicts import from_torch
from transformers import BertConfig, BertModel

from emu_jax.nn.bert import Bert
from emu_jax.nn.functional import Network

LENGTHS = (7, 3, 1)


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=11,
        layer_norm_eps=1e-12,
        hidden_act="gelu",
    )
    reference = BertModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    ours = Network(
        lambda rngs: Bert(
            vocabulary=50, width=24, layers=2, heads=3, feed_forward=40, positions=11, rngs=rngs
        )
    )
    return reference, ours, from_torch(reference.state_dict(), ours.shapes())


@pytest.fixture(scope="module")
def tokens():
    ids = np.random.default_rng(0).integers(1, 50, (len(LENGTHS), 7)).astype(np.int32)
    mask = np.arange(7) < np.array(LENGTHS)[:, None]
    return ids, mask


def test_equals_transformers(pair, tokens):
    reference, ours, params = pair
    ids, mask = tokens
    with torch.no_grad():
        want = reference(torch.tensor(ids), torch.tensor(mask)).last_hidden_state.numpy()
    got = np.asarray(jax.jit(ours)(params, ids, mask))
    np.testing.assert_allclose(got[mask], want[mask], atol=1e-4)


def test_padding_changes_nothing(pair, tokens):
    _, ours, params = pair
    ids, mask = tokens
    run = jax.jit(ours)
    padded_otherwise = np.where(mask, ids, 49)
    np.testing.assert_allclose(
        np.asarray(run(params, ids, mask))[mask],
        np.asarray(run(params, padded_otherwise, mask))[mask],
        atol=1e-6,
    )


def test_compute_dtype_follows_the_parameters(pair, tokens):
    _, ours, params = pair
    params = {path: value.astype(jnp.bfloat16) for path, value in params.items()}
    assert jax.eval_shape(ours, params, *tokens).dtype == jnp.bfloat16
