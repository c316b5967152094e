import io
import json
import os
import pickle
from contextlib import closing
from dataclasses import replace
from itertools import islice

import ml_dtypes
import numpy as np
import pytest
from PIL import Image

from emu_jax.data.cache import Cache, Rows, Spec, build, digest
from emu_jax.data.manifest import Manifest
from emu_jax.data.mixture import Captions, Selection
from emu_jax.data.pipeline import Caches, StreamSpec, images_fingerprint, make_stream
from emu_jax.data.precompute import (
    cache_moments,
    cache_text,
    text_fingerprint,
)
from emu_jax.errors import UserError

FINGERPRINT = {"encoder": "abc", "dtype": "float32"}
LAYOUT = {
    "4x4": {"x": Spec((10, 3), "float32"), "n": Spec((10,), "int32")},
    "2x8": {"x": Spec((4, 2), "bfloat16")},
}


def pieces(start):
    all_pieces = [
        Rows("4x4", first, {"x": np.full((5, 3), first, np.float32), "n": first + np.arange(5)})
        for first in (0, 5)
    ]
    all_pieces.append(Rows("2x8", 0, {"x": np.arange(8).reshape(4, 2).astype(ml_dtypes.bfloat16)}))
    return iter(all_pieces[start:])


def test_what_was_written_is_read(tmp_path):
    cache = build(tmp_path / "cache", FINGERPRINT, LAYOUT, pieces, 3)
    for opened in (
        cache,
        pickle.loads(pickle.dumps(cache)),
        Cache.open(tmp_path / "cache", FINGERPRINT),
    ):
        rows = opened.take(np.array([7, 2, 7]), "4x4")
        assert rows["n"].tolist() == [7, 2, 7] and rows["x"][:, 0].tolist() == [5, 0, 5]
        other = opened.take(np.array([3]), "2x8")["x"]
        assert other.dtype == ml_dtypes.bfloat16 and other.tolist() == [[6, 7]]
        assert type(other) is np.ndarray
    assert os.listdir(tmp_path) == ["cache"]


def test_a_fresh_cache_is_not_built_again(tmp_path):
    build(tmp_path / "cache", FINGERPRINT, LAYOUT, pieces, 3)
    build(tmp_path / "cache", FINGERPRINT, LAYOUT, lambda start: pytest.fail("built"), 3)


def test_a_stale_cache_is_refused_and_the_difference_named(tmp_path):
    build(tmp_path / "cache", FINGERPRINT, LAYOUT, pieces, 3)
    with pytest.raises(UserError, match="stale: encoder was 'abc' and is now 'abd'"):
        Cache.open(tmp_path / "cache", {**FINGERPRINT, "encoder": "abd"})
    with pytest.raises(UserError, match="stale: flip was 'not given' and is now 'True'"):
        Cache.open(tmp_path / "cache", {**FINGERPRINT, "flip": "True"})
    assert digest(FINGERPRINT) == digest(dict(reversed(FINGERPRINT.items())))
    assert digest(FINGERPRINT) != digest({**FINGERPRINT, "encoder": "abd"})
    # Building replaces it.
    build(tmp_path / "cache", {**FINGERPRINT, "encoder": "abd"}, LAYOUT, pieces, 3)
    with pytest.raises(UserError, match="stale"):
        Cache.open(tmp_path / "cache", FINGERPRINT)


def test_a_stopped_build_is_refused_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("emu_jax.data.cache._SAVE_SECONDS", -1)
    started = []

    def stopped(start):
        started.append(start)
        for count, rows in enumerate(pieces(start)):
            if count == 2:
                raise KeyboardInterrupt
            yield rows

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "cache", FINGERPRINT, LAYOUT, stopped, 3)
    with pytest.raises(UserError, match="is incomplete"):
        Cache.open(tmp_path / "cache", FINGERPRINT)

    def rest(start):
        started.append(start)
        return pieces(start)

    cache = build(tmp_path / "cache", FINGERPRINT, LAYOUT, rest, 3)
    assert started == [0, 2]
    assert cache.take(np.arange(10), "4x4")["n"].tolist() == list(range(10))
    assert cache.take(np.array([3]), "2x8")["x"].tolist() == [[6, 7]]


