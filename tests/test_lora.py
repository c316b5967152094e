"""Adapters as whole programs: a small run of each family, resumed, drawn with, exported."""

import functools
import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pipelines
import pytest
import roundtrips
import runs
import torch
from etils import epath
from orbax.checkpoint import PyTreeCheckpointHandler
from PIL import Image
from safetensors.torch import load_file, save_file

from emu_jax.assembly.config import load
from emu_jax.assembly.generator import Generator
from emu_jax.assembly.models import open_model, with_adapter
from emu_jax.assembly.tasks import make_task
from emu_jax.checkpoint.adapters import FILE
from emu_jax.checkpoint.export import load_model, save_model
from emu_jax.cli.main import main
from emu_jax.errors import UserError
from emu_jax.nn.lora import factor
from emu_jax.nn.stack import relaid, unstacked

OPTIONS = (
    "--config.lora.rank=48",  # of a text 384 wide: large enough to be divided over devices
    "--config.lora.alpha=24.0",
    "--config.train.steps=4",
    "--config.train.validate_every=0",
    "--config.groups.generator.optimizer.learning_rate=0.05",
)
# A run of four steps of what is tuned for thousands.
SHORT = [f"--config.train.{key}" for key in ("batch_size=8", "log_every=1", "checkpoint_every=2")]
SHORT += ["--config.train.preview_every=0", "--config.groups.generator.optimizer.warmup=1"]
# Config, how the adapter's file calls the denoiser, further options.
FAMILIES = {
    "latents": ("latent_diffusion", "unet", []),
    "pixels": ("pixel_diffusion", "unet", []),
    "tokens": ("masked", "transformer", []),
    "transformer": ("latent_diffusion:denoiser=transformer", "transformer", []),
    "sd3": ("imported", "transformer", SHORT),
}


@pytest.fixture(scope="module")
def made(nursery, pictures, tmp_path_factory):
    """A family's name -> its ``base``, adapted ``run`` and command ``train``, made when it is first
    asked for.
    """
    make = functools.partial(make_family, nursery=nursery, pictures=pictures)
    return functools.cache(lambda name: make(name, tmp_path_factory.mktemp(name)))


def make_family(name, folder, nursery, pictures):
    config, _, own = FAMILIES[name]
    base, codec = folder / "base", folder / "codec"
    if name == "sd3":
        assert main(["import", str(pipelines.write_sd3(folder)), f"--out={base}"]) == 0
        config = f"imported:{base}"
    else:
        if name != "pixels":
            kind = "vq" if name == "tokens" else "kl"
            untrained(codec, runs.command(f"autoencoder:kind={kind}", folder, pictures))
            own = [*own, f"--config.codec.path={codec}"]
        untrained(base, runs.command(config, folder, pictures, *own))

    def train(label, workdir, *more, devices=1):
        options = (f"--config.data.cache_dir={folder}", f"--config.init_from={base}", *own)
        arguments = runs.command(config, workdir, pictures, *options, *OPTIONS, *more)
        nursery.run(f"{name}_{label}", arguments, devices=devices)
        return workdir

    run = train("first", folder / "run")
    return SimpleNamespace(base=base, run=run, train=train)


def untrained(folder, arguments):
    """A model of what a training command would train, with every parameter random."""
    config, _ = load(arguments[1:], "emu-jax train")
    rng, ones = np.random.default_rng(0), ("/scale", "latent/scale")
    params = {
        path: np.float32(path.endswith(ones) + 0.2 * rng.standard_normal(x.shape))
        for part in jax.eval_shape(make_task(config).init, jax.random.key(0))
        for path, x in part.items()
    }
    save_model(str(folder), params, config.to_dict(), {"step": 0}, dtype=None)


def exported(run, out, *more):
    assert main(["export", str(run), f"--out={out}", "--dtype=float32", *more]) == 0
    return out


