"""Pickles of torch: their tensors are read, and nothing in them is executed."""

import os
import pickle

import numpy as np
import pytest
import torch

from emu_jax.errors import UserError
from emu_jax.interop.files import open_pickle
from emu_jax.nn.perceptual import load_lpips
from emu_jax.nn.pickles import read_arrays, read_pickle


class Command:
    """A pickle of this runs a command of the shell when it is read without care."""

    def __init__(self, marker):
        self.command = f"touch {marker}"

    def __reduce__(self):
        return os.system, (self.command,)


READERS = (read_pickle, lambda file: open_pickle(file, allowed=True), load_lpips)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_a_hostile_pickle_is_refused_and_not_executed(tmp_path, read, legacy, nested):
    file, marker = tmp_path / "model.pt", tmp_path / "executed"
    content = {"a": torch.ones(2), "b": Command(marker)}
    torch.save(
        {"state_dict": content} if nested else content,
        file,
        _use_new_zipfile_serialization=not legacy,
    )
    with pytest.raises(UserError, match="is refused: it holds more than tensors"):
        read(file)
    assert not marker.exists()


@pytest.mark.parametrize("read", READERS)
def test_a_plain_pickle_is_refused_and_not_executed(tmp_path, read):
    file, marker = tmp_path / "model.pt", tmp_path / "executed"
    file.write_bytes(pickle.dumps(Command(marker)))
    with pytest.raises(UserError, match="is refused"):
        read(file)
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\3\4" + bytes(40)])
def test_damage_is_one_sentence(tmp_path, content):
    file = tmp_path / "model.pt"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.pt is refused"):
        read_pickle(file)


@pytest.mark.parametrize("content", [torch.ones(2), [torch.ones(2)], {"state_dict": 3}])
def test_tensors_have_names(tmp_path, content):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(UserError, match="holds no tensors by name"):
        read_pickle(tmp_path / "model.pt")


@pytest.mark.parametrize("legacy", [False, True])
def test_the_tensors_are_read(tmp_path, legacy):
    file = tmp_path / "model.pt"
    wanted = {"a": torch.arange(3.0), "b": torch.nn.Parameter(torch.ones(2, 2))}
    content = {"epoch": 3, "state_dict": {**wanted, 7: torch.ones(1), "step": 5}}
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    found = read_pickle(file)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_a_torch_that_can_be_tricked_is_refused(tmp_path, monkeypatch):
    torch.save({"a": torch.ones(2)}, tmp_path / "model.pt")
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with pytest.raises(UserError, match=r"pip install 'torch>=2\.6'"):
        read_pickle(tmp_path / "model.pt")


def test_arrays_are_read_without_torch(tmp_path):
    file = tmp_path / "weights.ckpt"
    content = {"A_0": {"kernel": np.ones((2, 3), np.float32)}, "step": np.arange(3)}
    for protocol in (3, 4):
        data = pickle.dumps(content, protocol)
        if protocol == 3:  # numpy's name before 2.0; names end with a line, so any length fits
            data = data.replace(b"numpy._core", b"numpy.core")
        file.write_bytes(data)
        found = read_arrays(file)
        assert list(found) == ["A_0/kernel", "step"]
        np.testing.assert_array_equal(found["A_0/kernel"], content["A_0"]["kernel"])


@pytest.mark.parametrize("nested", [False, True])
def test_a_pickle_of_arrays_executes_nothing(tmp_path, nested):
    file, marker = tmp_path / "weights.ckpt", tmp_path / "executed"
    evil = Command(marker)
    hostile = [
        evil,
        {"a": np.ones(2), "b": evil},
        {"a": np.array([evil], object)},
        {"a": np.array(["text"], object)},
        {"a": np.load},  # a name of numpy itself
        {"a": 3},
    ]
    for content in hostile:
        file.write_bytes(pickle.dumps({"x": content} if nested else content))
        with pytest.raises(UserError, match="is refused: it holds more than numpy arrays"):
            (load_lpips if nested else read_arrays)(file)
    file.write_bytes(pickle.dumps({"a": np.ones(50)})[:-60])
    with pytest.raises(UserError, match="or is damaged"):
        read_arrays(file)
    assert not marker.exists()
