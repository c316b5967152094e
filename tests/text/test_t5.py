"""T5's encoder read from folders, against transformers' classes and tokenizer on the same."""

import encoders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from emu_jax.errors import UserError
from emu_jax.nn.torch_layout import torch_paths
from emu_jax.text import pretrained
from emu_jax.text.encoder import make_encoder

TEXTS = ["a red fox", "", "cat " * 30]
LENGTH = 9


def tied_twice(folder):
    """As old files hold it: the one table under both of its names."""
    model = encoders.t5(folder)
    file = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"].clone()
    safetensors.torch.save_file(tensors, file)
    return model


def other_name(folder):
    """The table under the encoder's name alone."""
    model = encoders.t5(folder, relative_attention_num_buckets=6, num_layers=1)
    file = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    tensors["encoder.embed_tokens.weight"] = tensors.pop("shared.weight")
    safetensors.torch.save_file(tensors, file)
    return model


def sharded(folder):
    return encoders.t5(folder, shard="10KB", d_kv=16, num_heads=4, layer_norm_epsilon=1e-3)


def whole(folder):
    return encoders.t5(folder, whole=True).get_encoder()


@pytest.mark.parametrize("write", [tied_twice, other_name, sharded, whole])
def test_states_equal_transformers(write, tmp_path):
    reference = write(tmp_path)
    encoder = make_encoder("t5", LENGTH, path=tmp_path)
    assert (encoder.width, encoder.pooled_width) == (24, 0)
    tokens = encoder.tokenize(TEXTS)
    ids, mask = torch.tensor(tokens["ids"]), torch.tensor(tokens["mask"])
    with torch.no_grad():
        want = reference(input_ids=ids, attention_mask=mask).last_hidden_state
    params = {path: jnp.asarray(value) for path, value in encoder.tensors()}
    got = jax.jit(encoder.apply)(params, **tokens)
    np.testing.assert_allclose(got.states[tokens["mask"]], want[mask], atol=1e-4)
    np.testing.assert_array_equal(got.mask, tokens["mask"])  # the padding stays masked
    assert got.pooled is None


def test_tokens_equal_transformers(tmp_path):
    encoders.t5(tmp_path)
    got = make_encoder("t5", LENGTH, path=tmp_path).tokenize(TEXTS)
    tokenizer = T5Tokenizer.from_pretrained(str(tmp_path))
    want = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=LENGTH)
    np.testing.assert_array_equal(got["ids"], want["input_ids"])
    np.testing.assert_array_equal(got["mask"], want["attention_mask"])
    a, red, fox, cat, end = (
        tokenizer.convert_tokens_to_ids(piece) for piece in ("▁a", "▁red", "▁fox", "▁cat", "</s>")
    )
    assert got["ids"][0].tolist() == [a, red, fox, end, 0, 0, 0, 0, 0]
    assert got["ids"][1].tolist() == [end, *[0] * 8]
    assert got["ids"][2].tolist() == [*[cat] * 8, end]  # cut, and still ended
    assert list(got["mask"].sum(1)) == [4, 1, 9]


@pytest.mark.parametrize("padding", ["attended", "read"])
def test_the_generator_may_attend_to_padding_which_t5_reads_or_masks(padding, tmp_path):
    reference = encoders.t5(tmp_path)
    encoder = make_encoder("t5", LENGTH, path=tmp_path, padding=padding)
    tokens = encoder.tokenize(TEXTS)
    assert not tokens["mask"].all()
    mask = torch.tensor(tokens["mask"]) if padding == "attended" else None
    with torch.no_grad():
        ids = torch.tensor(tokens["ids"])
        want = reference(input_ids=ids, attention_mask=mask).last_hidden_state
    params = {path: jnp.asarray(value) for path, value in encoder.tensors()}
    got = jax.jit(encoder.apply)(params, **tokens)
    np.testing.assert_allclose(got.states, want, atol=1e-4)
    assert got.mask.all()
    # Another text cache than one of masked padding.
    assert encoder.settings() != make_encoder("t5", LENGTH, path=tmp_path).settings()


def test_lower_case_where_asked_for(tmp_path):
    encoders.t5(tmp_path)
    plain, small = (make_encoder("t5", LENGTH, path=tmp_path, lowercase=x) for x in (False, True))
    capitals = [text.upper() for text in TEXTS]
    np.testing.assert_array_equal(small.tokenize(capitals)["ids"], plain.tokenize(TEXTS)["ids"])
    assert np.any(plain.tokenize(capitals)["ids"] != plain.tokenize(TEXTS)["ids"])


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda f: None, r"has no tokenizer: it needs tokenizer\.json, or spiece\.model"),
        (lambda f: (f / "spiece.model").touch(), "`pip install sentencepiece protobuf`"),
        (lambda f: (f / "tokenizer.json").write_text("{"), "is not JSON at line 1"),
    ],
)
def test_a_tokenizer_that_cannot_be_read_is_one_sentence(write, words, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
    encoders.t5(tmp_path)
    encoder = make_encoder("t5", LENGTH, path=tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    write(tmp_path)
    with pytest.raises(UserError, match=words) as error:
        encoder.tokenize(TEXTS)
    assert "\n" not in str(error.value)


def test_dtype_and_shapes(tmp_path):
    encoders.t5(tmp_path)
    encoder = make_encoder("t5", LENGTH, path=tmp_path, dtype="bfloat16")
    tensors = dict(encoder.tensors())
    assert {path: (x.shape, x.dtype) for path, x in tensors.items()} == {
        path: (x.shape, x.dtype) for path, x in encoder.shapes().items()
    }
    told = jax.eval_shape(encoder.apply, encoder.shapes(), **encoder.tokenize(TEXTS))
    assert told.states.dtype == jnp.bfloat16


def test_only_the_gated_form_is_known(tmp_path):
    encoders.t5(tmp_path, feed_forward_proj="relu")
    with pytest.raises(UserError, match="feed-forward layers relu; only T5 v1"):
        make_encoder("t5", LENGTH, path=tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(length=1), "lengths from 2 on, not 1"),
        (dict(path=""), "Encoder t5 needs path"),
        (dict(path="", size="small", padding="some"), "masked, attended, read, not 'some'"),
    ],
)
def test_options_that_cannot_be(options, words, tmp_path):
    with pytest.raises(UserError, match=words):
        make_encoder("t5", **{"path": tmp_path, "length": LENGTH} | options)


@pytest.mark.parametrize(
    ("size", "width", "feed_forward", "layers", "heads"),
    [
        ("small", 512, 1024, 8, 6),
        ("base", 768, 2048, 12, 12),
        ("large", 1024, 2816, 24, 16),
        ("xl", 2048, 5120, 24, 32),
        ("xxl", 4096, 10240, 24, 64),
    ],
)
def test_a_published_size_without_its_folder_is_known_in_shape(
    size, width, feed_forward, layers, heads
):
    config = T5Config(
        vocab_size=32128,
        d_model=width,
        d_kv=64,
        d_ff=feed_forward,
        num_layers=layers,
        num_heads=heads,
        feed_forward_proj="gated-gelu",
    )
    with torch.device("meta"):
        reference = T5EncoderModel(config).state_dict()
    del reference["encoder.embed_tokens.weight"]
    encoder = make_encoder("t5", size=size)
    torch_paths(reference, encoder.shapes())  # refuses keys too many, too few or of another shape
    with pytest.raises(UserError, match="enough to plan a step"):
        next(encoder.tensors())
