"""Hostile and harmless paths in the files of a model: none is executed, none leaves the folder."""

import json
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from emu_jax.checkpoint.export import load_model, save_model
from emu_jax.checkpoint.manager import Checkpoints
from emu_jax.checkpoint.paths import absolute_paths, checked_config, file_in, is_config_file
from emu_jax.checkpoint.safetensors_io import (
    fingerprint,
    iter_safetensors,
    open_safetensors,
    read_shapes,
    write_safetensors,
)
from emu_jax.errors import UserError

# Every key of a config that holds the path of a model, of data or of weights.
KEYS = (
    *("codec.path", "low_codec.path", "text.clip.path", "init_from", "loss.perceptual_path"),
    *("measure.judge", "data.data_dir", "data.cache_dir", "text.novel.files.0"),
)


def config_with(key: str, value) -> dict:
    """A config in which only ``key`` is set."""
    config: dict = {"task": "generation", "lora": {"rank": 4}}
    *sections, last = key.split(".")
    section = config
    for name in sections:
        section = section.setdefault(name, {})
    section[last] = value
    return config


def exported(folder: Path, config) -> Path:
    save_model(str(folder), {"a": np.zeros(2, np.float32)}, config, {"step": 1})
    return folder


def saved(folder: Path, config) -> Path:
    with Checkpoints(str(folder / "checkpoints")) as checkpoints:
        state = {"params": {"a": jnp.zeros(2)}, "ema": {}, "state": {}}
        checkpoints.save(1, state, {"config": config}, None)
    return folder


@pytest.mark.parametrize("path", ["x.py", "a/x.py:size=tiny", "/a/x.py", "x.py:a:b", "x.py/"])
def test_a_config_file_is_known_by_its_ending(path):
    assert is_config_file(path)


@pytest.mark.parametrize("path", ["", "runs/x", "x.py@best", "a.py/b", "builtin:x.py", "x.pyc"])
def test_anything_else_is_a_model(path):
    assert not is_config_file(path)


@pytest.mark.parametrize("write", [exported, saved])
@pytest.mark.parametrize("key", KEYS)
def test_no_stored_config_names_a_python_file(tmp_path, key, write):
    (tmp_path / "weights.py").write_text("raise SystemExit('executed')\n")
    value = f"{tmp_path}/weights.py:size=tiny"
    folder = write(tmp_path / "model", config_with(key, value))
    with pytest.raises(UserError, match=rf"{key} in .*model.* is '{value}', a Python file"):
        load_model(str(folder))


OPENED = ("codec.path", "low_codec.path", "text.clip.path", "init_from")


@pytest.mark.parametrize("key", OPENED)
def test_a_path_of_an_exported_folder_stays_in_it(tmp_path, key):
    model, part = tmp_path / "model", key.split(".")[0]

    def opened(path):
        config = load_model(str(exported(model, config_with(key, path)))).config
        for name in key.split("."):
            config = config[name]
        return config

    (tmp_path / "outside").mkdir()
    (model / part).mkdir(parents=True)
    assert opened(part) == str(model / part)
    for path in ("../outside", f"{part}/../../outside", ".."):
        with pytest.raises(UserError, match=r"may not contain '\.\.'"):
            opened(path)
    (model / "link").symlink_to(tmp_path / "outside")
    (model / "within").symlink_to(model / part)
    with pytest.raises(UserError, match=f"{key} in .* is 'link', a symbolic link out of"):
        opened("link")
    assert opened("within") == str(model / "within")
    # As training recorded them: relative to the working directory, on the hub, elsewhere.
    for path in ("runs/codec", "openai/clip", str(tmp_path), "~/runs", "builtin:a", "gs://b/c", ""):
        assert opened(path) == path
    for path in (3, ["a"], True):
        with pytest.raises(UserError, match=f"{key} in .* it must be a path"):
            opened(path)


def test_what_is_only_a_record_is_left_alone(tmp_path):
    config = {"init_from": "../runs/base", "lora": {"rank": 0}, "text": {"minilm": {"path": None}}}
    assert load_model(str(exported(tmp_path / "a", config))).config == config
    config = config_with("codec.path", "../runs/codec")
    assert load_model(str(saved(tmp_path / "b", config))).config == config


