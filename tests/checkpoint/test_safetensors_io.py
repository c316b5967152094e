"""The file format, against the safetensors library and torch, and every way a file can be
broken."""

import hashlib
import json
import os
import weakref

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from emu_jax.checkpoint import safetensors_io
from emu_jax.checkpoint.safetensors_io import (
    fingerprint,
    fingerprint_params,
    iter_safetensors,
    place,
    read_shapes,
    write_safetensors,
)
from emu_jax.errors import UserError


def tensors():
    random = np.random.default_rng(0)
    return {
        "a/kernel": random.normal(size=(3, 5)).astype(np.float32),
        "b/half": random.normal(size=(7,)).astype(ml_dtypes.bfloat16),
        "c/ids": np.arange(4),
        "d/scalar": np.full((), 2.5, np.float32),
        "e/empty": np.zeros((0, 3), np.float16),
        "f/flag": np.array([True, False]),
    }


def assert_same(read, expected):
    assert read.keys() == expected.keys()
    for name, value in expected.items():
        assert read[name].dtype == value.dtype and read[name].shape == value.shape, name
        assert read[name].tobytes() == value.tobytes(), name


def test_round_trip(tmp_path):
    path = str(tmp_path / "m.safetensors")
    write_safetensors(path, tensors())
    assert_same(dict(iter_safetensors(path)), tensors())
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_the_library_reads_what_is_written_and_the_other_way_round(tmp_path):
    ours, theirs = str(tmp_path / "ours.safetensors"), str(tmp_path / "theirs.safetensors")
    write_safetensors(ours, tensors())
    loaded = safetensors.torch.load_file(ours)
    for name, value in tensors().items():
        expected = torch.from_numpy(value.astype(np.float32))
        assert torch.equal(loaded[name].float(), expected), name
    assert loaded["b/half"].dtype == torch.bfloat16
    safetensors.torch.save_file(loaded, theirs, metadata={"format": "pt"})
    assert_same(dict(iter_safetensors(theirs)), tensors())


def test_only_what_is_asked_is_read(tmp_path, monkeypatch):
    path = str(tmp_path / "m.safetensors")
    write_safetensors(path, tensors())
    monkeypatch.setattr(safetensors_io, "_tensor", lambda data, entry: len(data))
    assert list(iter_safetensors(path, lambda name: name.startswith("a/"))) == [("a/kernel", 60)]
    shapes = read_shapes(path)
    assert shapes["a/kernel"] == jax.ShapeDtypeStruct((3, 5), np.float32)


def sharded(folder):
    folder.mkdir()
    parts = {"model-1.safetensors": {}, "model-2.safetensors": {}}
    for i, (name, value) in enumerate(tensors().items()):
        parts[f"model-{i % 2 + 1}.safetensors"][name] = value
    for file, part in parts.items():
        write_safetensors(str(folder / file), part)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_a_folder_with_an_index(tmp_path):
    folder = sharded(tmp_path / "m")
    assert_same(dict(iter_safetensors(str(folder))), tensors())
    before = fingerprint(str(folder))
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks model-2\.safetensors"):
        dict(iter_safetensors(str(folder)))
    (folder / "model-2.safetensors").write_bytes(b"")
    assert fingerprint(str(folder)) != before


def break_truncated(path, data):
    path.write_bytes(data[:-1])


def break_header(path, data):
    path.write_bytes(data[:40])


def break_empty(path, data):
    path.write_bytes(b"")


def break_kind(path, data):
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")


def break_json(path, data):
    path.write_bytes(data[:8] + b"!" + data[9:])


def break_entry(path, data):
    path.write_bytes(data.replace(b'"shape":[3,5]', b'"shape":[3,6]'))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (break_truncated, "cut short: .* bytes are there"),
        (break_header, "cut short"),
        (break_empty, "cut short at 0 bytes"),
        (break_kind, "not a safetensors file"),
        (break_json, "header of .* is not JSON"),
        (break_entry, "a/kernel contradicts itself"),
        (lambda path, data: path.unlink(), "nothing at"),
    ],
)
def test_a_broken_file_is_one_sentence(tmp_path, harm, words):
    path = tmp_path / "m.safetensors"
    write_safetensors(str(path), tensors())
    harm(path, path.read_bytes())
    with pytest.raises(UserError, match=words) as error:
        dict(iter_safetensors(str(path)))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_place_puts_each_tensor_where_it_belongs(tmp_path):
    path = str(tmp_path / "m.safetensors")
    write_safetensors(path, tensors())
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[-1])
    shardings = dict.fromkeys(tensors(), sharding)
    with jax.enable_x64(True):
        placed = place(iter_safetensors(path), shardings, dtype=jnp.bfloat16)
    assert placed["a/kernel"].dtype == jnp.bfloat16 and placed["a/kernel"].sharding == sharding
    assert placed["c/ids"].dtype == np.int64
    expected = tensors()["a/kernel"].astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(np.asarray(placed["a/kernel"]), expected)
    with pytest.raises(UserError, match="lacks 1 parameters, such as z"):
        place(iter_safetensors(path), {**shardings, "z": sharding})
    with pytest.raises(UserError, match="holds a/kernel, for which"):
        place(iter_safetensors(path), {})


def test_place_holds_one_tensor_at_a_time():
    made: list[weakref.ref] = []

    def make():
        assert all(tensor() is None for tensor in made), "an earlier tensor is still held"
        tensor = np.ones((64, 64), np.float32)
        made.append(weakref.ref(tensor))
        return tensor

    names, one = [f"{i}" for i in range(4)], jax.sharding.SingleDeviceSharding(jax.devices()[0])
    # As bf16, for on a CPU jax may use a numpy array's own memory.
    place(((n, make()) for n in names), dict.fromkeys(names, one), jnp.bfloat16)
    assert len(made) == 4


def test_fingerprints(tmp_path):
    path = tmp_path / "m.safetensors"
    write_safetensors(str(path), tensors())
    before = fingerprint(str(path))
    assert before == hashlib.sha256(path.read_bytes()).hexdigest()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data + b"!")  # Another size: the cache must notice.
    assert fingerprint(str(path)) != before
    params = tensors()
    digest = fingerprint_params(params)
    assert digest == fingerprint_params(dict(reversed(params.items())))
    assert digest == fingerprint_params(
        {n: jnp.asarray(v) if v.dtype.kind == "f" else v for n, v in params.items()}
    )
    for change in ({"a/kernel": params["a/kernel"].reshape(5, 3)}, {"d/scalar": np.ones(())}):
        assert fingerprint_params({**params, **change}) != digest
