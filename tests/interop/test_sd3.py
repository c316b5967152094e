"""A small StableDiffusion3Pipeline of diffusers: imported, drawn with, tuned, exported, opened
again."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pipelines
import pytest
import runs
import safetensors.torch
import torch
from diffusers import DiffusionPipeline, SD3Transformer2DModel

from emu_jax.checkpoint.export import save_model
from emu_jax.cli.config import read
from emu_jax.cli.generator import Generator, open_task
from emu_jax.cli.initial import initial
from emu_jax.cli.main import main
from emu_jax.errors import UserError
from emu_jax.interop import schedulers, sd3
from emu_jax.interop.pipelines import SD3, pipeline_of
from emu_jax.nn.stack import unstacked
from emu_jax.parallel.mesh import make_mesh
from emu_jax.tasks import generation
from emu_jax.tasks.codecs import AutoencoderCodec

PROMPTS, SEEDS = ["a red fox", "cat"], np.array([3, 4], np.uint32)
STEPS = 4
QUICK = dict(compiler_options={"xla_backend_optimization_level": 0})
FLOW = dict(_class_name="FlowMatchEulerDiscreteScheduler", num_train_timesteps=1000, shift=3.0)


@pytest.fixture(scope="module")
def trip(tmp_path_factory):
    """(diffusers' folder, ours, diffusers' again)."""
    folder = tmp_path_factory.mktemp("sd3")
    source = pipelines.write_sd3(folder)
    ours, back = folder / "ours", folder / "back"
    assert main(["import", str(source), f"--out={ours}"]) == 0
    assert main(["export", str(ours), f"--out={back}", "--format=diffusers"]) == 0
    return source, ours, back


@pytest.fixture(scope="module")
def generator(trip):
    made = Generator(str(trip[1]), batch_size=2, steps=STEPS)
    made._generate = jax.jit(made._draw_batch, static_argnames="decode", **QUICK)
    return made


def opened(folder):
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def far(a, b) -> float:
    return float(np.linalg.norm(np.asarray(a) - np.asarray(b)) / np.linalg.norm(np.asarray(b)))


def test_there_and_back_is_the_same_bits_keys_and_settings(trip):
    source, _, back = trip
    files = sorted(f.relative_to(source) for f in source.rglob("*") if f.is_file())
    assert files == sorted(f.relative_to(back) for f in back.rglob("*") if f.is_file())
    assert sum(f.suffix == ".safetensors" for f in files) == 5
    for file in files:
        if file.suffix == ".json":
            before, after = (json.loads((x / file).read_text()) for x in (source, back))
            if file.name == "model_index.json":
                assert before.pop("_diffusers_version")
            assert before == after, file
        elif file.suffix == ".safetensors":
            before, after = (safetensors.torch.load_file(x / file) for x in (source, back))
            assert before.keys() == after.keys()
            for key, value in before.items():
                assert value.dtype == after[key].dtype and torch.equal(value, after[key]), key
        else:
            assert (source / file).read_bytes() == (back / file).read_bytes()


def test_a_run_from_the_same_noise_is_diffusers(trip, generator, monkeypatch):
    """As imported: guidance 7, Euler on the shifted straight path; three text encoders and all."""
    monkeypatch.setattr(AutoencoderCodec, "decode", lambda self, params, z: z)
    monkeypatch.setattr(generation, "to_pixels", lambda x: x)
    drawn = np.stack(list(generator.draw(PROMPTS, list(SEEDS))))
    keys = jax.vmap(jax.random.key)(SEEDS)
    start = np.asarray(generator._task.process.prior(keys, (2, 8, 8, 6)))
    wanted = opened(trip[2])(
        PROMPTS,
        latents=torch.tensor(start).permute(0, 3, 1, 2),
        num_inference_steps=STEPS,
        output_type="latent",
    ).images.permute(0, 2, 3, 1)
    error = far(drawn, wanted)
    print(f"a run of {STEPS} steps differs by {error:.1e}")
    assert np.std(wanted.numpy()) > 0.1 and error < 1e-3


def test_one_call_of_each_network_is_diffusers(trip, generator):
    pipeline = opened(trip[2])
    task, frozen = generator._task, generator._frozen
    encoded = {
        name: jax.jit(encoder.apply, **QUICK)(frozen[name], **encoder.tokenize(PROMPTS))
        for name, encoder in task.encoders.items()
    }
    by = task.condition(generator._params, encoded, jnp.zeros((2, 6), jnp.int32))
    rng = np.random.default_rng(0)
    x, t = np.float32(rng.standard_normal((2, 8, 8, 6))), np.float32([5, 900])
    params = {k.removeprefix("denoiser/"): v for k, v in generator._params.items()}
    first = lambda x: torch.tensor(x).permute(0, 3, 1, 2)  # noqa: E731
    vae = pipeline.vae
    with torch.no_grad():
        states, _, pooled, _ = pipeline.encode_prompt(PROMPTS, None, None)
        wanted = pipeline.transformer(
            first(x),
            encoder_hidden_states=states,
            pooled_projections=pooled,
            timestep=torch.tensor(t),
        ).sample
        picture = vae.decode(first(x) / vae.config.scaling_factor + vae.config.shift_factor).sample
    assert by.mask.all() and by.context.shape == states.shape
    output = jax.jit(task.denoiser, **QUICK)(params, x, t, by.context, by.mask, by.vector)
    errors = dict(
        text=far(by.context, states),
        pooled=far(by.vector, pooled),
        denoiser=far(output, wanted.permute(0, 2, 3, 1)),
        decoder=far(jax.jit(task.codec.decode)(frozen["codec"], x), picture.permute(0, 2, 3, 1)),
    )
    print({part: f"{error:.1e}" for part, error in errors.items()})
    assert max(errors.values()) < 1e-4


def test_without_the_public_files_at_hand_they_are_written_anew(trip, tmp_path):
    source, ours, _ = trip
    for folder in (ours, ours / "codec"):
        target = tmp_path / "ours" / folder.relative_to(ours)
        target.mkdir(parents=True)
        (target / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
        config = json.loads((folder / "config.json").read_text())
        assert config.pop("source")
        if folder == ours:
            config["config"]["codec"]["path"] = str(tmp_path / "ours/codec")
        (target / "config.json").write_text(json.dumps(config))
    out = tmp_path / "back"
    assert main(["export", f"{tmp_path}/ours", f"--out={out}", "--format=diffusers"]) == 0
    theirs, anew = opened(source), opened(out)
    aside = ("_name_or_path", "_diffusers_version", "_use_default_values", "force_upcast")
    for part in ("transformer", "scheduler", "vae"):
        a, b = (dict(getattr(p, part).config) for p in (theirs, anew))
        differ = {k for k in a if k not in aside and _plain(a[k]) != _plain(b[k])}
        assert not differ, (part, {key: (a[key], b[key]) for key in differ})


def test_an_import_is_what_its_size_is_tuned_from_and_exported_again(trip, tmp_path):
    """The config of that size, with the small network's numbers; everything learns but the table of
    places and what a last layer's text would ask."""
    source, ours, _ = trip
    imported = json.loads((ours / "config.json").read_text())["config"]
    config = read(f"{runs.ROOT}/configs/latent_diffusion.py:size=sd3,stage=quality_tune")
    config.update(dict(init_from=str(ours), compute_dtype="float32"))
    config.data.update(dict(image_size=16, buckets=False))
    config.codec.path = f"{ours}/codec"
    for name, section in imported["text"].items():
        places = {key: section[key] for key in ("path", "dtype", "length")}
        config.text[name].update(places | dict(size=""))
    config.denoiser.update(imported["denoiser"])
    mesh = make_mesh()
    task, frozen = open_task(config, mesh)
    params, _ = initial(config, task, mesh)
    encoders = task.encoders.items()
    rows = dict(
        image=np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8),
        sizes=np.array([[16, 16, 0, 0, 16, 16]] * 2),
        tokens={name: encoder.tokenize(PROMPTS) for name, encoder in encoders},
    )

    @functools.partial(jax.jit, **QUICK)
    def slopes(params):
        def loss(params):
            batch, key = dict(train=rows), jax.random.key(1)
            return task.loss("generator", params, frozen, {}, batch, key, jnp.int32(0))[0]

        return jax.grad(loss)(params)

    learns = task.groups["generator"].paths(params)
    assert [path for path in params if path not in learns] == ["denoiser/pos_embed/pos_embed"]
    found = {path: np.asarray(slope) for path, slope in slopes(params).items()}
    still = [path for path in learns if not np.any(found[path])]
    unasked = "denoiser/transformer_blocks/2/attn/add_q_proj/"  # of a text that ends there
    assert still == [f"{unasked}bias", f"{unasked}kernel"]
    assert all(np.all(np.isfinite(slope)) for slope in found.values())
    tuned = {path: np.asarray(value) - 0.01 * found[path] for path, value in params.items()}
    run, out = str(tmp_path / "run"), tmp_path / "out"
    save_model(run, unstacked(tuned), config.to_dict(), {"step": 1}, dtype=None)
    assert main(["export", run, f"--out={out}", "--format=diffusers"]) == 0
    before, after = opened(source), opened(out)
    own = after.transformer.state_dict()
    for key, value in before.transformer.state_dict().items():
        assert value.shape == own[key].shape, key
        # A bias of keys shifts all of a softmax's logits: it hardly learns.
        if not key.endswith(("to_k.bias", "add_k_proj.bias")):
            kept = key == "pos_embed.pos_embed" or ".2.attn.add_q_proj." in key
            assert torch.equal(value, own[key]) == kept, key
    assert after.scheduler.config.shift == 3.0
    picture = after("a red fox", output_type="np", num_inference_steps=2).images[0]
    assert picture.shape == (16, 16, 3) and np.all(np.isfinite(picture))


