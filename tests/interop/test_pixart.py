"""A small PixArtSigmaPipeline of diffusers: imported, drawn with, tuned, exported, opened again."""

import functools
import json

import jax
import numpy as np
import pipelines
import pytest
import roundtrips
import runs
import safetensors.torch
import torch
from diffusers import DPMSolverMultistepScheduler
from roundtrips import QUICK, far, opened

from emu_jax.assembly.config import read
from emu_jax.checkpoint.opened import open_model
from emu_jax.cli.main import main
from emu_jax.errors import UserError
from emu_jax.interop import pixart, schedulers
from emu_jax.interop.pipelines import SIGMA, pipeline_of
from emu_jax.tasks import generation
from emu_jax.tasks.codecs import AutoencoderCodec

PROMPTS, SEEDS = ["A red Fox ", "cat"], np.array([3, 4], np.uint32)
STEPS = 4
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def trip(tmp_path_factory):
    """(diffusers' folder, ours, diffusers' again)."""
    folder = tmp_path_factory.mktemp("pixart")
    return roundtrips.there_and_back(pipelines.write_pixart(folder), folder)


@pytest.fixture(scope="module")
def generator(trip):
    return roundtrips.quick_generator(trip[1], steps=STEPS)


def drawing(folder):
    """diffusers' pipeline, to be called."""
    return functools.partial(opened(folder), use_resolution_binning=False, clean_caption=False)


def test_there_and_back_is_the_same_bits_keys_and_settings(trip):
    roundtrips.assert_same_files(trip[0], trip[2], weights=3)


@pytest.mark.usefixtures("unchecked_arrays")  # latents in place of decoded images
def test_a_run_from_the_same_noise_is_diffusers(trip, generator, monkeypatch):
    """Guided, texts in capitals and of two lengths; and what the published spacing's rounding of
    steps makes of it."""
    monkeypatch.setattr(AutoencoderCodec, "decode", lambda self, params, z: z)
    monkeypatch.setattr(generation, "to_pixels", lambda x: x)
    assert generator.config.sampling.guidance_scale == 4.5
    drawn = np.stack(list(generator.draw_each(PROMPTS, list(SEEDS))))
    keys = jax.vmap(jax.random.key)(SEEDS)
    start = np.asarray(generator._task.process.prior(keys, (2, 8, 8, 4)))
    draw, errors = drawing(trip[2]), {}
    for spacing in ("trailing", "linspace"):
        config = draw.func.scheduler.config
        draw.func.scheduler = DPMSolverMultistepScheduler.from_config(
            config, timestep_spacing=spacing
        )
        wanted = draw(
            PROMPTS,
            latents=torch.tensor(start).permute(0, 3, 1, 2),
            num_inference_steps=STEPS,
            output_type="latent",
        ).images.permute(0, 2, 3, 1)
        assert np.std(wanted.numpy()) > 0.1
        errors[spacing] = far(drawn, wanted)
    print("a run differs by", {name: f"{error:.1e}" for name, error in errors.items()})
    assert errors["trailing"] < 1e-3 and errors["linspace"] < 1e-2


def test_one_call_of_each_network_is_diffusers(trip, generator):
    pipeline = opened(trip[2])
    task, frozen = generator._task, generator._frozen
    tokens = task.encoders["t5"].tokenize(PROMPTS)
    assert tokens["ids"].shape == (2, 300)
    text = jax.jit(task.encoders["t5"].apply, **QUICK)(frozen["t5"], **tokens)
    rng = np.random.default_rng(0)
    x, t = np.float32(rng.standard_normal((2, 8, 8, 4))), np.float32([5, 900])
    params = {k.removeprefix("denoiser/"): v for k, v in generator._params.items()}
    with torch.no_grad():
        states, mask, *_ = pipeline.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
        wanted = pipeline.transformer(
            torch.tensor(x).permute(0, 3, 1, 2),
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
            timestep=torch.tensor(t),
        ).sample
        picture = pipeline.vae.decode(torch.tensor(x).permute(0, 3, 1, 2) / 0.13025).sample
    assert wanted.shape == (2, 8, 8, 8)
    np.testing.assert_array_equal(tokens["mask"], mask.bool())
    output = jax.jit(task.denoiser, **QUICK)(params, x, t, text.states, text.mask, None)
    decoded = jax.jit(task.codec.decode, **QUICK)(frozen["codec"], x)
    errors = dict(
        text=far(text.states[tokens["mask"]], states[mask.bool()]),
        denoiser=far(output, wanted.permute(0, 2, 3, 1)),
        decoder=far(decoded, picture.permute(0, 2, 3, 1)),
    )
    print({part: f"{error:.1e}" for part, error in errors.items()})
    assert max(errors.values()) < 1e-4


def test_without_the_public_files_at_hand_they_are_written_anew(trip, tmp_path):
    bare, theirs = roundtrips.without_source(trip[1], tmp_path / "ours"), opened(trip[0])
    anew = opened(roundtrips.export(bare, tmp_path / "back"))
    roundtrips.assert_same_settings(theirs, anew, ["transformer"])
    roundtrips.assert_same_settings(theirs, anew, ["scheduler"], free=["timestep_spacing"])


