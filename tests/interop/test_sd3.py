"""A small StableDiffusion3Pipeline of diffusers: imported, drawn with, tuned, exported, opened
again."""

import jax
import jax.numpy as jnp
import numpy as np
import pipelines
import pytest
import roundtrips
import runs
import torch
from diffusers import SD3Transformer2DModel
from roundtrips import QUICK, far, opened

from emu_jax.assembly.config import read
from emu_jax.checkpoint.opened import open_model
from emu_jax.cli.main import main
from emu_jax.errors import UserError
from emu_jax.interop import schedulers, sd3
from emu_jax.interop.pipelines import SD3, pipeline_of
from emu_jax.tasks import generation
from emu_jax.tasks.codecs import AutoencoderCodec

PROMPTS, SEEDS = ["a red fox", "cat"], np.array([3, 4], np.uint32)
STEPS = 4
FLOW = dict(_class_name="FlowMatchEulerDiscreteScheduler", num_train_timesteps=1000, shift=3.0)


@pytest.fixture(scope="module")
def trip(tmp_path_factory):
    """(diffusers' folder, ours, diffusers' again)."""
    folder = tmp_path_factory.mktemp("sd3")
    return roundtrips.there_and_back(pipelines.write_sd3(folder), folder)


@pytest.fixture(scope="module")
def generator(trip):
    return roundtrips.quick_generator(trip[1], steps=STEPS)


def test_there_and_back_is_the_same_bits_keys_and_settings(trip):
    roundtrips.assert_same_files(trip[0], trip[2], weights=5)


@pytest.mark.usefixtures("unchecked_arrays")  # latents in place of decoded images
def test_a_run_from_the_same_noise_is_diffusers(trip, generator, monkeypatch):
    """As imported: guidance 7, Euler on the shifted straight path; three text encoders and all."""
    monkeypatch.setattr(AutoencoderCodec, "decode", lambda self, params, z: z)
    monkeypatch.setattr(generation, "to_pixels", lambda x: x)
    drawn = np.stack(list(generator.draw_each(PROMPTS, list(SEEDS))))
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
    assert by["mask"].all() and by["context"].shape == states.shape
    output = jax.jit(task.denoiser, **QUICK)(params, x, t, **by)
    decoded = jax.jit(task.codec.decode, **QUICK)(frozen["codec"], x)
    errors = dict(
        text=far(by["context"], states),
        pooled=far(by["vector"], pooled),
        denoiser=far(output, wanted.permute(0, 2, 3, 1)),
        decoder=far(decoded, picture.permute(0, 2, 3, 1)),
    )
    print({part: f"{error:.1e}" for part, error in errors.items()})
    assert max(errors.values()) < 1e-4


def test_without_the_public_files_at_hand_they_are_written_anew(trip, tmp_path):
    bare, theirs = roundtrips.without_source(trip[1], tmp_path / "ours"), opened(trip[0])
    anew = opened(roundtrips.export(bare, tmp_path / "back"))
    parts = ["transformer", "scheduler", "vae"]
    roundtrips.assert_same_settings(theirs, anew, parts, free=["force_upcast"])


def test_an_import_is_what_its_size_is_tuned_from_and_exported_again(trip, tmp_path):
    """The config of that size, with the small network's numbers; everything learns but the table of
    places and what a last layer's text would ask."""
    source, ours, _ = trip
    imported = open_model(str(ours)).config
    config = read(f"{runs.ROOT}/configs/latent_diffusion.py:size=sd3,stage=quality_tune")
    config.update(dict(init_from=str(ours), compute_dtype="float32"))
    config.data.update(dict(image_size=16, buckets=False))
    config.codec.path = f"{ours}/codec"
    for name, section in imported["text"].items():
        places = {key: section[key] for key in ("path", "dtype", "length")}
        config.text[name].update(places | dict(size=""))
    config.denoiser.update(imported["denoiser"])
    as_it_is = read(f"{runs.ROOT}/configs/imported.py:{ours}")
    assert as_it_is.groups.generator.pattern == config.groups.generator.pattern
    assert as_it_is.process.shift == config.process.shift == 3
    task, params, slopes = roundtrips.slopes(config, PROMPTS)
    learns = task.groups["generator"].paths(params)
    assert [path for path in params if path not in learns] == ["denoiser/pos_embed/pos_embed"]
    still = [path for path in learns if not np.any(slopes[path])]
    unasked = "denoiser/transformer_blocks/2/attn/add_q_proj/"  # of a text that ends there
    assert still == [f"{unasked}bias", f"{unasked}kernel"]
    out = roundtrips.export_tuned(config, params, slopes, tmp_path)
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
        (
            lambda: sd3.arguments(pipelines.SD3 | dict(caption_projection_dim=5)),
            "another width",
        ),
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
        with pytest.raises(UserError, match="conditioning of this generator is another"):
            pipeline_of(config | change)
