"""Exported models and checkpoints, read by the same function."""

import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from emu_jax.checkpoint.export import load_model, save_model
from emu_jax.checkpoint.manager import Checkpoints
from emu_jax.errors import UserError

CONFIG = {"size": "tiny", "model": {"widths": [8, 16]}}


def make_params(seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        "codec/scale": jax.random.normal(keys[0], (4,)),
        "denoiser/conv/kernel": jax.random.normal(keys[1], (3, 3, 4, 8)),
        "denoiser/out/bias": jax.random.normal(keys[2], (8,)),
        "denoiser/ids": jnp.arange(3),
    }


@pytest.fixture
def exported(tmp_path):
    folder = tmp_path / "model"
    save_model(str(folder), make_params(), CONFIG, {"step": 30, "frozen": {}})
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Steps 10 and 20; the codec has no EMA."""
    workdir = tmp_path_factory.mktemp("workdir")
    with Checkpoints(str(workdir / "checkpoints")) as checkpoints:
        for step in (10, 20):
            params = make_params(step)
            ema = {n: v * 2 for n, v in params.items() if n.startswith("denoiser/")}
            state = {"step": step, "params": params, "ema": ema}
            meta = {"config": CONFIG, "frozen": {"text": {"source": "x", "fingerprint": "y"}}}
            checkpoints.save(step, state, meta, {"loss": 0.5})
    return workdir


def test_round_trip_in_bf16_and_back(exported):
    model = load_model(str(exported), dtype=np.float32)
    assert sorted(path.name for path in exported.iterdir()) == ["config.json", "model.safetensors"]
    assert model.config == CONFIG and model.meta == {"step": 30, "frozen": {}}
    for name, value in make_params().items():
        value = np.asarray(value)
        if value.dtype == np.float32:
            value = value.astype(ml_dtypes.bfloat16).astype(np.float32)
        assert model.params[name].dtype == value.dtype
        np.testing.assert_array_equal(model.params[name], value)
    assert load_model(str(exported)).params["codec/scale"].dtype == ml_dtypes.bfloat16


def test_others_can_read_it(exported):
    loaded = safetensors.numpy.load_file(exported / "model.safetensors")
    assert loaded.keys() == make_params().keys()


def test_fp32_is_bit_exact_and_has_the_fingerprint_of_its_parameters(tmp_path, trained):
    params = make_params(10)
    save_model(str(tmp_path / "m"), params, CONFIG, {}, dtype=None)
    model = load_model(str(tmp_path / "m"))
    for name, value in params.items():
        np.testing.assert_array_equal(model.params[name], value)
    # The same weights in another container, and in another form, are the same and another model.
    assert model.fingerprint == load_model(f"{trained}@10-raw").fingerprint
    assert model.fingerprint != load_model(f"{trained}@10").fingerprint


def test_the_ema_lies_over_the_parameters(trained):
    params = make_params(20)
    bias = params["denoiser/out/bias"]
    for path in (trained, trained / "checkpoints"):
        model = load_model(str(path))
        assert model.params.keys() == params.keys()
        np.testing.assert_array_equal(model.params["denoiser/out/bias"], bias * 2)
        np.testing.assert_array_equal(model.params["codec/scale"], params["codec/scale"])
        assert model.config == CONFIG and model.meta["step"] == 20
        assert model.meta["frozen"]["text"]["fingerprint"] == "y"
    raw = load_model(f"{trained}@last-raw").params
    np.testing.assert_array_equal(raw["denoiser/out/bias"], bias)


def test_a_step_and_a_prefix(exported, trained):
    model = load_model(f"{trained / 'checkpoints'}@10", prefix_filter="codec/")
    assert model.params.keys() == {"codec/scale"}
    np.testing.assert_array_equal(model.params["codec/scale"], make_params(10)["codec/scale"])
    assert load_model(str(exported), prefix_filter="codec/").params.keys() == {"codec/scale"}
    with pytest.raises(UserError, match="no parameters under 'codek/'"):
        load_model(str(exported), prefix_filter="codek/")
    with pytest.raises(UserError, match=r"step 15 .*: 10, 20 are"):
        load_model(f"{trained}@15")
    with pytest.raises(UserError, match=r"has chosen no best step"):
        load_model(f"{trained}@best")
    with pytest.raises(UserError, match=r"no checkpoints in .*so there is no @last"):
        load_model(f"{exported}@last")


@pytest.fixture
def chosen(tmp_path):
    """Step 10 chosen at the end of a run; its state was finished for that."""
    with Checkpoints(str(tmp_path / "checkpoints")) as checkpoints:
        for step in (10, 20):
            state = {"params": {"a": jnp.float32(step)}, "ema": {}, "state": {"b": jnp.zeros(())}}
            meta = {"config": CONFIG, "frozen": {}}
            if step == 20:
                choice = {"step": 10, "metric": "loss", "value": 0.5, "reason": "loss was best"}
                meta["chosen"] = choice
            checkpoints.save(step, state, meta, None, {"b": jnp.float32(step)})
    return tmp_path


def test_a_run_that_has_chosen_is_its_chosen_step(chosen):
    for path, step in (("", 10), ("@best", 10), ("@last", 20), ("/checkpoints", 10)):
        model = load_model(f"{chosen}{path}")
        assert model.meta["step"] == step == model.params["a"] == model.params["b"]
        assert model.meta["chosen"]["step"] == 10
    shutil.rmtree(chosen / "checkpoints" / "10")
    assert load_model(f"{chosen}@last").meta["step"] == 20
    with pytest.raises(UserError, match=r"no checkpoint of step 10 .*: 20 are"):
        load_model(str(chosen))


def test_a_named_step_is_read_whatever_the_newest_looks_like(chosen):
    shutil.rmtree(chosen / "checkpoints" / "20" / "meta")
    assert load_model(f"{chosen}@10").meta["step"] == 10
    with pytest.raises(UserError, match=r"checkpoint of step 20 .* is damaged"):
        load_model(str(chosen))


def test_loading_leaves_the_checkpoints_alone(trained):
    before = sorted(str(path) for path in trained.rglob("*"))
    load_model(str(trained))
    assert sorted(str(path) for path in trained.rglob("*")) == before


def no_config(folder):
    (folder / "config.json").unlink()


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def torn_weights(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-10])


def flipped_bit(folder):
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def torn_config(folder):
    (folder / "config.json").write_text((folder / "config.json").read_text()[:-20])


def foreign_config(folder):
    (folder / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))


def killed_while_replaced(folder):
    """New weights were renamed into place; the new config was not."""
    config = (folder / "config.json").read_text()
    save_model(str(folder), make_params(1), CONFIG, {"step": 60})
    (folder / "config.json").write_text(config)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (no_config, r"half-written: config\.json is not there"),
        (no_weights, r"half-written: model\.safetensors is not there"),
        (torn_weights, "cut short"),
        (flipped_bit, "half-written or changed"),
        (torn_config, "is not JSON at line"),
        (foreign_config, "not the config of a model"),
        (killed_while_replaced, "half-written or changed"),
        (shutil.rmtree, "no such folder"),
    ],
)
def test_a_broken_model_is_one_sentence(exported, harm, words):
    harm(exported)
    with pytest.raises(UserError, match=words) as error:
        load_model(str(exported))
    assert "\n" not in str(error.value) and str(exported) in str(error.value)


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(
        UserError, match=r"neither an exported model .* nor a folder of checkpoints"
    ):
        load_model(str(tmp_path))


def test_an_export_that_fails_leaves_the_old_one(exported):
    before = load_model(str(exported)).fingerprint
    bad = {**make_params(1), "x": np.zeros(3, np.complex64)}
    with pytest.raises(UserError, match="x is complex64"):
        save_model(str(exported), bad, CONFIG, {})
    assert load_model(str(exported)).fingerprint == before
    with pytest.raises(UserError, match="could not be written"):
        save_model(str(exported / "config.json" / "x"), make_params(), CONFIG, {})


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_link_out_of_an_exported_folder_is_refused(name, tmp_path):
    save_model(str(tmp_path / "model"), {"a": np.zeros(3, np.float32)}, {}, {})
    file = tmp_path / "model" / name
    file.rename(tmp_path / "secret")
    file.symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match=rf"'{name}', a symbolic link out of "):
        load_model(str(tmp_path / "model"))