def test_a_stopped_build_of_something_else_starts_anew(tmp_path, monkeypatch):
    monkeypatch.setattr("emu_jax.data.cache._SAVE_SECONDS", -1)

    def stopped(start):
        yield next(pieces(start))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "cache", FINGERPRINT, LAYOUT, stopped, 3)
    started = []

    def rest(start):
        started.append(start)
        return pieces(start)

    build(tmp_path / "cache", {**FINGERPRINT, "encoder": "abd"}, LAYOUT, rest, 3)
    assert started == [0]


def test_damage_is_refused(tmp_path):
    with pytest.raises(UserError, match="no cache in"):
        Cache.open(tmp_path / "cache", FINGERPRINT)
    with pytest.raises(UserError, match="local disk"):
        Cache.open("gs://bucket/cache", FINGERPRINT)
    build(tmp_path / "cache", FINGERPRINT, LAYOUT, pieces, 3)
    array = tmp_path / "cache" / "4x4" / "x.npy"
    whole = array.read_bytes()
    array.write_bytes(whole[:-10])
    with pytest.raises(UserError, match=r"x\.npy is damaged"):
        Cache.open(tmp_path / "cache", FINGERPRINT)
    np.save(array, np.zeros((9, 3), np.float32))
    with pytest.raises(UserError, match=r"x\.npy has another shape"):
        Cache.open(tmp_path / "cache", FINGERPRINT)
    array.write_bytes(whole)
    file = tmp_path / "cache" / "cache.json"
    description = json.loads(file.read_text())
    file.write_text('{"fingerprint": ')
    with pytest.raises(UserError, match="not a complete cache"):
        Cache.open(tmp_path / "cache", FINGERPRINT)
    np.save(tmp_path / "secret.npy", np.zeros((2, 3), np.float32))
    for layout in ({"..": {"secret": [[2, 3], "float32"]}}, {"4x4": {"../../secret": [[2], "f4"]}}):
        file.write_text(json.dumps({**description, "layout": layout}))
        with pytest.raises(UserError, match="which is no array of it"):
            Cache.open(tmp_path / "cache", FINGERPRINT)


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"needs .* GiB.*No space left on device"):
        build(tmp_path / "cache", FINGERPRINT, LAYOUT, pieces, 3)
    assert os.listdir(tmp_path) == []


class Pictures:
    """A source in memory: noise of three shapes, 0 to 2 captions each."""

    def __init__(self, name, count, seed):
        rng = np.random.default_rng(seed)
        self.name, self.data, rows = name, [], []
        for i in range(count):
            h, w = ((40, 40), (30, 60), (60, 30))[i % 3]
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)).save(file, "PNG")
            self.data.append(file.getvalue())
            captions = [f"{name} {i} {j}" for j in range(i % 3)]
            rows.append({"key": str(i), "width": w, "height": h, "captions": captions})
        self.manifest = Manifest.from_rows(rows)

    def read(self, index):
        return self.data[index]


def moments_fingerprint(spec, parts, encoder, dtype):
    return {"encoder": encoder, "dtype": dtype, **images_fingerprint(spec, parts)}


PARTS = [Selection(Pictures("a", 20, 0), 0.7, "width != 60"), Selection(Pictures("b", 9, 1), 0.3)]
SPEC = StreamSpec(batch_size=8, side=32, bucket_step=8, buckets=True, flip=True, seed=5)


def encode_images(image):
    """Stands in for an autoencoder: not symmetric under flips, twice as small."""
    ramp = np.arange(image.shape[2])[:, None]
    scaled = (image * ramp).astype(np.float32)
    return scaled[:, ::2, ::2] + scaled[:, 1::2, 1::2]


def encode_texts(texts):
    states = np.zeros((len(texts), 6, 2), np.float32)
    for row, text in zip(states, texts, strict=True):
        row[: len(text), 0] = [ord(letter) for letter in text[:6]]
    return {"states": states, "mask": states[..., 0] > 0, "pooled": states.sum(1)}


def tokenize(texts):
    return {"ids": encode_texts(texts)["states"][..., 0].astype(np.int32)}


def take(count, spec=SPEC, caches=None, tokenizers=None):
    tokenizers = tokenizers or {"letters": tokenize}
    with closing(make_stream(spec, PARTS, tokenizers, caches=caches or Caches())) as batches:
        return list(islice(batches, count))


