"""Small pipelines of DeepFloyd IF: imported, drawn with, tuned, exported, opened by diffusers."""

import json

import jax
import numpy as np
import pipelines
import pytest
import roundtrips
import runs
import safetensors.torch
import torch
from diffusers import DDPMScheduler
from diffusers.pipelines.deepfloyd_if import pipeline_if, pipeline_if_superresolution
from diffusers.schedulers import scheduling_ddpm
from ml_collections import ConfigDict
from roundtrips import QUICK, far, opened

from emu_jax.assembly.cascade import Cascade
from emu_jax.assembly.config import read
from emu_jax.assembly.generator import Generator
from emu_jax.checkpoint.export import load_model
from emu_jax.cli.main import main
from emu_jax.errors import UserError
from emu_jax.interop import deepfloyd, schedulers
from emu_jax.interop.deepfloyd import BASE, SUPER, pipeline_of
from emu_jax.process.noise import fold_in, normal
from emu_jax.tasks import generation

# What the tokenizer knows in lower case alone, spaces around it.
PROMPTS, SEEDS, STEPS = ["A Red Fox", " cat "], np.array([3, 4], np.uint32), 4
LAST = "denoiser/conv_out/kernel"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("deepfloyd")


@pytest.fixture(scope="module", params=[BASE, SUPER])
def trip(request, home):
    """(kind, diffusers' folder, ours, diffusers' again)."""
    kind = request.param
    source = pipelines.write_if(home, kind)
    return kind, *roundtrips.there_and_back(source, home / f"{kind}_trip")


def first(x):
    return torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)


