"""The task of the SUR-adapter: its loss, what trains, and a whole run that is resumed."""

import shutil

import encoders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from ml_collections import ConfigDict
from PIL import Image

from emu_jax.assembly.config import load, read
from emu_jax.assembly.models import open_model
from emu_jax.assembly.streams import stream_specs
from emu_jax.assembly.tasks import make_task
from emu_jax.checkpoint.export import load_model, save_model
from emu_jax.checkpoint.safetensors_io import read_metadata
from emu_jax.cli.main import main
from emu_jax.errors import UserError
from emu_jax.nn.text_adapter import PREFIX
from emu_jax.parallel.mesh import make_mesh
from emu_jax.planning.inputs import abstract_frozen, synthetic, training_batch
from emu_jax.tasks.adapting import BASE
from emu_jax.tasks.base import Context
from emu_jax.tasks.text_adaptation import PROJECTION

CONFIGS = runs.ROOT / "configs"
SAMPLING = ("steps", "spacing", "guidance_scale")
MODEL = dict(path="", size="smollm2_135m", layers=(0, 7))


def config_of(options="size=test", distillation=None, **adapter):
    config = read(f"{CONFIGS}/adapter.py:{options}")
    family = options.partition("base=")[2] or "latent_diffusion"
    config.init_from = f"{CONFIGS}/{family}.py:size=test"
    config.data.image_size, config.train.batch_size = 32, 2
    config.distillation.update(dict(llm=2.0, prompt=3.0) | (distillation or {}))
    config.vectors.update(MODEL)
    config.adapter.update(adapter)
    return config


def loss(task, params, frozen, batch):
    group = next(iter(task.groups))
    found = task.loss(group, Context(params, frozen, {}, batch, jax.random.key(3)))
    return found.value, found.metrics


def made_up(config, task):
    """Frozen networks and a batch of cached latents and texts."""
    mesh = make_mesh(devices=jax.devices()[:1])
    codec = abstract_frozen(task, mesh, (BASE, PROJECTION, "minilm"))
    shapes = training_batch(
        task, stream_specs(config, task), codec, mesh, cached_latents=True, cached_text=True
    )
    batch, rng = synthetic(shapes, jax.random.key(6)), np.random.default_rng(5)
    latent = task.generator.codec.shapes()
    frozen = {
        BASE: {
            path: jnp.asarray(0.1 * rng.normal(size=x.shape), jnp.float32)
            for path, x in task.frozen[BASE].shapes.items()
        },
        PROJECTION: {path: jnp.asarray(x) for path, x in task.frozen[PROJECTION].tensors()},
        "codec": {p: jnp.ones(latent[p].shape) for p in latent if p.startswith("latent/")},
    }
    return frozen, batch


def test_the_loss_trains_the_adapter_alone_and_starts_from_the_bases():
    config = config_of(distillation=dict(simple_tokens=0), init="kaiming")
    task = make_task(config).prepare(None)
    frozen, batch = made_up(config, task)
    assert batch["train"]["vectors"].shape == (2, 2, 576)
    assert batch["train"]["captions"]["complex"]["text"].keys() == {"minilm"}
    assert not any(path.startswith(PREFIX) for path in frozen[BASE])

    params, state = jax.jit(task.init)(jax.random.key(0))
    assert not state and all(path.startswith(f"{PREFIX}/minilm/") for path in params)
    step = jax.jit(jax.value_and_grad(lambda p: loss(task, p, frozen, batch), has_aux=True))
    (total, terms), slope = step(params)
    want = terms["simple"] + 2 * terms["llm"] + 3 * terms["prompt"]
    np.testing.assert_allclose(total, want, rtol=1e-5)
    assert all(value > 0 for value in terms.values()) and terms.keys() == {
        "simple",
        "llm",
        "prompt",
    }
    # The bias of the keys adds the same to all logits of a softmax.
    still = {path for path in params if not np.any(np.abs(slope[path]) > 1e-7)}
    assert slope.keys() == params.keys() and still <= {f"{PREFIX}/minilm/key/bias"}

    # With a share of 0 the generator's loss is its own.
    unmixed = make_task(config_of(distillation=dict(simple_tokens=0), eta=0.0)).prepare(None)
    found = jax.jit(lambda p: loss(unmixed, p, frozen, batch))(params)[1]["simple"]
    plain = read(f"{CONFIGS}/latent_diffusion.py:size=test")
    plain.data.image_size, plain.train.batch_size, plain.drop_text = 32, 2, 0.0
    plain.text.minilm.length = config.text.minilm.length
    alone = make_task(plain).prepare(None)
    want, _ = jax.jit(lambda p: loss(alone, p, frozen, batch))(frozen[BASE])
    np.testing.assert_allclose(found, want, rtol=1e-5)


