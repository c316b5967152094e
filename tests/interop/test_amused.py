"""A small AmusedPipeline of diffusers: imported, drawn with, tuned, exported, opened again."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pipelines
import pytest
import roundtrips
import runs
import safetensors.torch
import torch
from diffusers import UVit2DModel
from diffusers.schedulers import scheduling_amused
from roundtrips import QUICK, far, opened

from emu_jax.assembly.config import read
from emu_jax.assembly.generator import Generator
from emu_jax.checkpoint.export import load_model
from emu_jax.checkpoint.opened import open_model
from emu_jax.cli.main import main
from emu_jax.errors import UserError
from emu_jax.interop import schedulers, uvit, vq
from emu_jax.interop.pipelines import AMUSED, pipeline_of
from emu_jax.process.noise import fold_in, gumbel
from emu_jax.process.sampling import advance, start
from emu_jax.tasks import generation

PROMPTS, SEEDS = ["a red fox", "cat"], np.array([3, 4], np.uint32)
STEPS, SIDE, CODES = 12, 5, pipelines.CODES


@pytest.fixture(scope="module")
def trip(tmp_path_factory):
    """(diffusers' folder, ours, diffusers' again)."""
    folder = tmp_path_factory.mktemp("amused")
    return roundtrips.there_and_back(pipelines.write_amused(folder), folder)


@pytest.fixture(scope="module")
def generator(trip):
    return Generator(str(trip[1]), batch_size=2)


def test_there_and_back_is_the_same_bits_keys_and_settings(trip):
    roundtrips.assert_same_files(trip[0], trip[2], weights=3)


def test_tokens_there_and_pictures_back_are_diffusers(trip, generator):
    theirs, task = opened(trip[2]).vqvae, generator._task
    codec = generator._frozen["codec"]
    rng = np.random.default_rng(0)
    pixels = rng.uniform(-1, 1, (4, 10, 14, 3)).astype(np.float32)
    tokens = rng.integers(0, CODES, (2, 5, 7))
    with torch.no_grad():
        latents = theirs.encode(torch.tensor((pixels + 1) / 2).permute(0, 3, 1, 2)).latents
        numbers = theirs.quantize(latents)[2][2].reshape(4, 5, 7)
        pictures = theirs.decode(
            torch.tensor(tokens), force_not_quantize=True, shape=(2, 5, 7, 6)
        ).sample.permute(0, 2, 3, 1)
    found = jax.jit(task.codec.moments, **QUICK)(codec, pixels)
    np.testing.assert_array_equal(found, numbers)
    assert len(np.unique(numbers)) > 2
    drawn = jax.jit(task.codec.decode, **QUICK)(codec, tokens)
    error = far((drawn + 1) / 2, pictures)
    print(f"a decoded picture differs by {error:.1e}")
    assert np.std(pictures.numpy()) > 0.1 and error < 1e-4


def test_every_step_has_diffusers_logits_and_tokens(trip, generator, monkeypatch):
    """As imported: twelve steps, temperature from 2 to 0, guidance 10, the same noise injected."""
    seen = []

    def watched(denoise, process, sampler, times, keys, x, transform=None):
        def step(state, i):
            t = jnp.broadcast_to(times[i], x.shape[:1])
            after = advance(denoise, process, sampler, times, keys, state, i[None])
            return after, (denoise(state.x, t), after.x)

        state, steps = jax.lax.scan(step, start(sampler, x), jnp.arange(len(times) - 1))
        jax.debug.callback(lambda *found: seen.append(found), *steps)
        return state.x

    monkeypatch.setattr(generation, "sample", watched)
    generator._generate = jax.jit(generator._draw_batch, static_argnames="decode", **QUICK)
    drawn = np.stack(list(generator.draw_each(PROMPTS, list(SEEDS))))
    jax.effects_barrier()
    ((logits, tokens),) = seen

    keys = jax.vmap(jax.random.key)(SEEDS)
    noise = []
    for i in range(STEPS):
        key = fold_in(fold_in(keys, i), 0)
        draws = (
            gumbel(fold_in(key, 0), (2, SIDE, SIDE, CODES)),
            gumbel(fold_in(key, 1), (2, SIDE, SIDE)),
        )
        noise.append([torch.tensor(np.asarray(x)) for x in draws])
    pipeline, step, theirs = opened(trip[2]), [0], []

    def multinomial(p, count, generator=None):
        return torch.argmax(p.log() + noise[step[0]][0].reshape(p.shape), -1, keepdim=True)

    monkeypatch.setattr(torch, "multinomial", multinomial)
    monkeypatch.setattr(
        scheduling_amused, "gumbel_noise", lambda p, generator: noise[step[0]][1].reshape(p.shape)
    )
    plain = pipeline.scheduler.step

    def recorded(**told):
        output = plain(**told)
        theirs.append((told["model_output"].permute(0, 2, 3, 1), output.prev_sample))
        step[0] += 1
        return output

    monkeypatch.setattr(pipeline.scheduler, "step", recorded)
    pictures = pipeline(PROMPTS, output_type="np").images

    assert len(theirs) == len(tokens) == STEPS
    mask, errors = pipelines.UVIT["vocab_size"] - 1, []
    for i, (output, after) in enumerate(theirs):
        errors.append(far(logits[i], output))
        np.testing.assert_array_equal(np.where(tokens[i] == CODES, mask, tokens[i]), after, str(i))
    print(f"logits differ by {max(errors):.1e}")
    assert max(errors) < 1e-4 and len(np.unique(tokens[-1])) > 3
    assert np.max(np.abs(drawn / 255 - pictures)) < 1.01 / 255 and np.std(pictures) > 0.05


def test_without_the_public_files_at_hand_they_are_written_anew(trip, tmp_path):
    bare, theirs = roundtrips.without_source(trip[1], tmp_path / "ours"), opened(trip[0])
    anew = opened(roundtrips.export(bare, tmp_path / "back"))
    roundtrips.assert_same_settings(theirs, anew, ["transformer", "vqvae", "scheduler"])


def test_an_import_is_what_its_size_is_tuned_from_and_exported_again(trip, tmp_path):
    """The config of that size, with the small network's numbers; every parameter learns."""
    source, ours, _ = trip
    imported = open_model(str(ours)).config
    config = read(f"{runs.ROOT}/configs/masked.py:size=amused256,stage=quality_tune")
    config.update(dict(init_from=str(ours), compute_dtype="float32"))
    config.data.image_size = 2 * SIDE
    config.codec.path = f"{ours}/codec"
    places = {key: imported["text"]["clip"][key] for key in ("path", "length", "dtype")}
    config.text.clip.update(dict(places, size=""))
    config.conditioner.size_features = 4
    config.denoiser.update({k: v for k, v in imported["denoiser"].items() if k != "eps"})
    _, params, slopes = roundtrips.slopes(config, PROMPTS)
    assert all(np.any(slope) for slope in slopes.values())
    out = roundtrips.export_tuned(config, params, slopes, tmp_path)
    before, after = opened(source), opened(out)
    own = after.transformer.state_dict()
    for key, value in before.transformer.state_dict().items():
        assert value.shape == own[key].shape and not torch.equal(value, own[key]), key
    for key, value in before.vqvae.state_dict().items():
        assert torch.equal(value, after.vqvae.state_dict()[key])
    picture = after("a red fox", output_type="np", num_inference_steps=3).images[0]
    assert picture.shape == (10, 10, 3) and np.all(np.isfinite(picture))