def drawn_and_wanted(ours, theirs, monkeypatch, **changes):
    """Our pictures and those of diffusers' pipeline, unrounded, the same noise in every step."""
    generator = roundtrips.quick_generator(ours, steps=STEPS, **changes)
    monkeypatch.setattr(generation, "to_pixels", lambda x: x)
    side, scale = generator.side, generator.config.sampling.guidance_scale
    keys, low = jax.vmap(jax.random.key)(SEEDS), None
    if generator.input_kind:
        low = list(np.random.default_rng(0).integers(0, 256, (2, side // 4, side // 4, 3), "uint8"))
        keys = fold_in(keys, side)
    drawn = np.stack(list(generator.draw_each(PROMPTS, list(SEEDS), low=low)))

    shape = (2, side, side, 3)
    starts = iter([generator._task.process.prior(keys, shape)])
    if low is not None:
        starts = iter([*starts, normal(fold_in(keys, generation._LOW), shape)])
    steps = iter([normal(fold_in(fold_in(keys, i), 0), shape) for i in range(STEPS)])
    given = {pipeline_if: starts, pipeline_if_superresolution: starts, scheduling_ddpm: steps}
    for module, noise in given.items():
        monkeypatch.setattr(module, "randn_tensor", lambda *a, noise=noise, **k: first(next(noise)))
    shown = {} if low is None else dict(image=[np.asarray(x) / np.float32(127.5) - 1 for x in low])
    wanted = opened(theirs)(
        PROMPTS,
        num_inference_steps=STEPS,
        guidance_scale=scale,
        output_type="pt",
        clean_caption=False,
        **shown,
    ).images
    assert next(starts, None) is None and len(list(steps)) == 1  # none in the last step
    return drawn, wanted.permute(0, 2, 3, 1).numpy()


def test_there_and_back_is_the_same_bits_keys_and_settings(trip):
    kind, source, _, back = trip
    roundtrips.assert_same_files(source, back, weights=2)
    assert type(opened(back)).__name__ == kind


def test_a_run_with_the_same_noise_is_diffusers(trip, monkeypatch):
    """Guided as the pipeline is by default, a variance learnt, a threshold of its own: steps of the
    cosine table, or of a linear one, shown a picture noised by the cosine's."""
    kind, _, ours, back = trip
    drawn, wanted = drawn_and_wanted(ours, back, monkeypatch)
    error = far(drawn, wanted)
    print(f"{kind}: a run of {STEPS} steps differs by {error:.1e}")
    assert np.std(wanted) > 0.1 and error < 1e-3


def test_the_text_is_diffusers_padding_and_all(trip):
    """77 states of texts in lower case, each to be attended to; the U-Net's call is test_unet's."""
    _, _, ours, back = trip
    generator = Generator(str(ours))
    encoder = generator._task.encoders["t5"]
    tokens = encoder.tokenize(PROMPTS)
    with torch.no_grad():
        wanted, _ = opened(back).encode_prompt(PROMPTS, do_classifier_free_guidance=False)
    text = jax.jit(encoder.apply, **QUICK)(generator._frozen["t5"], **tokens)
    assert text.states.shape == (2, 77, 24) and np.all(text.mask) and not np.all(tokens["mask"])
    assert far(text.states, wanted) < 1e-5


def test_both_are_a_cascade(home):
    names = []
    for kind in (BASE, SUPER):
        names.append(str(home / f"{kind}_stage"))
        assert main(["import", str(pipelines.write_if(home, kind)), f"--out={names[-1]}"]) == 0
    cascade = Cascade(names, 1)
    assert cascade.side == 32 and [stage.input_kind for stage in cascade.stages] == ["", "images"]
    with pytest.raises(UserError, match="emu-jax upsample"):
        Cascade(names[::-1], 1)


def test_a_variance_left_behind_is_fixed_and_comes_back_as_zeros(home, tmp_path):
    source, ours, back = pipelines.write_if(home, BASE), tmp_path / "ours", tmp_path / "back"
    assert main(["import", str(source), f"--out={ours}", "--drop_variance"]) == 0
    whole = safetensors.torch.load_file(source / "unet/diffusion_pytorch_model.safetensors")
    kernel = load_model(str(ours)).params[LAST]
    np.testing.assert_array_equal(kernel, whole["conv_out.weight"][:3].permute(2, 3, 1, 0).numpy())
    assert main(["export", str(ours), f"--out={back}", "--format=diffusers"]) == 0
    pipeline = opened(back)
    assert pipeline.scheduler.config.variance_type == "fixed_small"
    for key, value in pipeline.unet.state_dict().items():
        wanted = whole[key].clone()
        if key.startswith("conv_out."):
            wanted[3:] = 0
        assert torch.equal(value, wanted), key
    task = Generator(str(ours))._task
    assert task.process.variance == "fixed" and task.denoiser.shapes()["conv_out/bias"].shape == (
        3,
    )

    # What was written is read again, its zeros with it.
    again = tmp_path / "again"
    assert main(["import", str(back), f"--out={again}"]) == 0
    model = load_model(str(again))
    assert model.params[LAST].shape[-1] == 6
    assert model.config["process"]["variance"] == "ignored"


def test_an_import_is_tuned_and_exported_again(home, tmp_path):
    """By the config of imports; every kernel learns but the half that says a variance."""
    source, ours = pipelines.write_if(home, SUPER), tmp_path / "ours"
    assert main(["import", str(source), f"--out={ours}"]) == 0
    config = read(f"{runs.ROOT}/configs/imported.py:{ours}")
    assert config.process.noise_offset == 0.1 and config.init_from == str(ours)
    config.denoiser.remat = "none"  # quicker
    _, params, slopes = roundtrips.slopes(config, PROMPTS)
    assert not np.any(slopes[LAST][..., 3:]) and np.all(np.any(slopes[LAST][..., :3], (0, 1, 2)))
    assert all(np.any(slope) for slope in slopes.values())
    out = roundtrips.export_tuned(config, params, slopes, tmp_path)
    before, after = opened(source), opened(out)
    own = after.unet.state_dict()
    for key, value in before.unet.state_dict().items():
        assert value.shape == own[key].shape
        if key.startswith("conv_out."):
            assert torch.equal(value[3:], own[key][3:])
            value, own[key] = value[:3], own[key][:3]
        # Of biases a norm or softmax behind them may leave nothing but rounding.
        assert key.endswith("bias") or not torch.equal(value, own[key]), key
    # All that was written anew, the run having no public file at hand.
    # But for what is the same by other words.
    free = ["encoder_hid_dim_type", "mid_block_only_cross_attention", "clip_sample"]
    free += ["resnet_skip_time_act", "time_embedding_act_fn"]
    parts = ["unet", "scheduler", "image_noising_scheduler"]
    roundtrips.assert_same_settings(before, after, parts, free)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(_class_name="DPMSolverMultistepScheduler"), "is a DPMSolverMultistepScheduler"),
        (dict(variance_type="learned"), "variance_type = learned"),
        (dict(variance_type="fixed_large"), "variance_type = fixed_large"),
        (dict(steps_offset=1), "steps_offset = 1"),
        (dict(thresholding=False, clip_sample_range=2.0), r"clip_sample_range = 2\.0"),
        (dict(beta_schedule="sigmoid"), "beta_schedule = sigmoid"),
        (dict(trained_betas=[0.1]), "trained_betas"),
        (dict(novelty=True), "has a setting 'novelty'"),
    ],
)
def test_ways_to_draw_that_are_not_known_are_refused_by_name(change, words):
    config = dict(DDPMScheduler(**pipelines.IF_NOISE).config, _class_name="DDPMScheduler")
    config = {k: v for k, v in config.items() if k != "_use_default_values"}
    assert schedulers.pixels(config)[0]["variance"] == "learned_range"
    with pytest.raises(UserError, match=words):
        schedulers.pixels(config | change)