def test_padding_may_be_left_out_of_simple_prompts():
    """The loss stays the same, and prompts that lose words are counted."""
    found = {}
    for tokens in (0, 24):
        config = config_of(distillation=dict(simple_tokens=tokens), init="kaiming", dropout=0.0)
        task = make_task(config).prepare(None)
        frozen, batch = made_up(config, task)
        params, _ = jax.jit(task.init)(jax.random.key(0))
        step = jax.jit(lambda p, batch, task=task, frozen=frozen: loss(task, p, frozen, batch))
        for words in (20, 30):
            length = batch["train"]["text"]["minilm"]["mask"].shape[1]
            kept = jnp.arange(length) < jnp.array([[words], [20]])
            batch["train"]["text"]["minilm"]["mask"] = kept
            found[tokens, words] = step(params, batch)
    for name, value in found[0, 20][1].items():
        np.testing.assert_allclose(found[24, 20][1][name], value, rtol=1e-5, err_msg=name)
    assert found[24, 20][1]["cut"] == 0 and found[24, 30][1]["cut"] == 0.5
    assert abs(found[24, 30][0] - found[0, 30][0]) > 1e-3 * abs(found[0, 30][0])


def test_padding_that_a_generator_reads_is_not_left_out():
    config = read(f"{CONFIGS}/adapter.py:size=sd15")
    config.distillation.simple_tokens = 24
    with pytest.raises(UserError, match="attends to the padding of clip"):
        make_task(config)


def test_a_loss_without_a_weight_reads_no_data():
    task = make_task(config_of(distillation=dict(llm=0.0, prompt=0.0)))
    (rows,) = task.streams.values()
    assert (rows.captions, rows.vectors) == ((), None) and PROJECTION not in task.frozen


def test_what_an_adapter_is_compared_with():
    """Cross-attention tuned on the same prompts; vectors of other prompts."""
    config = read(f"{CONFIGS}/adapter.py:size=test,stage=cross_attention")
    task = make_task(config)
    shapes = jax.eval_shape(task.init, jax.random.key(0))[0]
    (group,) = task.groups.values()
    trained = group.paths(shapes)
    assert trained and all("/attn2/" in path for path in trained)
    assert config.data.train == read(f"{CONFIGS}/adapter.py:size=test").data.train

    config = config_of()
    config.vectors.update(dict(control="shuffled", seed=3))
    (rows,) = make_task(config).streams.values()
    assert rows.vectors[1:] == ("shuffled", 3)


@pytest.mark.parametrize("base", ["pixel_diffusion", "masked"])
def test_it_wraps_every_family(base):
    config, mesh = config_of(f"size=test,base={base}"), make_mesh(devices=jax.devices()[:1])
    task = make_task(config).prepare(None)
    frozen = abstract_frozen(task, mesh)
    batch = training_batch(task, stream_specs(config, task), frozen, mesh)
    params, _ = jax.eval_shape(task.init, jax.random.key(0))
    value, terms = jax.eval_shape(lambda *given: loss(task, *given), params, frozen, batch)
    assert value.shape == () and terms.keys() == {"simple", "llm", "prompt", "cut"}


def test_the_published_size():
    task = make_task(read(f"{CONFIGS}/adapter.py:size=sd15"))
    params, _ = jax.eval_shape(task.init, jax.random.key(0))
    assert sum(x.size for x in params.values()) == 13_980_928
    assert task.frozen[PROJECTION].shapes["clip/kernel"].shape == (5120, 768)


def test_what_cannot_be_trained_is_said():
    for section, key, value, words in (
        ("", "drop_text", 0.1, r"drop_text is 0\.1, but an adapter trains on every text"),
        ("", "init_from", "", "needs init_from"),
        ("vectors", "layer", 5, "layer is 5; use one of vectors.layers: 0, 7"),
        ("vectors", "size", "", "vectors.path is empty"),
    ):
        config = config_of()
        setattr(config[section] if section else config, key, value)
        with pytest.raises(UserError, match=words):
            make_task(config)