def test_lone_components_go_there_and_back(trip, tmp_path):
    """The transformer of 512 pixels, which is halved and doubled, and the autoencoder."""
    halved = pipelines.UVIT | dict(downsample=True, upsample=True)
    pipelines.shaken(UVit2DModel(**halved)).save_pretrained(tmp_path / "uvit")
    for folder in (tmp_path / "uvit", trip[0] / "vqvae"):
        ours, back = tmp_path / f"{folder.name}_ours", tmp_path / f"{folder.name}_back"
        assert main(["import", str(folder), f"--out={ours}"]) == 0
        assert main(["export", str(ours), f"--out={back}", "--format=diffusers"]) == 0
        weights = "diffusion_pytorch_model.safetensors"
        before, after = (safetensors.torch.load_file(x / weights) for x in (folder, back))
        assert before.keys() == after.keys()
        assert all(torch.equal(value, after[key]) for key, value in before.items())
        configs = [json.loads((x / "config.json").read_text()) for x in (folder, back)]
        assert configs[0] == configs[1]
    book = load_model(f"{tmp_path}/vqvae_ours").params["codebook/embedding"]
    assert book.shape == (CODES, 6)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: uvit.arguments(dict(use_bias=True)), "use_bias = True"),
        (lambda: uvit.arguments(dict(downsample=True)), "only one of downsample and upsample"),
        (lambda: uvit.arguments(dict(micro_cond_embed_dim=6)), "micro_cond_embed_dim = 6"),
        (lambda: vq.sections(pipelines.VQ | dict(vq_embed_dim=5)), "vq_embed_dim = 5"),
        (lambda: vq.sections(pipelines.VQ | dict(norm_type="spatial")), "norm_type = 'spatial'"),
        (
            lambda: vq.sections(pipelines.VQ | dict(lookup_from_codebook=False)),
            "lookup_from_codebook = False",
        ),
        (
            lambda: schedulers.masking(schedulers.masking_config(9) | dict(mask_token_id=7), 9),
            "mask_token_id = 7",
        ),
        (
            lambda: schedulers.masking(
                schedulers.masking_config(9) | dict(masking_schedule="linear"), 9
            ),
            "masking_schedule = .linear.",
        ),
        (
            lambda: vq.to_config(dict(autoencoder=dict(widths=[4], blocks=1, quant_conv=True)), 16),
            "zero_to_one is False",
        ),
    ],
)
def test_what_is_not_known_is_refused_by_name(call, words):
    with pytest.raises(UserError, match=words):
        call()


def test_only_a_generator_conditioned_as_amused_becomes_its_pipeline():
    config = dict(
        codec=dict(kind="autoencoder"),
        text=dict(clip=dict(layer="penultimate")),
        conditioner=dict(width=0, combine="tokens", size_features=4, aesthetic_score=6.0),
        denoiser=dict(kind="uvit"),
    )
    assert pipeline_of(config) == AMUSED
    for change, words in (
        (dict(conditioner=config["conditioner"] | dict(aesthetic_score=None)), "aesthetic_score"),
        (dict(text=dict(clip=dict(layer="last"))), "penultimate states"),
        (dict(denoiser=dict(kind="token_transformer")), "this one is a token_transformer"),
    ):
        with pytest.raises(UserError, match=words):
            pipeline_of(config | change)