def test_a_lone_transformer_with_norms_of_queries_and_keys_goes_there_and_back(tmp_path):
    settings = pipelines.SD3 | dict(qk_norm="rms_norm", num_layers=2)
    before = pipelines.shaken(SD3Transformer2DModel(**settings))
    before.save_pretrained(tmp_path / "theirs")
    assert main(["import", f"{tmp_path}/theirs", f"--out={tmp_path}/ours"]) == 0
    assert main(["export", f"{tmp_path}/ours", f"--out={tmp_path}/b", "--format=diffusers"]) == 0
    after = SD3Transformer2DModel.from_pretrained(tmp_path / "b")
    files = (tmp_path / part / "config.json" for part in ("theirs", "b"))
    assert len({file.read_text().strip() for file in files}) == 1
    own = after.state_dict()
    assert any(key.endswith("norm_added_q.weight") for key in own)
    assert all(torch.equal(value, own[key]) for key, value in before.state_dict().items())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: sd3.arguments(pipelines.SD3 | dict(qk_norm="layer_norm")), "qk_norm = 'layer"),
        (lambda: sd3.arguments(pipelines.SD3 | dict(out_channels=5)), "out_channels = 5 for 6"),
        (lambda: sd3.arguments(pipelines.SD3 | dict(caption_projection_dim=5)), "another width"),
        (lambda: sd3.arguments(pipelines.SD3 | dict(dual_attention_layers=[0])), "dual_attention"),
        (lambda: schedulers.flow(FLOW | dict(use_dynamic_shifting=True)), "use_dynamic_shifting"),
        (lambda: schedulers.flow(FLOW | dict(num_train_timesteps=10)), "num_train_timesteps = 10"),
        (lambda: schedulers.flow(FLOW | dict(_class_name="DDIMScheduler")), "DDIMScheduler"),
    ],
)
def test_what_is_not_known_is_refused_by_name(call, words):
    with pytest.raises(UserError, match=words):
        call()


def test_only_a_generator_conditioned_as_sd3_becomes_its_pipeline():
    clip = dict(kind="clip", layer="penultimate", pooled=True)
    text = dict(clip_l=clip, openclip_g=clip, t5=dict(padding="read"))
    config = dict(
        codec=dict(kind="autoencoder"),
        text=text,
        conditioner=dict(width=0, combine="padded", size_features=0),
        denoiser=dict(kind="mmdit"),
    )
    assert pipeline_of(config) == SD3
    for change in (
        dict(text=text | dict(t5=dict())),
        dict(text=text | dict(clip_l=clip | dict(pooled=False))),
        dict(conditioner=dict(width=0, combine="tokens", size_features=0)),
    ):
        with pytest.raises(UserError, match="is conditioned otherwise"):
            pipeline_of(config | change)


def _plain(value):
    return list(value) if isinstance(value, tuple) else value