@pytest.mark.parametrize("config", [[], "config", None, 3])
def test_a_config_that_is_none_is_refused(config):
    with pytest.raises(UserError, match=r"config\.json has no config of a model"):
        checked_config(config, "config.json")


def test_an_export_has_no_path_that_its_reader_refuses(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    config = {"codec": {"path": "../codec"}, "text": {"a": {"path": "runs/a"}}}
    absolute_paths(config)
    assert config == {"codec": {"path": f"{tmp_path}/codec"}, "text": {"a": {"path": "runs/a"}}}


# Indices -----------------------------------------------------------------------------------------

READERS = (
    lambda path: dict(iter_safetensors(path)),
    read_shapes,
    open_safetensors,
    fingerprint,
)


@pytest.fixture
def index(tmp_path):
    """Writes the index of a folder beside which a secret lies; the folder."""
    write_safetensors(str(tmp_path / "secret.safetensors"), {"s": np.ones(3, np.float32)})
    folder = tmp_path / "model"
    (folder / "directory").mkdir(parents=True)
    write_safetensors(str(folder / "own.safetensors"), {"a": np.ones(3, np.float32)})
    (folder / "link.safetensors").symlink_to(tmp_path / "secret.safetensors")
    (folder / "within.safetensors").symlink_to("own.safetensors")
    os.mkfifo(folder / "pipe")

    def write(content) -> str:
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))
        return str(folder)

    return write


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../secret.safetensors", "does not lie in"),
        ("directory/../../secret.safetensors", "does not lie in"),
        ("{parent}/secret.safetensors", "does not lie in"),
        ("link.safetensors", "a symbolic link out of"),
        ("directory", "a folder or a device"),
        ("pipe", "a folder or a device"),
        (".", "a folder or a device"),
        ("none.safetensors", r"lacks none\.safetensors"),
        ("a\0b", "does not lie in"),
        ("", "not a file name"),
        (3, "not a file name"),
        (None, "not a file name"),
        (["own.safetensors"], "not a file name"),
        ({"a": "b"}, "not a file name"),
    ],
)
def test_an_index_names_files_of_its_folder(index, tmp_path, name, words, read):
    if isinstance(name, str):
        name = name.replace("{parent}", str(tmp_path))
    folder = index({"weight_map": {"a": "own.safetensors", "s": name}})
    with pytest.raises(UserError, match=words) as error:
        read(folder)
    assert "index.json" in str(error.value)


@pytest.mark.parametrize("content", [[], {}, {"weight_map": ["own.safetensors"]}, "a", 3, None])
def test_an_index_of_another_shape_is_refused(index, content):
    with pytest.raises(UserError, match=r"index\.json"):
        read_shapes(index(content))


def test_links_within_the_folder_are_followed(index):
    assert read_shapes(index({"weight_map": {"a": "within.safetensors"}})).keys() == {"a"}


def test_the_hubs_cache_is_links_to_its_blobs(tmp_path):
    """Files under ``snapshots`` are links to ``blobs`` of the same model, not of another."""
    blobs = tmp_path / "models--some--body" / "blobs"
    snapshot = tmp_path / "models--some--body" / "snapshots" / "abc" / "text_encoder"
    for folder in (blobs, snapshot, tmp_path / "models--other" / "blobs"):
        folder.mkdir(parents=True)
    write_safetensors(str(blobs / "123"), {"a": np.ones(3, np.float32)})
    (blobs / "456").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    (snapshot / "model-1.safetensors").symlink_to("../../../blobs/123")
    (snapshot / "model.safetensors.index.json").symlink_to("../../../blobs/456")
    assert read_shapes(str(snapshot)).keys() == {"a"}
    (tmp_path / "models--other" / "blobs" / "123").write_bytes((blobs / "123").read_bytes())
    (snapshot / "model-1.safetensors").unlink()
    (snapshot / "model-1.safetensors").symlink_to("../../../../models--other/blobs/123")
    with pytest.raises(UserError, match="a symbolic link out of"):
        read_shapes(str(snapshot))


def test_a_file_in_a_subfolder_is_in_the_folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_text("")
    assert file_in(epath.Path(tmp_path), "a/b", "index") == epath.Path(tmp_path / "a" / "b")
