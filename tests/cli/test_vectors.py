"""``emu-jax data vectors``: the command, interrupted and resumed, and what reads its cache."""

import os

import encoders
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from emu_jax.assembly import vectors
from emu_jax.assembly.vectors import open_vectors
from emu_jax.cli.main import main
from emu_jax.data import cache
from emu_jax.data.cache import Cache
from emu_jax.data.mixture import Captions, Selection
from emu_jax.data.source import open_source
from emu_jax.data.vectors import PromptVectors
from emu_jax.errors import UserError
from emu_jax.text.language_model import LanguageModel, make_language_model
from emu_jax.text.vectors import make_vector_model


@pytest.fixture
def command(pictures, tmp_path):
    """``command(...)`` runs it on folder/tiny; the cache lies in ``tmp_path / "cache"``."""
    place = (f"--data_dir={pictures}", f"--cache_dir={tmp_path}/cache", "--batch_size=4")
    model = f"--model={tmp_path}/llama"
    return lambda *more: main(["data", "vectors", "folder/tiny", model, *place, *more])


def test_vectors_of_a_data_set(command, pictures, tmp_path, monkeypatch, capsys):
    reference = encoders.llama(tmp_path / "llama")
    assert command("--layers=2,0") == 0
    out = capsys.readouterr().out
    assert "folder/tiny: vectors of 12 texts after the blocks 2, 0\n  24 wide, in" in out
    model = make_language_model(tmp_path / "llama", (2, 0))
    texts = Captions([Selection(open_source("folder/tiny", pictures))]).texts
    found = open_vectors(model, texts, tmp_path / "cache")
    assert (found.shape, found.layers) == ((2, 24), (2, 0))
    # Against transformers, one text at a time; the first token begins every text, without counting.
    tokenizer = Tokenizer.from_file(str(tmp_path / "llama" / "tokenizer.json"))
    streams = {}
    for layer in (0, 2):
        reference.layers[layer].register_forward_hook(
            lambda module, given, out, layer=layer: streams.update({layer: out[0, 1:].mean(0)})
        )
    for text in ("a red disc", "purple ball"):
        with torch.no_grad():
            reference(input_ids=torch.tensor([tokenizer.encode(text).ids]))
        want = np.stack([streams[2], streams[0]])
        np.testing.assert_allclose(found.take([text])[0], want, atol=1e-4, rtol=1e-4)
    assert found.take(["red ball", ""]).dtype == np.float32 and not found.take([""]).any()
    with pytest.raises(UserError, match="no vectors of the text 'a fox'"):
        found.take(["a fox"])

    # It is there: nothing is computed again.
    monkeypatch.setattr(vectors, "place_model", lambda *_: pytest.fail("computed"))
    assert command("--layers=2,0") == 0
    monkeypatch.undo()

    # A computation that is interrupted goes on, and equals the whole.
    whole = found.cache.take(np.arange(13), "text")["vectors"]
    found.cache.directory.rename(tmp_path / "whole")
    monkeypatch.setattr(cache, "_SAVE_SECONDS", -1)
    tokenize, batches = LanguageModel.tokenize, []

    def interrupted(self, batch):
        batches.append(batch)
        if len(batches) == 3:
            raise KeyboardInterrupt
        return tokenize(self, batch)

    monkeypatch.setattr(LanguageModel, "tokenize", interrupted)
    assert command("--layers=2,0") == 130
    with pytest.raises(UserError, match="incomplete"):
        open_vectors(model, texts, tmp_path / "cache")
    batches += [None] * 4
    assert command("--layers=2,0") == 0
    assert [batch[0] for batch in batches[7:]] == [texts[8], texts[12]]
    monkeypatch.undo()
    resumed = open_vectors(model, texts, tmp_path / "cache").cache
    np.testing.assert_array_equal(resumed.take(np.arange(13), "text")["vectors"], whole)

    # Other weights, and other texts, are refused.
    file = tmp_path / "llama" / "model.safetensors"
    save_file({key: x * 1.01 for key, x in load_file(file).items()}, file)
    os.utime(file, (0, 0))
    with pytest.raises(UserError, match="There is no cache"):
        open_vectors(model, texts, tmp_path / "cache")
    now = vectors._fingerprint(model)
    with pytest.raises(UserError, match="is stale: encoder was"):
        Cache.open(resumed.directory, now, {})
    with pytest.raises(UserError, match="is stale: captions was"):
        PromptVectors(resumed, texts[:-1])


def test_vectors_that_others_computed(command, pictures, tmp_path, capsys):
    captions = Captions([Selection(open_source("folder/tiny", pictures))]).texts
    theirs = {text: torch.randn(8) for text in captions[1:]}
    torch.save(theirs, tmp_path / "39.pt")
    assert command(f"--model={tmp_path}/39.pt") == 0
    assert "vectors of 12 texts\n  8 wide, in" in capsys.readouterr().out
    model = make_vector_model(f"{tmp_path}/39.pt")
    found = open_vectors(model, captions, tmp_path / "cache").take(["red ball", ""])
    np.testing.assert_array_equal(found[:, 0], [theirs["red ball"], np.zeros(8)])


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("--layers=x", "'x': use a whole number"),
        ("--layers=3", "name each once, of 0 to 2"),
        ("--column=long", "has no column 'long'"),
        ("--model=nowhere.gguf", "There is no file nowhere.gguf"),
        ("--batch_size=0", "use a whole number, 1 to"),
    ],
)
def test_what_a_user_can_get_wrong_is_one_sentence(argument, sentence, command, tmp_path, capsys):
    encoders.llama(tmp_path / "llama")
    assert command(argument) == 2
    err = capsys.readouterr().err
    assert sentence in err.splitlines()[-1]
