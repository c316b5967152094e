"""BLIP's captioner against transformers' BlipForConditionalGeneration with random weights."""

import json
import shutil

import encoders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from test_foreign_files import attack

from emu_jax.errors import UserError
from emu_jax.text.blip import Blip, blip_config, make_blip
from emu_jax.text.search import Settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("blip")
    encoders.blip(place)
    return place


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return encoders.blip(tmp_path_factory.mktemp("reference"))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(12, 16, 16, 3)).astype(np.float32)


def test_logits_of_each_token(folder, reference, images):
    """The keys of earlier tokens come from the cache; the reference computes all tokens at once."""
    model = make_blip(folder, settings=Settings(max_length=12))
    params = dict(model.tensors())
    ids = np.random.default_rng(1).integers(0, 60, (12, 2, 8))
    memory = model.network(params, images, 2, 8, method="start")
    step = jax.jit(lambda i, p, m: model.network(params, i, p, m, method="step"))
    found = []
    for position in range(8):
        logits, memory = step(ids[:, :, position], jnp.array(position), memory)
        found.append(logits)
    x = torch.tensor(images).permute(0, 3, 1, 2).repeat_interleave(2, 0)
    with torch.no_grad():
        want = reference(pixel_values=x, input_ids=torch.tensor(ids.reshape(24, 8))).logits
    want = want.numpy().reshape(12, 2, 8, 60)
    assert want.std() > 0.5
    np.testing.assert_allclose(np.stack(found, 2), want, atol=1e-4, rtol=1e-4)


SETTINGS = (
    Settings(num_beams=1, min_length=0, max_length=14),
    Settings(num_beams=1, min_length=7, max_length=12, repetition_penalty=1.4),
    Settings(num_beams=3, min_length=0, max_length=14),
    Settings(num_beams=3, min_length=7, max_length=13, repetition_penalty=1.5),
    Settings(num_beams=2, min_length=0, max_length=14, length_penalty=-1.0),
)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: f"{s.num_beams}_{s.min_length}")
def test_captions_are_those_of_generate(settings, folder, reference, images):
    model = make_blip(folder, "a picture of", settings)
    assert model.prefix == (59, 5, 6, 7)
    found = np.asarray(jax.jit(model.generate)(dict(model.tensors()), images))
    ids = torch.tensor([[2, 5, 6, 7, 3]] * len(images))
    x = torch.tensor(images).permute(0, 3, 1, 2)
    want = reference.generate(x, ids, **vars(settings), do_sample=False).numpy()
    lengths = set()
    for ours, theirs in zip(found, want, strict=True):
        ends = [*np.flatnonzero(theirs == 3), len(theirs)]
        lengths.add(ends[0])
        np.testing.assert_array_equal(ours[: ends[0]], theirs[: ends[0]])
        assert (ours[ends[0] :] == 3).all()
    assert len({tuple(row) for row in found}) > 3
    assert len(lengths) > 2


def test_decoded_captions_have_no_prompt(folder):
    model = make_blip(folder, "a picture of", Settings(max_length=20))
    rows = np.array([[59, 5, 6, 7, 8, 9, 10, 3, 3], [59, 5, 6, 7, 3, 3, 3, 3, 3]])
    assert model.decode(rows) == ["red foxes", ""]


def _changed(folder, tmp_path, file, **changes):
    place = tmp_path / "changed"
    place.mkdir()
    config = json.loads((folder / "config.json").read_text())
    if file == "config.json":
        config["text_config"] |= changes
    elif file:
        (place / file).write_text(json.dumps(changes))
    (place / "config.json").write_text(json.dumps(config))
    return place


@pytest.mark.parametrize(
    ("file", "changes", "sentence"),
    [
        ("config.json", dict(hidden_act="relu"), "hidden_act is 'relu' in text_config"),
        ("config.json", dict(do_sample=True), "the setting do_sample is True"),
        ("config.json", dict(hidden_size="24"), "'hidden_size' is '24'"),
        ("config.json", dict(num_hidden_layers=0), "must be 1 or more"),
        ("config.json", dict(num_attention_heads=5), "not a multiple of its num_attention_heads"),
        ("config.json", dict(tie_word_embeddings=False), "only tied ones"),
        ("generation_config.json", dict(no_repeat_ngram_size=3), "no_repeat_ngram_size is 3"),
        ("preprocessor_config.json", dict(image_mean=[0.5] * 3), "image_mean is"),
        ("preprocessor_config.json", dict(size={"height": 8, "width": 8}), "size is"),
    ],
)
def test_foreign_configs_are_refused_by_name(file, changes, sentence, folder, tmp_path):
    place = _changed(folder, tmp_path, file, **changes)
    with pytest.raises(UserError, match=sentence.replace("(", r"\(")) as refused:
        blip_config(place)
    assert str(place / file) in str(refused.value)


def test_damaged_configs_are_one_sentence(folder, tmp_path):
    place = shutil.copytree(folder, tmp_path / "copy")
    settings = Settings(max_length=12)
    attack(place / "config.json", lambda: dict(make_blip(place, "", settings).tensors()), 15)


def test_neutral_settings_of_old_configs_are_read(folder, tmp_path):
    neutral = dict(do_sample=False, no_repeat_ngram_size=0, max_length=20, bad_words_ids=None)
    assert blip_config(_changed(folder, tmp_path, "config.json", **neutral)) == blip_config(folder)


def test_settings_that_do_not_fit(folder):
    for settings, sentence in (
        (Settings(max_length=21), "max_length is 21; use 5 to 20"),
        (Settings(max_length=4), "use 5 to 20"),
        (Settings(min_length=19, max_length=18), "more than max_length, 18"),
        (Settings(max_length=18, repetition_penalty=0.0), "must be above 0"),
    ):
        with pytest.raises(UserError, match=sentence):
            make_blip(folder, "a picture of", settings)
    small = Blip(folder, {"vision": {}, "text": dict(bos_token_id=5, sep_token_id=3, vocab_size=6)})
    with pytest.raises(UserError, match="has 6 ids, but its tokenizer or config gives"):
        _ = small.prefix
