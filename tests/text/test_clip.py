"""CLIP's towers read from folders, against transformers' classes and tokenizer on the same."""

import math
import pickle

import encoders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer

from emu_jax.errors import UserError
from emu_jax.text.clip import make_clip_images
from emu_jax.text.encoder import make_encoder

TEXTS = ["A red fox.", "", "cat 7, " * 9]
LENGTH = 12


def params_of(encoder):
    return {path: jnp.asarray(value) for path, value in encoder.tensors()}


def plain(folder):
    """As transformers 5 writes a text model: no prefix."""
    return encoders.clip_text(folder)


def public(folder):
    """As public files spell it, with an EOS that the config gets wrong."""
    model = encoders.clip_text(folder, pad="!", eos_token_id=2, hidden_act="gelu")
    encoders.respell(folder)
    return model


def sharded(folder):
    return encoders.clip_text(
        folder, projection=True, shard="5KB", pad="!", num_hidden_layers=3, layer_norm_eps=1e-3
    )


@pytest.mark.parametrize(
    ("write", "pooled_width"),
    [(plain, 24), (public, 24), (sharded, 10), (encoders.clip_whole, 14)],
)
def test_states_and_pooled_equal_transformers(write, pooled_width, tmp_path):
    reference = write(tmp_path)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 3) == (write is sharded)
    encoder = make_encoder("clip", LENGTH, path=tmp_path)
    assert (encoder.width, encoder.pooled_width) == (24, pooled_width)
    tokens = encoder.tokenize(TEXTS)
    ids = torch.tensor(tokens["ids"])
    with torch.no_grad():
        if write is encoders.clip_whole:
            want = reference.get_text_features(ids)
            last, pooled = want.last_hidden_state, want.pooler_output
        else:
            want = reference(ids)
            last = want.last_hidden_state
            pooled = want.text_embeds if write is sharded else want.pooler_output
    got = jax.jit(encoder.apply)(params_of(encoder), **tokens)
    np.testing.assert_allclose(got.states, last, atol=1e-4)
    np.testing.assert_allclose(got.pooled, pooled, atol=1e-4)
    assert got.mask.all()  # padding is attended to, as CLIP's generators always have


def test_the_penultimate_layer_comes_without_the_final_norm(tmp_path):
    reference = encoders.clip_text(tmp_path, projection=True)
    first = make_encoder(
        "clip", LENGTH, name="a", path=tmp_path, layer="penultimate", pooled=False, null="zeros"
    )
    assert (first.name, first.pooled_width, first.null) == ("a", 0, "zeros")
    assert first.settings()["layer"] == "penultimate"  # so that a cache of the last is not read
    tokens = first.tokenize(TEXTS)
    with torch.no_grad():
        want = reference(torch.tensor(tokens["ids"]), output_hidden_states=True)
    got = jax.jit(first.apply)(params_of(first), **tokens)
    np.testing.assert_allclose(got.states, want.hidden_states[-2], atol=1e-4)
    assert got.pooled is None


@pytest.mark.parametrize("pad", [encoders.END, "!"])
@pytest.mark.parametrize("length", [LENGTH, 4])
def test_tokens_equal_transformers_and_the_folder_decides_the_padding(pad, length, tmp_path):
    encoders.clip_text(tmp_path, pad=pad)
    encoder = make_encoder("clip", length, path=tmp_path)
    got = encoder.tokenize(TEXTS)
    tokenizer = CLIPTokenizer.from_pretrained(str(tmp_path))
    want = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=length)
    assert got["ids"].dtype == np.int32 and got["mask"].dtype == bool
    np.testing.assert_array_equal(got["ids"], want["input_ids"])
    np.testing.assert_array_equal(got["mask"], want["attention_mask"])
    vocabulary = encoders.clip_vocabulary()
    words = ["a</w>", "red</w>", "fox</w>", ".</w>"][: length - 2]
    row = [vocabulary[word] for word in (encoders.START, *words, encoders.END)]
    assert got["ids"][0].tolist() == row + [vocabulary[pad]] * (length - len(row))
    assert list(got["mask"].sum(1)) == [len(row), 2, length]
    assert got["ids"][2, -1] == vocabulary[encoders.END]  # cut, and still ended


def test_a_pipelines_tokenizer_lies_beside_its_text_encoder(tmp_path):
    encoders.clip_text(tmp_path / "text_encoder_2", pad="!")
    for file in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (tmp_path / "text_encoder_2" / file).unlink()
    encoder = make_encoder("clip", 8, path=tmp_path / "text_encoder_2")
    with pytest.raises(UserError, match=r"has no tokenizer: it needs tokenizer\.json, or vocab"):
        encoder.tokenize(["a"])
    encoders.clip_tokenizer(tmp_path / "tokenizer_2", pad="!")
    assert encoder.tokenize(["a"])["ids"][0, -1] == 0


def test_pickles_small_and_works_after(tmp_path):
    encoders.clip_text(tmp_path)
    encoder = make_encoder("clip", LENGTH, path=tmp_path)
    tokens = encoder.tokenize(TEXTS)
    encoder.shapes()  # makes the network
    data = pickle.dumps(encoder)
    assert len(data) < 1000
    np.testing.assert_array_equal(pickle.loads(data).tokenize(TEXTS)["ids"], tokens["ids"])


