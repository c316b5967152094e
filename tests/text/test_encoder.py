"""What all text encoders share."""

import hashlib
import pickle
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from emu_jax.errors import UserError
from emu_jax.text.encoder import TextEncoder, make_encoder


@dataclass(frozen=True)
class Letters(TextEncoder):
    """One token a letter; an empty text has none."""

    def _tokenize(self, texts):
        rows = [text[: self.length].ljust(self.length, "\0") for text in texts]
        ids = np.array([[ord(letter) for letter in row] for row in rows], np.int32)
        return ids, ids != 0

    def apply(self, params, ids, mask):
        raise NotImplementedError

    def shapes(self):
        raise NotImplementedError

    def tensors(self):
        raise NotImplementedError

    @property
    def weights(self) -> Path:
        return self.folder / "weights"


@pytest.fixture
def letters(tmp_path):
    (tmp_path / "weights").write_bytes(b"weights")
    return Letters("letters", tmp_path, length=4, width=8)


def test_tokenize(letters):
    tokens = letters.tokenize(["ab", "abcdef"])
    np.testing.assert_array_equal(tokens["ids"], [[97, 98, 0, 0], [97, 98, 99, 100]])
    np.testing.assert_array_equal(tokens["mask"], [[1, 1, 0, 0], [1, 1, 1, 1]])


def test_a_text_without_tokens_is_refused(letters):
    with pytest.raises(UserError, match="letters finds no token in the text ''"):
        letters.tokenize(["ab", ""])


def test_fingerprint_follows_the_weights(letters):
    assert letters.fingerprint == hashlib.sha256(b"weights").hexdigest()


def test_settings_are_what_cached_states_depend_on_beside_the_weights(letters):
    assert letters.settings() == {"length": 4, "width": 8, "pooled_width": 0}
    assert replace(letters, length=5).settings() != letters.settings()
    aside = replace(letters, name="other", folder=letters.folder / "x", null="zeros")
    assert aside.settings() == letters.settings()


def test_only_the_description_is_pickled(letters):
    letters.__dict__["network"] = lambda: None  # what a cached property leaves behind
    again = pickle.loads(pickle.dumps(letters))
    assert again == letters and "network" not in again.__dict__


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"null": "nothing"}, "letters: null is empty or zeros, not 'nothing'"),
        ({"dtype": "float16"}, "letters: dtype is float32 or bfloat16, not 'float16'"),
    ],
)
def test_settings_that_are_not_known(letters, change, words):
    with pytest.raises(UserError, match=words):
        replace(letters, **change)


def test_unknown_kind_and_option():
    with pytest.raises(UserError, match="'clop'; there is bert_tokens, minilm, clip, t5"):
        make_encoder("clop", 16)
    with pytest.raises(
        UserError, match=r"clip takes no 'lenght'; it takes length, path, size, layer"
    ):
        make_encoder("clip", lenght=16)
