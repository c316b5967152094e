"""Small pipelines written by diffusers: imported, drawn with, exported, opened by diffusers."""

import json
from pathlib import Path

import jax
import numpy as np
import pipelines
import pytest
import safetensors.torch
import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler, UNet2DConditionModel

from emu_jax.assembly.generator import Generator
from emu_jax.checkpoint.export import load_model
from emu_jax.cli.main import main
from emu_jax.tasks import generation
from emu_jax.tasks.codecs import AutoencoderCodec

NAMES = ["sd15", "sd21", "sdxl"]
PROMPTS = ["a red fox", "cat"]


@pytest.fixture(scope="module", params=NAMES)
def trip(request, tmp_path_factory):
    """(name, diffusers' folder, ours, diffusers' again)."""
    folder = tmp_path_factory.mktemp("pipelines")
    source = pipelines.write(request.param, folder)
    ours, back = folder / "ours", folder / "back"
    assert main(["import", str(source), f"--out={ours}"]) == 0
    assert main(["export", str(ours), f"--out={back}", "--format=diffusers"]) == 0
    return request.param, source, ours, back


def quick(function, **options):
    """Jitted, with little spent on optimising what runs once."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0}, **options)


def tensors(folder: Path) -> dict:
    return {
        file.relative_to(folder): safetensors.torch.load_file(file)
        for file in sorted(folder.rglob("*.safetensors"))
    }


def settings(folder: Path) -> dict:
    found = {}
    for file in sorted(folder.rglob("*.json")):
        found[file.relative_to(folder)] = json.loads(file.read_text())
    found[Path("model_index.json")].pop("_diffusers_version", None)
    return found


def test_there_and_back_is_the_same_bits_keys_and_settings(trip):
    _, source, _, back = trip
    assert settings(source) == settings(back)
    before, after = tensors(source), tensors(back)
    assert before.keys() == after.keys() and len(before) >= 3
    for file, held in before.items():
        assert held.keys() == after[file].keys()
        for key, value in held.items():
            assert value.dtype == after[file][key].dtype
            assert torch.equal(value, after[file][key]), (file, key)


@pytest.mark.usefixtures("unchecked_arrays")  # latents in place of decoded images
def test_a_run_from_the_same_noise_is_diffusers(trip, monkeypatch):
    """Guided, DPM-Solver++, DDIM at zero terminal SNR and Euler; text encoders and all."""
    name, _, ours, back = trip
    steps, scale = 4, 3.0
    monkeypatch.setattr(AutoencoderCodec, "decode", lambda self, params, z: z)
    monkeypatch.setattr(generation, "to_pixels", lambda x: x)
    sampler = {"sd15": "dpmpp_2m"}.get(name)
    changes = dict(steps=steps, guidance_scale=scale, sampler=sampler)
    generator = Generator(str(ours), batch_size=2, **changes)
    generator._generate = quick(generator._draw_batch, static_argnames="decode")
    drawn = np.stack(list(generator.draw_each(PROMPTS, [3, 4])))

    pipeline = DiffusionPipeline.from_pretrained(back, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    if sampler:
        config = pipeline.scheduler.config
        pipeline.scheduler = DPMSolverMultistepScheduler.from_config(config)
    keys = jax.vmap(jax.random.key)(np.array([3, 4], np.uint32))
    start = np.asarray(generator._task.process.prior(keys, (2, 8, 8, 4)))
    if name == "sdxl":  # whose scheduler starts from sigma times it, a little less than it should
        sigma = float(pipeline.scheduler.sigmas.max())
        start = start * (sigma**2 + 1) ** 0.5 / sigma
    wanted = pipeline(
        PROMPTS,
        latents=torch.tensor(start).permute(0, 3, 1, 2),
        num_inference_steps=steps,
        guidance_scale=scale,
        height=16,
        width=16,
        output_type="latent",
    ).images.permute(0, 2, 3, 1)
    factor = pipeline.vae.config.scaling_factor
    error = np.linalg.norm(drawn - wanted.numpy()) / np.linalg.norm(wanted.numpy())
    print(f"{name}: a run of {steps} steps differs by {error:.1e}; scaling {factor}")
    assert np.std(wanted.numpy()) > 0.1 and error < 1e-3


def test_one_call_of_each_network_is_diffusers(trip):
    name, _, ours, back = trip
    pipeline = DiffusionPipeline.from_pretrained(back, safety_checker=None)
    generator = Generator(str(ours))
    task, codec = generator._task, generator._frozen["codec"]
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    first = lambda x: torch.tensor(x).permute(0, 3, 1, 2)  # noqa: E731
    last = lambda x: x.permute(0, 2, 3, 1).numpy()  # noqa: E731
    close = lambda a, b: np.linalg.norm(a - b) / np.linalg.norm(b)  # noqa: E731

    x, t = draw(2, 8, 8, 4), np.array([5.0, 900.0], np.float32)
    width = pipeline.unet.config.cross_attention_dim
    context, told, vector = draw(2, pipelines.LENGTH, width), {}, None
    if name == "sdxl":
        pooled, sizes = draw(2, 16), np.array([[16, 16, 0, 0, 16, 16]] * 2)
        told = dict(text_embeds=torch.tensor(pooled), time_ids=torch.tensor(sizes))
        angles = sizes[..., None] * 10_000.0 ** (-np.arange(4) / 4)
        waves = np.concatenate([np.cos(angles), np.sin(angles)], -1).reshape(2, -1)
        vector = np.concatenate([pooled, waves], -1).astype(np.float32)
    params = {k.removeprefix("denoiser/"): v for k, v in generator._params.items()}
    pixels = draw(2, 16, 16, 3).clip(-1, 1)
    with torch.no_grad():
        wanted = pipeline.unet(
            first(x), torch.tensor(t), torch.tensor(context), added_cond_kwargs=told
        ).sample
        moments = pipeline.vae.encode(first(pixels)).latent_dist.parameters
        decoded = pipeline.vae.decode(first(x) / pipeline.vae.config.scaling_factor).sample
    output = quick(task.denoiser)(params, x, t, context, None, vector)
    errors = dict(
        denoiser=close(np.asarray(output), last(wanted)),
        encoder=close(np.asarray(quick(task.codec.moments)(codec, pixels)), last(moments)),
        decoder=close(np.asarray(quick(task.codec.decode)(codec, x)), last(decoded)),
    )
    print(name, {part: f"{error:.1e}" for part, error in errors.items()})
    assert max(errors.values()) < 1e-4


def test_without_the_public_files_at_hand_they_are_written_anew(trip, tmp_path):
    """As for a run trained from the import, whose config is ours alone."""
    name, source, ours, _ = trip
    for folder in (ours, ours / "codec"):
        target = tmp_path / "ours" / folder.relative_to(ours)
        target.mkdir(parents=True)
        for file in ("config.json", "model.safetensors"):
            (target / file).write_bytes((folder / file).read_bytes())
        config = json.loads((target / "config.json").read_text())
        assert config.pop("source")
        if folder == ours:
            config["config"]["codec"]["path"] = str(tmp_path / "ours/codec")
            for options in config["config"]["text"].values():
                options["path"] = str(ours / options["path"])
        (target / "config.json").write_text(json.dumps(config))
    out = tmp_path / "back"
    assert main(["export", f"{tmp_path}/ours", f"--out={out}", "--format=diffusers"]) == 0
    theirs = DiffusionPipeline.from_pretrained(source, safety_checker=None)
    anew = DiffusionPipeline.from_pretrained(out, safety_checker=None)
    assert type(anew) is type(theirs) and type(anew.scheduler) is type(theirs.scheduler)
    free = {
        *("_name_or_path", "_diffusers_version", "upcast_attention", "mid_block_type"),
        *("_use_default_values", "steps_offset", "force_upcast", "encoder_hid_dim_type"),
    }
    for part in ("unet", "vae", "scheduler"):
        a, b = (dict(getattr(p, part).config) for p in (theirs, anew))
        differ = {key for key in a if key not in free and _plain(a[key]) != _plain(b[key])}
        assert not differ, (name, part, {key: (a[key], b[key]) for key in differ})
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(theirs.vae.decode(x).sample, anew.vae.decode(x).sample)
    for key, value in theirs.unet.state_dict().items():
        assert torch.equal(value, anew.unet.state_dict()[key]), key


def test_weights_keep_their_dtype_or_take_the_one_asked_for(trip, tmp_path):
    _, source, ours, _ = trip
    out = tmp_path / "half"
    arguments = [str(ours), f"--out={out}", "--format=diffusers", "--dtype=float16"]
    assert main(["export", *arguments]) == 0
    held = safetensors.torch.load_file(out / "unet/diffusion_pytorch_model.safetensors")
    assert {x.dtype for x in held.values()} == {torch.float16}
    assert settings(out) == settings(source)
    again = tmp_path / "again"
    assert main(["import", str(out), f"--out={again}"]) == 0
    params = load_model(str(again), prefix_filter="denoiser/").params
    assert {str(x.dtype) for x in params.values()} == {"float16"}


def test_parts_that_do_not_fit_are_refused_before_anything_is_written(tmp_path, capsys):
    """An inpainting U-Net, another model's autoencoder, a scheduler, lengths and sizes."""
    source = pipelines.write("sd15", tmp_path)
    out = tmp_path / "ours"

    def refused(words, part, file, **changes):
        path = source / part / file
        before = path.read_text()
        path.write_text(json.dumps(json.loads(before) | changes))
        assert main(["import", str(source), f"--out={out}"]) == 2
        message = capsys.readouterr().err.strip().splitlines()[-1]
        assert message.startswith("emu-jax: ") and words in message and not out.exists(), message
        path.write_text(before)

    flow = dict(_class_name="FlowMatchEulerDiscreteScheduler", shift=3.0)
    refused("is a FlowMatchEuler", "scheduler", "scheduler_config.json", **flow)
    refused("only square images", "unet", "config.json", sample_size=[8, 12])
    refused("scaling_factor = None", "vae", "config.json", scaling_factor=None)
    length = dict(model_max_length="20")
    refused("a number of tokens", "tokenizer", "tokenizer_config.json", **length)
    wide = pipelines.vae(latent_channels=16)
    wide.save_pretrained(source / "vae")
    refused("4 channels in and 4 out, and an autoencoder with 16", "vae", "config.json")
    pipelines.vae(latent_channels=4).save_pretrained(source / "vae")
    inpainting = UNet2DConditionModel(**pipelines.UNETS["sd15"] | dict(in_channels=9))
    inpainting.save_pretrained(source / "unet")
    refused("9 channels in and 4 out", "unet", "config.json")


def test_an_absent_length_of_the_tokenizer_is_the_encoders(tmp_path):
    source = pipelines.write("sd15", tmp_path)
    file = source / "tokenizer" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(model_max_length=None)))
    assert main(["import", str(source), f"--out={tmp_path}/ours"]) == 0
    config = json.loads((tmp_path / "ours" / "config.json").read_text())["config"]
    settings = json.loads((source / "text_encoder" / "config.json").read_text())
    longest = settings["max_position_embeddings"]
    assert config["text"]["clip"]["length"] == min(longest, 77)


def _plain(value):
    """One value for all stages is as good as one each."""
    if isinstance(value, tuple | list):
        return value[0] if all(x == value[0] for x in value) else list(value)
    return value
