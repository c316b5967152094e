"""Rows with a second text of the same record, and with vectors of the first: online and cached."""

import io
from contextlib import closing
from dataclasses import replace
from itertools import islice

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from emu_jax.data.manifest import Manifest
from emu_jax.data.mixture import Captions, Selection
from emu_jax.data.pipeline import Caches, StreamSpec, make_stream
from emu_jax.data.precompute import cache_text, text_fingerprint
from emu_jax.errors import UserError

LONG = "exactly "


class Pairs:
    """A source in memory: of every record two simple captions and the two complex ones of them."""

    def __init__(self, name, count):
        file = io.BytesIO()
        Image.new("RGB", (16, 16)).save(file, "PNG")
        self.name, self.data, rows = name, file.getvalue(), []
        for i in range(count):
            simple = [f"{name} {i} {j}" for j in range(2)]
            complex_ = [LONG + text for text in simple]
            rows.append(
                {"key": str(i), "width": 16, "height": 16, "captions": ["other"]}
                | {"simple": simple, "complex": complex_}
            )
        own = {"simple": pa.list_(pa.string()), "complex": pa.list_(pa.string())}
        self.manifest = Manifest.from_rows(rows, own)

    def read(self, index):
        return self.data


PARTS = [Selection(Pairs(name, 9), captions="simple") for name in "ab"]
COMPLEX = [replace(part, captions="complex") for part in PARTS]
SPEC = StreamSpec(batch_size=8, side=16, seed=5, captions=("complex",))


def letters(texts):
    states = np.zeros((len(texts), 20, 1), np.float32)
    for row, text in zip(states, texts, strict=True):
        row[: len(text), 0] = [ord(letter) for letter in text]
    return states


def tokenize(texts):
    states = letters(texts)[..., 0]
    return {"ids": states.astype(np.int32), "mask": states > 0}


def take(count, caches=None, spec=SPEC):
    with closing(
        make_stream(spec, PARTS, {"letters": tokenize}, caches=caches or Caches())
    ) as batches:
        return list(islice(batches, count))


def read_back(tokens):
    return ["".join(chr(i) for i in row if i) for row in tokens["letters"]["ids"]]


def cache(folder, parts, **arrays):
    texts = Captions(parts).texts
    made_from = text_fingerprint("w", "float32")
    encode = lambda texts: {name: f(texts) for name, f in arrays.items()}  # noqa: E731
    return cache_text(folder, texts, encode, made_from, 4)


def test_a_row_has_two_texts_of_one_record_and_cached_equals_online(tmp_path):
    online = take(6)
    for batch in online:
        simple, long = (read_back(x["tokens"]) for x in (batch, batch["captions"]["complex"]))
        assert long == [LONG + text for text in simple]
        assert [int(text.split()[1]) for text in simple] == (batch["record"] % 9).tolist()
    assert {text[-1] for batch in online for text in read_back(batch["tokens"])} == {"0", "1"}

    caches = Caches(
        text={"letters": cache(tmp_path / "simple", PARTS, states=letters)},
        captions={"complex": {"letters": cache(tmp_path / "complex", COMPLEX, states=letters)}},
        vectors=cache(tmp_path / "llm", PARTS, vectors=lambda x: letters(x).reshape(-1, 2, 10)),
    )
    for want, found in zip(online, take(6, caches), strict=True):
        for a, b in ((want, found), (want["captions"]["complex"], found["captions"]["complex"])):
            states = b["text"]["letters"]["states"][..., 0]
            np.testing.assert_array_equal(states, a["tokens"]["letters"]["ids"])
            assert "tokens" not in b
        vectors = found["vectors"].reshape(8, 20)
        np.testing.assert_array_equal(vectors, want["tokens"]["letters"]["ids"])
    assert not {"captions", "vectors"} & take(1, spec=replace(SPEC, captions=()))[0].keys()


def test_caches_of_another_column_are_refused(tmp_path):
    simple = cache(tmp_path / "simple", PARTS, states=letters, vectors=letters)
    long = cache(tmp_path / "complex", COMPLEX, states=letters, vectors=letters)
    for caches in (Caches(captions={"complex": {"letters": simple}}), Caches(vectors=long)):
        with pytest.raises(UserError, match="stale: captions was"):
            take(1, caches)
    with pytest.raises(UserError, match="has no column 'longer'"):
        take(1, spec=replace(SPEC, captions=("longer",)))
