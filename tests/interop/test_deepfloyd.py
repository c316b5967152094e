"""Small pipelines of DeepFloyd IF: imported, drawn with, tuned, exported, opened by diffusers."""

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
from diffusers import DDPMScheduler, DiffusionPipeline
from diffusers.pipelines.deepfloyd_if import pipeline_if, pipeline_if_superresolution
from diffusers.schedulers import scheduling_ddpm
from ml_collections import ConfigDict

from emu_jax.checkpoint.export import load_model, save_model
from emu_jax.cli.cascade import Cascade
from emu_jax.cli.config import read
from emu_jax.cli.generator import Generator, open_task
from emu_jax.cli.initial import initial
from emu_jax.cli.main import main
from emu_jax.errors import UserError
from emu_jax.interop import deepfloyd, schedulers
from emu_jax.interop.deepfloyd import BASE, SUPER, pipeline_of
from emu_jax.parallel.mesh import make_mesh
from emu_jax.process.noise import fold_in, normal
from emu_jax.tasks import generation

# What the tokenizer knows in lower case alone, spaces around it.
PROMPTS, SEEDS, STEPS = ["A Red Fox", " cat "], np.array([3, 4], np.uint32), 4
QUICK = dict(compiler_options={"xla_backend_optimization_level": 0})
LAST = "denoiser/conv_out/kernel"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("deepfloyd")


@pytest.fixture(scope="module", params=[BASE, SUPER])
def trip(request, home):
    """(kind, diffusers' folder, ours, diffusers' again)."""
    kind = request.param
    source = pipelines.write_if(home, kind)
    ours, back = home / f"{kind}_ours", home / f"{kind}_back"
    assert main(["import", str(source), f"--out={ours}"]) == 0
    assert main(["export", str(ours), f"--out={back}", "--format=diffusers"]) == 0
    return kind, source, ours, back


def opened(folder) -> DiffusionPipeline:
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def far(a, b) -> float:
    a, b = np.asarray(a), np.asarray(b)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def first(x):
    return torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)


def drawn_and_wanted(ours, theirs, monkeypatch, **changes):
    """Our pictures and those of diffusers' pipeline, unrounded, the same noise in every step."""
    generator = Generator(str(ours), batch_size=2, steps=STEPS, **changes)
    generator._generate = jax.jit(generator._draw_batch, static_argnames="decode", **QUICK)
    monkeypatch.setattr(generation, "to_pixels", lambda x: x)
    side, scale = generator.side, generator.config.sampling.guidance_scale
    keys, low = jax.vmap(jax.random.key)(SEEDS), None
    if generator.reads:
        low = list(np.random.default_rng(0).integers(0, 256, (2, side // 4, side // 4, 3), "uint8"))
        keys = fold_in(keys, side)
    drawn = np.stack(list(generator.draw(PROMPTS, list(SEEDS), low=low)))

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
    files = sorted(f.relative_to(source) for f in source.rglob("*") if f.is_file())
    assert files == sorted(f.relative_to(back) for f in back.rglob("*") if f.is_file())
    assert sum(f.suffix == ".safetensors" for f in files) == 2
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
    assert cascade.side == 32 and [stage.reads for stage in cascade.stages] == ["", "pictures"]
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
    mesh = make_mesh()
    task, frozen = open_task(config, mesh)
    params, _ = initial(config, task, mesh)
    side = 32
    rows = dict(
        image=np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8),
        sizes=np.array([[side, side, 0, 0, side, side]] * 2),
        tokens=dict(t5=task.encoders["t5"].tokenize(PROMPTS)),
    )

    @functools.partial(jax.jit, **QUICK)
    def slopes(params):
        def loss(params):
            batch, key = dict(train=rows), jax.random.key(1)
            return task.loss("generator", params, frozen, {}, batch, key, jnp.int32(0))[0]

        return jax.grad(loss)(params)

    found = {path: np.asarray(slope) for path, slope in slopes(params).items()}
    assert not np.any(found[LAST][..., 3:]) and np.all(np.any(found[LAST][..., :3], (0, 1, 2)))
    still = [path for path, slope in found.items() if not np.any(slope)]
    assert not still and all(np.all(np.isfinite(slope)) for slope in found.values())
    tuned = {path: np.asarray(value) - 0.01 * found[path] for path, value in params.items()}
    run, out = str(tmp_path / "run"), tmp_path / "out"
    save_model(run, tuned, config.to_dict(), {"step": 1}, dtype=None)
    assert main(["export", run, f"--out={out}", "--format=diffusers"]) == 0
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
    aside = ("_name_or_path", "_diffusers_version", "_use_default_values", "encoder_hid_dim_type")
    # The same by other words.
    aside += ("mid_block_only_cross_attention", "clip_sample")
    aside += ("resnet_skip_time_act", "time_embedding_act_fn")
    for part in {"unet", "scheduler", "image_noising_scheduler"} & set(before.components):
        a, b = (dict(getattr(p, part).config) for p in (before, after))
        differ = {key for key in a if key not in aside and _plain(a[key]) != _plain(b[key])}
        assert not differ, (part, {key: (a[key], b[key]) for key in differ})


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
        (dict(lower_order_final=True), "says lower_order_final"),
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
    assert "is conditioned otherwise" in capsys.readouterr().err


def _plain(value):
    """One value for all stages is as good as one each."""
    if isinstance(value, tuple | list):
        return value[0] if all(x == value[0] for x in value) else list(value)
    return value