def test_dtype_and_shapes(tmp_path):
    encoders.clip_text(tmp_path, projection=True)
    encoder = make_encoder("clip", LENGTH, path=tmp_path, dtype="bfloat16")
    tensors = dict(encoder.tensors())
    assert {x.dtype for x in tensors.values()} == {jnp.dtype(jnp.bfloat16)}
    assert {path: x.shape for path, x in tensors.items()} == {
        path: x.shape for path, x in encoder.shapes().items()
    }
    told = jax.eval_shape(encoder.apply, encoder.shapes(), **encoder.tokenize(TEXTS))
    assert told.states.dtype == told.pooled.dtype == jnp.bfloat16


@pytest.mark.parametrize("write", [encoders.clip_whole, encoders.clip_vision])
def test_image_embeddings_equal_transformers(write, tmp_path):
    reference = write(tmp_path)
    tower = make_clip_images(tmp_path)
    side = tower.image_size
    assert side == (12 if write is encoders.clip_whole else 10)
    x = np.random.default_rng(0).normal(size=(3, side, side, 3)).astype(np.float32)
    pixels = torch.tensor(x.transpose(0, 3, 1, 2))
    with torch.no_grad():
        if write is encoders.clip_whole:
            want = reference.get_image_features(pixels).pooler_output
        else:
            want = reference(pixels).image_embeds
    got = jax.jit(tower.apply)(params_of(tower), x)
    np.testing.assert_allclose(got, want, atol=1e-4)


def unknown_tensor(folder):
    encoders.respell(folder, extra=torch.zeros(2))


def longer_vocabulary(folder):
    file = folder / "config.json"
    size = len(encoders.clip_vocabulary())
    file.write_text(file.read_text().replace(f'"vocab_size": {size}', '"vocab_size": 99'))


def another_layer(folder):
    file = folder / "config.json"
    file.write_text(file.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (unknown_tensor, r"keys this network does not have: text_model\.extra"),
        (another_layer, r"lack keys this network needs: text_model\.encoder\.layers\.2"),
        (longer_vocabulary, r"token_embedding\.weight has shape \(86, 24\).* has \(99, 24\)"),
        (lambda f: (f / "model.safetensors").unlink(), r"no \.safetensors file in"),
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: (f / "config.json").write_text("{}"), "has no entry 'model_type'"),
    ],
)
def test_a_folder_that_does_not_fit_is_one_sentence(harm, words, tmp_path):
    encoders.clip_text(tmp_path)
    harm(tmp_path)
    with pytest.raises(UserError, match=words) as error:
        make_encoder("clip", LENGTH, path=tmp_path).tensors()
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(length=21), "takes lengths from 3 to 20, not 21"),
        (dict(length=2), "takes lengths from 3 to 20, not 2"),
        (dict(layer="first"), "layer is last or penultimate, not 'first'"),
        (dict(path=""), "Encoder clip needs path"),
    ],
)
def test_options_that_cannot_be(options, words, tmp_path):
    encoders.clip_text(tmp_path)
    with pytest.raises(UserError, match=words):
        make_encoder("clip", **{"path": tmp_path, "length": LENGTH} | options)


def test_another_kind_of_model_is_named(tmp_path):
    encoders.t5(tmp_path)
    with pytest.raises(UserError, match="a model of type t5; wanted is clip_text_model or clip"):
        make_encoder("clip", LENGTH, path=tmp_path)


@pytest.mark.parametrize(
    ("size", "parameters", "width"),
    [
        ("vit_l", 123_650_304, 768),
        ("openclip_h", 340_387_840 + 1024 * 1024, 1024),
        ("openclip_bigg", 694_659_840, 1280),
    ],
)
def test_a_published_size_without_its_folder_is_known_in_shape(size, parameters, width):
    encoder = make_encoder("clip", size=size, dtype="bfloat16")
    shapes = encoder.shapes().values()
    assert sum(math.prod(x.shape) for x in shapes) == parameters
    assert {x.dtype for x in shapes} == {jnp.dtype(jnp.bfloat16)}
    assert (encoder.width, encoder.pooled_width) == (width, width)
    with pytest.raises(UserError, match=r"enough to plan a step.*config\.text\.clip\.path"):
        encoder.tokenize(["a fox"])
    with pytest.raises(UserError, match="enough to plan a step"):
        next(encoder.tensors())


def test_a_folder_of_another_size_is_refused(tmp_path):
    encoders.clip_text(tmp_path)
    with pytest.raises(UserError, match="is not vit_l: its hidden_size is 24, not 768"):
        make_encoder("clip", path=tmp_path, length=LENGTH, size="vit_l")
    with pytest.raises(UserError, match="; use one of vit_l, openclip_h, openclip_bigg"):
        make_encoder("clip", size="vit_xl")
    with pytest.raises(UserError, match="needs path, a model's folder or hub name"):
        make_encoder("clip")


def test_a_token_without_a_row_in_the_table_is_refused(tmp_path):
    """Added to the tokenizer and not to the network: its embedding would be NaN."""
    encoders.clip_text(tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    tokenizer.add_tokens(["<novelty>"])
    tokenizer.save_pretrained(tmp_path)
    encoder = make_encoder("clip", 8, path=tmp_path)
    encoder.tokenize(["fox"])
    with pytest.raises(UserError, match=r"gives the id \d+, but its network has \d+ ids"):
        encoder.tokenize(["a <novelty>"])
