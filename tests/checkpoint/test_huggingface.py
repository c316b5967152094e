"""Folders and hub names, and weights that stream."""

import json
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from huggingface_hub import constants

from emu_jax.checkpoint.huggingface import (
    find_folder,
    pipeline_patterns,
    read_config,
    stream_params,
    weights_of,
)
from emu_jax.checkpoint.safetensors_io import write_safetensors
from emu_jax.errors import UserError


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A machine without a network, whose hub cache holds text_encoder of somebody/model."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    root = tmp_path / "models--somebody--model"
    folder = root / "snapshots" / ("a" * 40) / "text_encoder"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "t5"}')
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("a" * 40)
    return folder


def test_a_local_folder_is_itself(tmp_path):
    assert find_folder(tmp_path) == tmp_path


def test_a_link_out_of_a_local_folder_is_refused(tmp_path):
    folder = tmp_path / "text_encoder"
    folder.mkdir()
    (tmp_path / "secret.json").write_text("{}")
    (folder / "own.json").write_text("{}")
    (folder / "config.json").symlink_to("own.json")
    assert find_folder(folder) == folder
    (folder / "vocab.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(UserError, match=r"'vocab.json', a symbolic link out of .*text_encoder"):
        find_folder(folder)


def test_a_hub_name_is_found_in_the_cache(hub):
    assert find_folder("somebody/model/text_encoder") == hub
    assert find_folder("somebody/model") == hub.parent


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nobody/model", "nobody/model is no local folder, and the hub does not give it"),
        ("somebody/model/text_encoder_2", "and the hub's model has no text_encoder_2"),
        ("no such/na me", "no such/na me is no local folder, and the hub does not"),
        ("weights", "There is no folder weights"),
        ("/weights/t5", "There is no folder /weights/t5"),
        ("../weights/t5", "There is no folder ../weights/t5"),
        ("somebody/model/../../../..", "There is no folder somebody/model/../../../.."),
        ("somebody/..", "There is no folder somebody/.."),
    ],
)
def test_what_is_nowhere_is_one_sentence(path, words, hub):
    with pytest.raises(UserError, match=words) as error:
        find_folder(path)
    assert "\n" not in str(error.value)


def test_the_config_names_the_kind(tmp_path):
    file = tmp_path / "config.json"
    file.write_text('{"model_type": "t5", "d_model": 3}')
    assert read_config(tmp_path, ("t5",))["d_model"] == 3
    with pytest.raises(UserError, match="model of type t5; wanted is clip or bert"):
        read_config(tmp_path, ("clip", "bert"))
    for content, words in (
        ("{", "is not JSON"),
        ("[]", "not a JSON object"),
        (json.dumps({"d_model": 3}), "has no entry 'model_type'"),
        (json.dumps({"model_type": ["t5"]}), "'model_type' is .* it must be a string"),
    ):
        file.write_text(content)
        with pytest.raises(UserError, match=words):
            read_config(tmp_path, ("t5",))


def test_the_full_weights_are_chosen_among_variants(tmp_path):
    for name in ("model.fp16.safetensors", "model.safetensors"):
        write_safetensors(str(tmp_path / name), {"a": np.zeros(1)})
    assert weights_of(tmp_path).name == "model.safetensors"


def test_a_stream_is_cast_turned_and_renamed(tmp_path):
    weight = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    write_safetensors(
        str(tmp_path / "m.safetensors"),
        {"old.weight": weight + 1, "a.weight": weight, "constant": np.arange(3)},
    )
    shapes = {"a/kernel": jax.ShapeDtypeStruct((5, 3), np.float32)}
    names = {"constant": None, "old.weight": "a.weight"}
    stream = stream_params(tmp_path, shapes, jnp.bfloat16, lambda key: names.get(key, key))
    ((path, value),) = stream
    assert path == "a/kernel" and value.dtype == jnp.bfloat16
    np.testing.assert_array_equal(value, weight.T.astype(jnp.bfloat16))  # the current spelling's


def test_one_tensor_is_in_memory_at_a_time(tmp_path):
    count, shape = 8, (512, 512)
    file = str(tmp_path / "m.safetensors")
    write_safetensors(file, {f"{i}.weight": np.ones(shape, np.float32) for i in range(count)})
    shapes = {f"{i}/kernel": jax.ShapeDtypeStruct(shape, np.float32) for i in range(count)}
    read, one = 0, 4 * shape[0] * shape[1]
    tracemalloc.start()
    for _, value in stream_params(tmp_path, shapes, jnp.bfloat16):
        read += value.nbytes
        del value
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert read == count * one // 2
    # As it is read (1), and its cast and turned copies (1/2 each).
    assert peak < 2.2 * one


HUB = (
    *("model_index.json", "v1-5-pruned.safetensors", "unet/config.json", "vae/config.json"),
    *("unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.bin"),
    *("unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.fp16.bin"),
    "vae/diffusion_pytorch_model-00001-of-00002.safetensors",
    "vae/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
    *("text_encoder/model.safetensors", "text_encoder/model.fp16.safetensors"),
    *("tokenizer/merges.txt", "safety_checker/model.safetensors", "unet/model.onnx"),
    *("tokenizer/spiece.model", "watermarker/diffusion_pytorch_model.safetensors"),
)


@pytest.mark.parametrize(
    "subfolder, variant, pickle, weights",
    [
        ("", "", False, {HUB[4], HUB[8], HUB[10]}),
        ("", "fp16", False, {HUB[6], HUB[9], HUB[11]}),
        ("unet", "", True, {HUB[4], HUB[5]}),
    ],
)
def test_of_a_pipeline_only_the_wanted_weights_are_fetched(subfolder, variant, pickle, weights):
    from huggingface_hub.utils import filter_repo_objects

    wanted, unwanted = pipeline_patterns(subfolder, variant, pickle)
    found = set(filter_repo_objects(HUB, allow_patterns=wanted, ignore_patterns=unwanted))
    small = {name for name in found if name.endswith((".json", ".txt", ".model"))}
    assert found - small == weights and "unet/config.json" in small
    for name in ("tokenizer/merges.txt", "tokenizer/spiece.model"):
        assert (name in small) == (not subfolder)