@pytest.mark.parametrize("name", FAMILIES)
def test_a_familys_attention_is_adapted_and_all_of_it_learns(name, made):
    """And a checkpoint holds nothing else; it names its base."""
    family = made(name)
    base, arrays = load_model(str(family.base)), runs.arrays(family.run)
    factors = {path: x for path, x in arrays.items() if path.startswith("params/")}
    attention = {p.removesuffix("to_q/kernel") for p in base.params if p.endswith("/to_q/kernel")}
    wanted = {p for p in base.params if p.endswith("/kernel") and p.startswith(tuple(attention))}
    assert wanted and unstacked(factors).keys() == {
        f"params/{factor(layer, which)}"
        for path in wanted
        for layer in unstacked({path: base.params[path]})
        for which in ("lora_A", "lora_B")
    }
    held = [path for path, x in arrays.items() if path.startswith(("ema/", "opt/")) and x.ndim]
    assert held and all("/lora_" in path for path in held)
    still = {path for path, x in factors.items() if not np.any(x)}
    # Nothing reads what the text of its last layer would ask.
    unread = "params/denoiser/transformer_blocks/2/attn/add_q_proj/lora_B/kernel"
    assert still == ({unread} if name == "sd3" else set())
    recorded = load_model(str(family.run)).meta["frozen"]["base"]
    assert recorded["source"] == str(family.base) and recorded["fingerprint"] == base.fingerprint


@pytest.mark.parametrize("name", FAMILIES)
def test_a_run_is_exported_merged_and_alone(name, made, tmp_path):
    """Merged it is the base and the change that torch computes of the factors; the adapter alone,
    laid over the base, makes the same of it.
    """
    family, prefix = made(name), FAMILIES[name][1]
    whole, base = open_model(str(family.run)), load_model(str(family.base))
    merged = load_model(str(exported(family.run, tmp_path / "merged")))
    alone = exported(family.run, tmp_path / "alone", "--adapter")
    laid, layers = with_adapter(base, str(alone))[0].params, unstacked(base.params)
    factors = load_file(alone / FILE)
    names = {key.rpartition(".lora_")[0] for key in factors}
    assert whole.params.keys() == merged.params.keys() == laid.keys() == layers.keys()
    assert whole.config["lora"]["rank"] == 0
    for path, value in whole.params.items():
        np.testing.assert_array_equal(merged.params[path], value)
        np.testing.assert_allclose(laid[path], value, atol=1e-5, err_msg=path)
        module, _, leaf = path.replace("denoiser", prefix).replace("/", ".").rpartition(".")
        expected = torch.tensor(layers[path])
        if leaf == "kernel" and module in names:
            names.remove(module)
            a, b = (factors[f"{module}.lora_{x}.weight"] for x in "AB")
            assert a.shape[0] == 48
            expected = expected + (b @ a).T
        np.testing.assert_allclose(value, expected, atol=1e-5, err_msg=path)
    assert not names


# A transformer's trunk is that of tokens.
@pytest.mark.parametrize("name", ["latents", "pixels", "tokens", "sd3"])
def test_a_run_is_resumed_bit_for_bit(name, made, tmp_path):
    family, copy = made(name), tmp_path / "again"
    shutil.copytree(family.run, copy)
    shutil.rmtree(copy / "checkpoints" / "4")
    family.train("resumed", copy)
    expected, found = runs.arrays(family.run), runs.arrays(copy)
    assert int(found["step"]) == 4 and expected.keys() == found.keys()
    assert not [name for name in expected if not np.array_equal(expected[name], found[name])]
    assert runs.lines(copy / "metrics.jsonl") == runs.lines(family.run / "metrics.jsonl")


@pytest.mark.parametrize("name", ["pixels", "tokens"])
def test_a_run_draws_what_its_base_does_not(name, made):
    family = made(name)
    generator = Generator(str(family.run), batch_size=1)
    (adapted,) = generator.draw(["a red disc"], [0])
    generator._params = relaid(load_model(str(family.base)).params, generator._params)
    (plain,) = generator.draw(["a red disc"], [0])
    assert adapted.shape == (16, 16, 3) and not np.array_equal(adapted, plain)