def test_an_import_is_what_its_size_is_tuned_from_and_exported_again(trip, tmp_path):
    """The config of that size, with the small network's numbers; every parameter learns but those
    of the variance."""
    source, ours, _ = trip
    imported = open_model(str(ours)).config
    config = read(f"{runs.ROOT}/configs/latent_diffusion.py:size=pixart_sigma,stage=quality_tune")
    config.update(dict(init_from=str(ours), compute_dtype="float32"))
    config.data.update(dict(image_size=16, buckets=False))
    config.codec.path = f"{ours}/codec"
    t5 = dict(imported["text"]["t5"])
    config.text.t5.update({key: t5[key] for key in ("path", "dtype")} | dict(size="", length=9))
    config.denoiser.update(imported["denoiser"])
    assert config.process.variance == imported["process"]["variance"] == "ignored"
    _, params, slopes = roundtrips.slopes(config, PROMPTS)
    assert all(np.any(slope) for slope in slopes.values())
    out = roundtrips.export_tuned(config, params, slopes, tmp_path)
    before, after = opened(source), opened(out)
    own = after.transformer.state_dict()
    for key, value in before.transformer.state_dict().items():
        assert value.shape == own[key].shape, key
        if key == "proj_out.bias":  # by patch: four means, four variances
            same = torch.eq(value, own[key]).reshape(4, 2, 4)
            assert same[:, 1].all() and not same[:, 0].any()
        elif not key.endswith("to_k.bias"):  # shifts all of a softmax's logits: it hardly learns
            assert not torch.equal(value, own[key]), key
    picture = drawing(out)("a fox", output_type="np", num_inference_steps=2).images[0]
    assert picture.shape == (16, 16, 3) and np.all(np.isfinite(picture))


@pytest.mark.parametrize("published", [False, True], ids=["today", "published"])
def test_a_lone_transformer_goes_there_and_back(trip, tmp_path, published):
    """The published files' class and its further settings, too."""
    source = tmp_path / "transformer"
    source.mkdir()
    (source / WEIGHTS).write_bytes((trip[0] / "transformer" / WEIGHTS).read_bytes())
    config = json.loads((trip[0] / "transformer/config.json").read_text())
    if published:
        config |= dict(_class_name="Transformer2DModel", num_vector_embeds=None)
        config |= dict(only_cross_attention=False, use_linear_projection=False)
    (source / "config.json").write_text(json.dumps(config))
    ours, back = tmp_path / "ours", tmp_path / "back"
    assert main(["import", str(source), f"--out={ours}"]) == 0
    assert main(["export", str(ours), f"--out={back}", "--format=diffusers"]) == 0
    assert json.loads((back / "config.json").read_text()) == config
    before, after = (safetensors.torch.load_file(x / WEIGHTS) for x in (source, back))
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(use_additional_conditions=True), "has size conditioning"),
        (dict(use_additional_conditions=None, sample_size=128), "has size conditioning"),
        (dict(caption_channels=None), "no projection of its text"),
        (dict(cross_attention_dim=25), "in another width"),
        (dict(out_channels=5), "out_channels = 5 for 4 in"),
        (dict(attention_bias=False), "attention_bias = False"),
        (dict(norm_type="layer_norm"), "norm_type = 'layer_norm'"),
        (dict(double_self_attention=True), "double_self_attention = True"),
        (dict(sample_size=[8, 12]), r"sample_size is \[8, 12\]; only square images are supported"),
    ],
)
def test_what_is_not_known_is_refused_by_name(change, words):
    with pytest.raises(UserError, match=words):
        pixart.arguments(pipelines.PIXART | change)


def test_only_a_generator_conditioned_as_pixart_sigma_becomes_its_pipeline():
    config = dict(
        codec=dict(kind="autoencoder"),
        text=dict(t5=dict(lowercase=True)),
        conditioner=dict(width=0, combine="tokens", size_features=0),
        denoiser=dict(kind="pixart"),
    )
    assert pipeline_of(config) == SIGMA
    for change in (
        dict(text=dict(t5=dict(lowercase=False))),
        dict(text=dict(clip=dict(layer="last", pooled=False))),
        dict(conditioner=dict(width=8, size_features=0)),
    ):
        with pytest.raises(UserError, match="in lower case"):
            pipeline_of(config | change)


def test_its_noise_is_known_and_its_steps_are_the_nearest_of_ours():
    """As the published scheduler_config.json has them."""
    config = dict(
        _class_name="DPMSolverMultistepScheduler",
        **dict(beta_schedule="linear", beta_start=0.0001, beta_end=0.02),
        timestep_spacing="linspace",
    )
    process, sampling = schedulers.latents(config, SIGMA)
    assert process["schedule"] == "linear" and sampling["spacing"] == "trailing"
    euler = config | dict(_class_name="EulerDiscreteScheduler")
    assert schedulers.latents(euler, SIGMA)[1]["spacing"] == "uniform"