def moments(directory, spec=SPEC):
    fingerprint = moments_fingerprint(spec, PARTS, "weights", "float32")

    def encode(image):
        moments = encode_images(image)
        return {"moments": moments, "low": moments[:, ::4, ::4].astype(np.int32)}

    return cache_moments(directory, spec, PARTS, encode, fingerprint)


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("sequential", [True, False])
def test_cached_equals_online(tmp_path, flip, sequential):
    spec = replace(SPEC, flip=flip, sequential=sequential)
    texts = Captions(PARTS).texts
    text = cache_text(
        tmp_path / "text", texts, encode_texts, text_fingerprint(texts, "w", "float32"), 4
    )
    caches = Caches(moments(tmp_path / "moments", spec), {"letters": text})
    shapes = set()
    for online, cached in zip(take(30, spec), take(30, spec, caches), strict=True):
        assert np.array_equal(cached["moments"], encode_images(online["image"]))
        assert np.array_equal(cached["low"], cached["moments"][:, ::4, ::4].astype(np.int32))
        for name in ("sizes", "record", *(["valid"] if sequential else [])):
            assert np.array_equal(cached[name], online[name]), name
        states = cached["text"]["letters"]["states"]
        assert np.array_equal(states[..., 0], online["tokens"]["letters"]["ids"])
        assert cached["text"]["letters"]["pooled"].shape == (8, 2)
        assert "image" not in cached and "tokens" not in cached
        shapes.add(cached["moments"].shape[1:3])
    assert shapes == {(16, 16), (12, 20), (20, 12)}


def test_some_encoders_cached_and_some_not(tmp_path):
    texts = Captions(PARTS).texts
    text = cache_text(tmp_path / "text", texts, encode_texts, text_fingerprint(texts, "w", "f"), 4)
    tokenizers = {"letters": tokenize, "others": tokenize}
    (batch,) = take(1, caches=Caches(text={"letters": text}), tokenizers=tokenizers)
    assert set(batch["text"]) == {"letters"} and set(batch["tokens"]) == {"others"}


def test_what_moments_depend_on_is_in_the_fingerprint():
    base = moments_fingerprint(SPEC, PARTS, "weights", "float32")
    others = [
        moments_fingerprint(SPEC, PARTS, "other weights", "float32"),
        moments_fingerprint(SPEC, PARTS, "weights", "bfloat16"),
        moments_fingerprint(replace(SPEC, flip=False), PARTS, "weights", "float32"),
        moments_fingerprint(replace(SPEC, side=64), PARTS, "weights", "float32"),
        moments_fingerprint(replace(SPEC, background=(0, 0, 0)), PARTS, "weights", "float32"),
        moments_fingerprint(SPEC, [replace(PARTS[0], select=""), PARTS[1]], "weights", "float32"),
        moments_fingerprint(SPEC, PARTS[::-1], "weights", "float32"),
        moments_fingerprint(SPEC, [PARTS[0], Selection(Pictures("b", 8, 1))], "weights", "float32"),
    ]
    assert len({json.dumps(f, sort_keys=True) for f in [base, *others]}) == 9
    # Nor on what they do not depend on.
    assert (
        moments_fingerprint(replace(SPEC, seed=9, batch_size=4), PARTS, "weights", "float32")
        == base
    )
    assert text_fingerprint(["", "a b"], "w", "f") != text_fingerprint(["", "a", "b"], "w", "f")


def test_a_cache_of_other_rows_is_refused(tmp_path):
    texts = Captions(PARTS).texts[1:]
    text = cache_text(tmp_path / "text", texts, encode_texts, text_fingerprint(texts, "w", "f"), 4)
    with pytest.raises(UserError, match="stale: captions was"):
        take(1, caches=Caches(text={"letters": text}))
    unflipped = moments(tmp_path / "moments", replace(SPEC, flip=False))
    with pytest.raises(UserError, match="stale: flip was 'False' and is now 'True'"):
        take(1, caches=Caches(unflipped))


def test_moments_need_the_centred_crop(tmp_path):
    caches = Caches(moments(tmp_path / "moments"))
    with pytest.raises(UserError, match="centered crop"):
        take(1, replace(SPEC, crop="random"), caches)