def test_a_base_and_an_adapters_file_draw_what_the_run_draws(made, tmp_path):
    family, drawn = made("latents"), {}
    alone = exported(family.run, tmp_path / "alone", "--adapter")
    for name, options in (
        ("run", [f"--checkpoint={family.run}"]),
        ("file", [f"--checkpoint={family.base}", f"--adapter={alone}"]),
    ):
        out = tmp_path / name
        assert main(["sample", "a red disc", f"--out={out}", *options]) == 0
        (file,) = (f for f in out.glob("*.png") if f.name != "grid.png")
        drawn[name] = np.asarray(Image.open(file))  # the files' metadata name their models
    np.testing.assert_array_equal(drawn["run"], drawn["file"])


def test_factors_of_a_text_encoder_are_merged_into_it(movable_run, tmp_path):
    """As if the encoder's file had the merged weights."""
    key = "encoder.layer.0.attention.self.query"
    file = movable_run / "text" / "model.safetensors"
    weights = load_file(file)
    torch.manual_seed(0)
    down, up = torch.randn(4, 384), torch.randn(384, 4)
    names = (f"text_encoder.{key}.lora_A.weight", f"text_encoder.{key}.lora_B.weight")
    adapter = tmp_path / "adapter.safetensors"
    save_file(dict(zip(names, (down, up), strict=True)), adapter)

    def drawn(**options):
        return Generator(str(movable_run / "run"), batch_size=1, **options).draw(["a red disc"])[0]

    plain, merged = drawn(), drawn(adapter=str(adapter), adapter_scale=0.5)
    weights[f"{key}.weight"] = weights[f"{key}.weight"] + 0.5 * up @ down
    save_file(weights, file)
    expected = drawn()
    assert not np.array_equal(plain, merged)
    assert np.abs(merged.astype(int) - expected).max() <= 1


def test_two_devices_that_share_the_factors_learn_the_same(made, tmp_path):
    family = made("pixels")
    pair = family.train("pair", tmp_path / "pair", "--config.mesh.fsdp=2", devices=2)
    (state,) = pair.glob("checkpoints/4/state")
    stored = PyTreeCheckpointHandler().metadata(epath.Path(state)).tree
    shared = {
        jax.tree_util.keystr(path): (array.shape, array.storage.chunk_shape)
        for path, array in jax.tree_util.tree_leaves_with_path(stored)
        if array.storage and array.storage.chunk_shape != array.shape
    }
    assert shared and all("/add_k_proj/lora_A/" in n or "/add_v_proj/lora_A/" in n for n in shared)
    assert set(shared.values()) == {((384, 48), (192, 48))}
    one, two = (runs.lines(run / "metrics.jsonl") for run in (family.run, pair))
    losses = [[line["generator/loss"] for line in lines] for lines in (one, two)]
    assert len(losses[0]) == 4
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_diffusers_merges_the_adapter_of_an_import_as_we_do(made, tmp_path):
    """Its own pipeline with the adapter's file, and what the run is exported as for it."""
    family = made("sd3")
    alone = exported(family.run, tmp_path / "alone", "--adapter")
    merged = roundtrips.opened(roundtrips.export(family.run, tmp_path / "merged")).transformer
    pipeline = roundtrips.opened(family.base.parent / "sd3")
    before = {name: x.clone() for name, x in pipeline.transformer.state_dict().items()}
    pipeline.load_lora_weights(alone)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    wanted, found = pipeline.transformer.state_dict(), merged.state_dict()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5, err_msg=name)
    changed = [name for name, value in wanted.items() if not torch.equal(value, before[name])]
    assert 2 * len(changed) == len(load_file(alone / FILE)) - 2  # but for what nothing reads


def test_a_base_that_changed_is_refused(made, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(made("latents").run, copy)
    for record in copy.glob("checkpoints/*/meta/metadata"):
        text = json.loads(record.read_text())
        text["frozen"]["base"]["fingerprint"] = "0"
        record.write_text(json.dumps(text))
    with pytest.raises(UserError, match="which has changed since"):
        open_model(str(copy))
