import hashlib
import io
import json
import os
import pickle
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import chain, islice

import ml_dtypes
import numpy as np
import pytest
from PIL import Image

from emu_jax.data import cache
from emu_jax.data.cache import Cache, Rows, Spec, Together, build, digest, stored, text_keys
from emu_jax.data.manifest import Manifest
from emu_jax.data.mixture import Captions, Selection
from emu_jax.data.pipeline import Caches, StreamSpec, images_fingerprint, make_stream
from emu_jax.data.precompute import (
    cache_moments,
    cache_text,
    pixels_fingerprint,
    text_fingerprint,
)
from emu_jax.errors import UserError

BFLOAT16 = ml_dtypes.bfloat16
FINGERPRINT = {"encoder": "abc", "dtype": "float32"}
KEYS = {"4x4": text_keys("abcdefghij"), "2x8": text_keys("wxyz")}


def compute(missing, log=None):
    """Steps of four rows, each a function of its key alone."""
    log = [] if log is None else log

    def rows():
        for group, own in missing.items():
            for i in range(0, len(own), 4):
                positions = own[i : i + 4]
                log.append((group, positions.tolist()))
                n = (positions + len(KEYS["4x4"]) * (group == "2x8")).astype(np.int32)
                if group == "2x8":
                    yield Rows(group, positions, {"x": np.stack([n, n + 1], 1).astype(BFLOAT16)})
                else:
                    x = np.repeat(n[:, None], 3, 1).astype(np.float32)
                    yield Rows(group, positions, {"x": x, "n": n})

    return sum(-(-len(own) // 4) for own in missing.values()), rows()


def assert_right(found):
    rows = found.take(np.array([7, 2, 7]), "4x4")
    assert rows["n"].tolist() == [7, 2, 7] and rows["x"].tolist() == [[7] * 3, [2] * 3, [7] * 3]
    other = found.take(np.array([3, 0]), "2x8")["x"]
    assert other.dtype == BFLOAT16 and other.tolist() == [[13, 14], [10, 11]]
    assert type(other) is np.ndarray


def test_what_was_written_is_read(tmp_path):
    made = build(tmp_path / "cache", FINGERPRINT, KEYS, compute)
    opened = Cache.open(tmp_path / "cache", FINGERPRINT, KEYS)
    for found in (made, pickle.loads(pickle.dumps(made)), opened):
        assert_right(found)
    assert made.layout["4x4"] == {"x": Spec((10, 3), "float32"), "n": Spec((10,), "int32")}
    assert os.listdir(tmp_path) == ["cache"]
    # Many small shards, of which few are open at a time.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "_SHARD_BYTES", 1)
        patch.setattr(cache, "_MAPPED", 1)
        many = build(tmp_path / "many", FINGERPRINT, KEYS, compute)
        assert len(list((tmp_path / "many/4x4").glob("*.rows"))) == 3
        assert_right(many)
    assert sorted(stored(tmp_path / "many", "4x4")["n"]) == list(range(10))


def test_only_what_is_new_is_computed(tmp_path):
    """Of other rows, in another order, some of them twice."""
    few = {"4x4": KEYS["4x4"][[1, 5, 3]], "2x8": KEYS["2x8"]}
    build(
        tmp_path / "cache", FINGERPRINT, few, lambda m: compute({"2x8": m["2x8"], "4x4": m["4x4"]})
    )
    log = []
    found = build(
        tmp_path / "cache", FINGERPRINT, {"4x4": KEYS["4x4"][::-1]}, partial(compute, log=log)
    )
    assert [(group, positions) for group, positions in log] == [
        ("4x4", [0, 1, 2, 3]),
        ("4x4", [5, 7, 9]),
    ]
    assert len(found.take(np.arange(10), "4x4")["n"]) == 10
    twice = {"4x4": np.concatenate([KEYS["4x4"][:2]] * 2)}
    found = build(tmp_path / "cache", FINGERPRINT, twice, lambda _: pytest.fail("computed again"))
    assert len(found.take(np.arange(4), "4x4")["n"]) == 4
    log.clear()
    build(tmp_path / "other", FINGERPRINT, twice, partial(compute, log=log))
    assert log == [("4x4", [0, 1])]


def test_a_stale_cache_is_refused_and_the_difference_named(tmp_path):
    made = build(tmp_path / "cache", FINGERPRINT, KEYS, compute, {"captions": "of a"})
    for change, said in (
        ({"encoder": "abd"}, "encoder was 'abc' and is now 'abd'"),
        ({"flip": "True"}, "flip was 'not given' and is now 'True'"),
    ):
        for use in (Cache.open, partial(build, compute=compute)):
            with pytest.raises(UserError, match=f"stale: {said}"):
                use(tmp_path / "cache", {**FINGERPRINT, **change}, keys=KEYS)
    made.require({"captions": "of a", "encoder": "abc"})
    with pytest.raises(UserError, match="captions was 'of a' and is now 'of b'"):
        made.require({"captions": "of b"})
    assert digest(FINGERPRINT) == digest(dict(reversed(FINGERPRINT.items())))
    assert digest(FINGERPRINT) != digest({**FINGERPRINT, "encoder": "abd"})


def test_a_killed_build_is_refused_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_SAVE_SECONDS", -1)

    def killed(missing):
        steps, rows = compute(missing)
        return steps, chain(islice(rows, 2), (pytest.exit("killed") for _ in "1"))

    with pytest.raises(pytest.exit.Exception):
        build(tmp_path / "cache", FINGERPRINT, KEYS, killed)
    with pytest.raises(UserError, match="is incomplete, 6 of 14 rows are missing"):
        Cache.open(tmp_path / "cache", FINGERPRINT, KEYS)
    (rows,) = (tmp_path / "cache/4x4").glob("*.rows")
    with rows.open("ab") as file:  # a row that was cut off
        file.write(b"half")
    log = []
    assert_right(build(tmp_path / "cache", FINGERPRINT, KEYS, partial(compute, log=log)))
    assert log == [("4x4", [8, 9]), ("2x8", [0, 1, 2, 3])]
    # Keys without their rows do not count.
    rows.write_bytes(rows.read_bytes()[:20])
    with pytest.raises(UserError, match="7 of 14 rows are missing"):
        Cache.open(tmp_path / "cache", FINGERPRINT, KEYS)


@pytest.mark.parametrize("shared", [True, False])
def test_processes_compute_their_shares_at_once(tmp_path, shared):
    """On a disk that they share each row is computed once, else by each."""
    barrier, logs = threading.Barrier(3), [[] for _ in range(3)]

    def run(i):
        folder = tmp_path / ("cache" if shared else f"cache_{i}")
        together = Together(i, 3, barrier.wait)
        return build(folder, FINGERPRINT, KEYS, partial(compute, log=logs[i]), together=together)

    with ThreadPoolExecutor(3) as pool:
        for found in pool.map(run, range(3)):
            assert_right(found)
    rows = [len(positions) for log in logs for _, positions in log]
    assert sum(rows) == (14 if shared else 42)
    assert all(sum(len(p) for _, p in log) < 14 for log in logs) == shared


def test_damage_is_refused(tmp_path):
    with pytest.raises(UserError, match="no cache in"):
        Cache.open(tmp_path / "cache", FINGERPRINT, KEYS)
    with pytest.raises(UserError, match="local disk"):
        Cache.open("gs://bucket/cache", FINGERPRINT, KEYS)
    build(tmp_path / "cache", FINGERPRINT, KEYS, compute)
    file = tmp_path / "cache" / "4x4" / "layout.json"
    for content in ("{", "[]", '{"x": [[3], "object"]}', '{"x": [["a"], "int32"]}', '{"x": 3}'):
        file.write_text(content)
        with pytest.raises(UserError, match=r"4x4 is damaged \(.*delete the cache"):
            Cache.open(tmp_path / "cache", FINGERPRINT, KEYS)
    file.write_text('{"x": [[5], "float32"]}')
    with pytest.raises(UserError, match=r"rows of another shape|are missing"):
        build(tmp_path / "cache", FINGERPRINT, {"4x4": text_keys("new")}, lambda m: compute(m))
    (tmp_path / "cache" / "cache.json").write_text('{"fingerprint": ')
    with pytest.raises(UserError, match="is not a cache"):
        Cache.open(tmp_path / "cache", FINGERPRINT, KEYS)


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(UserError, match=r"needs .* GiB and the disk has 0\.0"):
        build(tmp_path / "cache", FINGERPRINT, KEYS, compute)
    monkeypatch.undo()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"could not be written \(No space left on device"):
        build(tmp_path / "cache", FINGERPRINT, KEYS, compute)


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
            digest = hashlib.sha256(self.data[-1]).hexdigest()
            row = {"key": str(i), "width": w, "height": h, "sha256": digest, "captions": captions}
            rows.append(row)
        self.manifest = Manifest.from_rows(rows)

    def read(self, index):
        return self.data[index]


def moments_fingerprint(spec, encoder, dtype):
    return {"encoder": encoder, "dtype": dtype, **pixels_fingerprint(spec)}


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


def moments(directory, spec=SPEC, parts=PARTS, log=None):
    def encode(image):
        moments = encode_images(image)
        if log is not None:
            log.append(len(image))
        return {"moments": moments, "low": moments[:, ::4, ::4].astype(np.int32)}

    made_from = moments_fingerprint(spec, "weights", "float32")
    return cache_moments(directory, spec, parts, encode, made_from)


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("sequential", [True, False])
def test_cached_equals_online(tmp_path, flip, sequential):
    spec = replace(SPEC, flip=flip, sequential=sequential)
    texts = Captions(PARTS).texts
    text = cache_text(tmp_path / "text", texts, encode_texts, text_fingerprint("w", "float32"), 4)
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
    text = cache_text(tmp_path / "text", texts, encode_texts, text_fingerprint("w", "f"), 4)
    tokenizers = {"letters": tokenize, "others": tokenize}
    (batch,) = take(1, caches=Caches(text={"letters": text}), tokenizers=tokenizers)
    assert set(batch["text"]) == {"letters"} and set(batch["tokens"]) == {"others"}


def test_what_moments_depend_on_is_in_the_fingerprint():
    def both(spec, parts, encoder, dtype):
        return moments_fingerprint(spec, encoder, dtype) | images_fingerprint(spec, parts)

    base = both(SPEC, PARTS, "weights", "float32")
    others = [
        both(SPEC, PARTS, "other weights", "float32"),
        both(SPEC, PARTS, "weights", "bfloat16"),
        both(replace(SPEC, flip=False), PARTS, "weights", "float32"),
        both(replace(SPEC, side=64), PARTS, "weights", "float32"),
        both(replace(SPEC, background=(0, 0, 0)), PARTS, "weights", "float32"),
        both(SPEC, [replace(PARTS[0], select=""), PARTS[1]], "weights", "float32"),
        both(SPEC, PARTS[::-1], "weights", "float32"),
        both(SPEC, [PARTS[0], Selection(Pictures("b", 8, 1))], "weights", "float32"),
    ]
    assert len({json.dumps(f, sort_keys=True) for f in [base, *others]}) == 9
    # Nor on what they do not depend on.
    assert both(replace(SPEC, seed=9, batch_size=4), PARTS, "weights", "float32") == base
    # What a folder of moments depends on: not on the images, their order, buckets or flips.
    folders = [
        moments_fingerprint(spec, "w", "f") for spec in (SPEC, replace(SPEC, flip=False, side=64))
    ]
    assert folders[0] == folders[1]
    assert folders[0] != moments_fingerprint(replace(SPEC, background=(0, 0, 0)), "w", "f")


def test_an_image_that_is_added_is_computed_alone(tmp_path):
    """And what was taken away, or what another condition left out, is still there."""
    log, rest = [], Selection(Pictures("b", 9, 1), 0.3)
    moments(tmp_path / "moments", parts=[rest], log=log)
    assert sum(log) == 6 * 8  # three buckets of three images, as they are and mirrored
    log.clear()
    more = Selection(Pictures("b", 10, 1), 0.3)  # one image more
    found = moments(tmp_path / "moments", parts=[more], log=log)
    assert len(log) == 2
    expected = moments(tmp_path / "anew", parts=[more])
    for group, arrays in expected.layout.items():
        ids = np.arange(arrays["moments"].shape[0])
        for name, array in expected.take(ids, group).items():
            assert np.array_equal(array, found.take(ids, group)[name])
    log.clear()
    moments(tmp_path / "moments", parts=[rest], log=log)
    moments(tmp_path / "moments", replace(SPEC, flip=False), [more], log)
    assert not log
    unflipped = moments(tmp_path / "flips", replace(SPEC, flip=False), [more], log)
    assert len(log) == 3 and unflipped.layout["32x32"]["moments"].shape[0] == 4
    log.clear()
    moments(tmp_path / "flips", parts=[more], log=log)
    assert len(log) == 3  # the mirrored ones


def test_a_cache_of_other_rows_is_refused(tmp_path):
    texts = Captions(PARTS).texts[1:]
    text = cache_text(tmp_path / "text", texts, encode_texts, text_fingerprint("w", "f"), 4)
    with pytest.raises(UserError, match="stale: captions was"):
        take(1, caches=Caches(text={"letters": text}))
    unflipped = moments(tmp_path / "moments", replace(SPEC, flip=False))
    with pytest.raises(UserError, match="stale: flip was 'False' and is now 'True'"):
        take(1, caches=Caches(unflipped))


def test_moments_need_the_centred_crop(tmp_path):
    caches = Caches(moments(tmp_path / "moments"))
    with pytest.raises(UserError, match="centered crop"):
        take(1, replace(SPEC, crop="random"), caches)