@pytest.mark.parametrize("threshold", ["none", "static", "dynamic"])
@pytest.mark.parametrize("variance", ["learned_range", "ignored"])
def test_ways_to_draw_go_there_and_back(threshold, variance):
    process = dict(schedule="linear", prediction="v", time_input="index", variance=variance)
    sampling = dict(sampler="ancestral", spacing="leading", threshold=threshold)
    if threshold == "dynamic":
        sampling |= dict(threshold_quantile=0.9, threshold_limit=2.0)
    config = schedulers.pixels_config(process, sampling)
    assert schedulers.pixels(config) == (process, sampling)
    DDPMScheduler.from_config(config).set_timesteps(3)


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("unet", dict(out_channels=3), "out_channels = 3, where this IFPipeline needs 6"),
        ("unet", dict(class_embed_type="timestep"), "class_embed_type = 'timestep'"),
        ("text_encoder", dict(d_model=20), "encoder_hid_dim = 24.* needs 20"),
        ("", dict(text_encoder=[None, None]), "has no text_encoder"),
    ],
)
def test_pipelines_of_another_structure_are_refused_by_name(part, change, words, home):
    folder = pipelines.write_if(home, BASE)

    class Changed(deepfloyd.Parts):
        def where(self, name=""):
            return str(folder / name)

        def settings(self, name="", file="config.json"):
            found = json.loads((folder / name / file).read_text())
            return found | (change if name == part else {})

        def weights(self, name="", stem="diffusion_pytorch_model"):
            return deepfloyd.Lazy({}, pytest.fail)

        def copy_tokenizer(self, name, target):
            pytest.fail("written before it was refused")

    source = Changed()
    index = source.settings(file="model_index.json")
    with pytest.raises(UserError, match=words):
        deepfloyd.import_pixels(source, index, folder / "x", False)


def test_only_a_generator_conditioned_as_if_becomes_its_pipeline(trip, tmp_path, capsys):
    kind, _, ours, _ = trip
    config = load_model(str(ours), prefix_filter=LAST).config
    assert pipeline_of(config) == kind
    text = ConfigDict(config["text"]).to_dict()["t5"]
    for change, words in (
        (dict(text=dict(t5=text | dict(padding="masked"))), "padding attended to"),
        (dict(text=dict(t5=text | dict(length=128))), "77 states"),
        (dict(conditioner=config["conditioner"] | dict(width=8)), "without projections"),
        (dict(denoiser=dict(kind="efficient_unet")), "this one is a efficient_unet"),
    ):
        with pytest.raises(UserError, match=words):
            pipeline_of(config | change)
    with pytest.raises(UserError, match=r"sampling\.sampler=ancestral"):
        schedulers.pixels_config(config["process"], config["sampling"] | dict(sampler="ddim"))
    assert main(["export", "builtin:pixel_super_64", f"--out={tmp_path}/x", "--format=diffusers"])
    assert "The conditioning of this generator is another" in capsys.readouterr().err