def test_a_run_is_as_small_as_its_adapter_and_is_resumed(
    pictures, scenes, autoencoder_run, tmp_path
):
    """On texts and vectors from caches; the run is a generator with an adapter for its text."""
    encoders.llama(tmp_path / "llama", max_position_embeddings=256)
    parts = ("--config.text.minilm.length=50", f"--config.codec.path={autoencoder_run}")
    base = tmp_path / "base"
    arguments = runs.command("latent_diffusion", base, pictures, *parts)
    config, _ = load(arguments[1:], "emu-jax train")
    rng = np.random.default_rng(0)
    whole = {
        path: np.float32(path.endswith("/scale") + 0.2 * rng.standard_normal(x.shape))
        for path, x in jax.eval_shape(make_task(config).init, jax.random.key(0))[0].items()
    }
    save_model(str(base), whole, config.to_dict(), {"step": 0}, dtype=None)

    def train(workdir):
        options = dict(
            image_size=16,
            data_dir=scenes,
            cache_dir=tmp_path / "cache",
            cache_text=True,
            **{
                f"{part}.openmoji.dataset": "scenes/openmoji_tiny"
                for part in ("train", "validation.scenes")
            },
        )
        return main(
            [
                "train",
                f"--config={CONFIGS}/adapter.py:size=test",
                f"--workdir={workdir}",
                *(f"--config.data.{key}={value}" for key, value in options.items()),
                *parts,
                f"--config.text.minilm.path={pictures}/text_encoder",
                "--config.denoiser.widths=(8,)",
                f"--config.init_from={base}",
                "--config.distillation.llm=1e-3",
                f"--config.vectors.path={tmp_path}/llama",
                *(f"--config.sampling.{key}={config.sampling[key]}" for key in SAMPLING),
                "--config.train.steps=4",
                "--config.train.validate_every=4",
            ]
        )

    run, again = tmp_path / "run", tmp_path / "again"
    assert train(run) == 0
    expected, head = runs.arrays(run), f"params/{PREFIX}/minilm/"
    own = {path.removeprefix("params/"): x for path, x in expected.items() if path.startswith(head)}
    assert len(own) == sum(path.startswith("params/") for path in expected) > 0
    stored = sum(x.size for x in expected.values())
    assert stored <= 3 * sum(x.size for x in own.values()) + 100  # and two moments of Adam
    logged = set().union(*runs.lines(run / "metrics.jsonl"))
    assert all(any(name in key for key in logged) for name in ("simple", "llm", "prompt"))

    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints" / "4")
    assert train(again) == 0
    found = runs.arrays(again)
    assert int(found["step"]) == 4 and expected.keys() == found.keys()
    assert not [name for name in expected if not np.array_equal(expected[name], found[name])]
    assert runs.lines(again / "metrics.jsonl") == runs.lines(run / "metrics.jsonl")

    # Opened, it is a generator: its base as it was, and the adapter.
    model = open_model(str(run))
    assert model.config["task"] == "generation" and "distillation" not in model.config
    assert model.params.keys() == whole.keys() | own.keys()
    for path, value in (load_model(str(base)).params | own).items():
        np.testing.assert_array_equal(model.params[path], value)
    task = make_task(ConfigDict(model.config))
    assert jax.eval_shape(task.init, jax.random.key(0))[0].keys() == model.params.keys()

    # Its file makes of the base what the run is; with a share of 0 the base stays as it is.
    file, place = tmp_path / "adapter.safetensors", tmp_path / "images"
    assert main(["export", str(run), "--adapter", f"--out={file}"]) == 0
    assert read_metadata(str(file))["encoders"] == '{"minilm": 384}'

    def drawn(*more):
        before = {*place.glob("*_*.png")}
        assert main(["sample", "three apples", "a red fox", f"--out={place}", *more]) == 0
        images = sorted({*place.glob("*_*.png")} - before)
        return np.stack([np.asarray(Image.open(image)) for image in images])

    plain = drawn(f"--checkpoint={base}")
    used = drawn(f"--checkpoint={base}", f"--text_adapter={file}")
    assert plain.shape == used.shape and np.any(plain != used)
    np.testing.assert_array_equal(drawn(f"--checkpoint={run}"), used)
    unmixed = drawn(f"--checkpoint={base}@{file}", "--eta=0")
    np.testing.assert_array_equal(unmixed, plain)
