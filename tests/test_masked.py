"""Masked generation as whole programs: the real commands on a small data set, codebook and all."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from ml_collections import ConfigDict
from PIL import Image

from emu_jax.assembly.cascade import Cascade, open_generator
from emu_jax.assembly.codecs import make_codec
from emu_jax.assembly.config import read
from emu_jax.assembly.previews import Previews
from emu_jax.assembly.tasks import make_task
from emu_jax.checkpoint.export import load_model, save_model
from emu_jax.checkpoint.manager import Checkpoints
from emu_jax.cli.main import main
from emu_jax.data.cache import Cache, content_keys
from emu_jax.data.images import prepare
from emu_jax.data.mixture import Selection
from emu_jax.data.source import open_source
from emu_jax.errors import UserError
from emu_jax.tasks.base import to_unit_range
from emu_jax.tasks.codecs import CODEBOOK

# A rate so high, and so many codes revived, that four steps leave their traces.
VQ = (
    "--config.train.steps=4",
    "--config.quantizer.dead=0.5",
    "--config.discriminator.enabled=False",
)
RATE = "--config.groups.generator.optimizer.learning_rate=0.05"


def train(config, size, workdir, pictures, *more):
    """``runs.train`` of another variant of the test size."""
    arguments = runs.command(config, workdir, pictures, *more)
    arguments[1] = arguments[1].replace("size=test", size)
    assert main(arguments) == 0


def again(workdir, copy, step):
    """A copy of a run as it was when ``step`` had just been saved."""
    shutil.copytree(workdir, copy)
    for folder in (copy / "checkpoints").iterdir():
        if folder.name.isdigit() and int(folder.name) > step:
            shutil.rmtree(folder)
    return copy


def same(one, other):
    expected, found = runs.arrays(one), runs.arrays(other)
    assert expected.keys() == found.keys()
    different = [name for name in expected if not np.array_equal(expected[name], found[name])]
    assert not different
    assert runs.lines(one / "metrics.jsonl") == runs.lines(other / "metrics.jsonl")
    return expected


@pytest.fixture(scope="module")
def vq_run(pictures, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("vq") / "run"
    train("autoencoder", "size=test,kind=vq", workdir, pictures, *VQ)
    return workdir


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    return (
        "--config.data.cache_latents=True",
        "--config.data.cache_text=True",
        f"--config.data.cache_dir={folder}",
    )


@pytest.fixture(scope="module")
def masked_run(vq_run, cached, pictures, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("masked") / "run"
    more = (f"--config.codec.path={vq_run}", "--config.train.steps=4", RATE, *cached)
    train("masked", "size=test", workdir, pictures, *more)
    return workdir


def test_a_codebook_is_resumed_bit_for_bit(vq_run, pictures, tmp_path):
    """Revived codes too: their places are drawn from the step's own key."""
    copy = again(vq_run, tmp_path / "again", 2)
    train("autoencoder", "size=test,kind=vq", copy, pictures, *VQ)
    arrays = same(vq_run, copy)
    assert arrays["state/codebook/embedding"].shape == (16, 16)
    with Checkpoints(str(vq_run / "checkpoints"), read_only=True) as saved:
        earlier = saved.read_arrays(2)["state/codebook/embedding"]
    assert not np.array_equal(earlier, arrays["state/codebook/embedding"])
    logged = [line for line in runs.lines(vq_run / "metrics.jsonl") if "autoencoder/loss" in line]
    assert [line["step"] for line in logged] == [1, 2, 3, 4]
    assert all(1 <= line["autoencoder/perplexity"] <= 16 for line in logged)
    assert logged[0]["autoencoder/revived"] > 0


def test_a_masked_run_is_resumed_bit_for_bit(masked_run, vq_run, cached, pictures, tmp_path):
    copy = again(masked_run, tmp_path / "again", 2)
    more = (f"--config.codec.path={vq_run}", "--config.train.steps=4", RATE, *cached)
    train("masked", "size=test", copy, pictures, *more)
    same(masked_run, copy)


def of_cache(cached, group, pictures):
    """The arrays of the 24 images of folder/tiny, in order, as the runs have cached them."""
    hashes = open_source("folder/tiny", str(pictures)).manifest.column("sha256")
    keys = {group: content_keys(hashes)}
    folders = Path(cached[-1].split("=")[1]).glob("latents_*")
    (folder,) = [folder for folder in folders if (folder / group).exists()]
    made_from = json.loads((folder / "cache.json").read_text())["fingerprint"]
    return Cache.open(folder, made_from, keys).take(np.arange(24), group)


def test_cached_tokens_are_the_codecs_own(masked_run, cached, vq_run, pictures):
    tokens = of_cache(cached, "16x16", pictures)["moments"]
    codec, frozen = make_codec(ConfigDict(dict(kind="autoencoder", path=str(vq_run))))
    source = open_source("folder/tiny", str(pictures))
    images = [prepare(source.read(r), (16, 16))[0] for r in Selection(source).records()]
    params = {path: jnp.asarray(value) for path, value in frozen["codec"].tensors()}
    own = jax.jit(codec.moments)(params, to_unit_range(jnp.asarray(np.stack(images))))
    np.testing.assert_array_equal(tokens, own)
    assert tokens.dtype == np.int32 and len(np.unique(tokens)) > 3


def test_a_larger_decoder_keeps_encoder_and_codes(vq_run, pictures, tmp_path, capsys):
    workdir = tmp_path / "decoder"
    more = (f"--config.init_from={vq_run}", *VQ[2:], "--config.train.steps=2")
    train("autoencoder", "size=test,kind=vq,stage=decoder", workdir, pictures, *more)
    before, after = load_model(str(vq_run)).params, load_model(str(workdir)).params
    for path, value in before.items():
        if not path.startswith("autoencoder/decoder/"):
            np.testing.assert_array_equal(after[path], value, err_msg=path)
    grown = [path for path in after if path not in before]
    assert grown and all(path.startswith("autoencoder/decoder/") for path in grown)

    out, sets = tmp_path / "report", ["--pictures=folder/tiny", f"--data_dir={pictures}"]
    models = [str(vq_run), str(workdir)]
    assert main(["reconstruct", *models, "--judge=", *sets, f"--out={out}"]) == 0
    record = json.loads((out / "reconstruct.json").read_text())
    assert [record[model]["codes"] for model in models] == [16, 16]
    psnr = [record[model]["figures"]["psnr"]["value"] for model in models]
    lines = runs.lines(vq_run / "metrics.jsonl")
    logged = next(n["held_out/psnr"] for n in lines if n["step"] == 4 and "held_out/psnr" in n)
    assert psnr[0] == pytest.approx(logged, abs=0.05) and psnr[1] != psnr[0]


def test_a_masked_checkpoint_is_exported_and_drawn(masked_run, pictures, tmp_path):
    model = tmp_path / "model"
    assert main(["export", str(masked_run), f"--out={model}", "--dtype=float32"]) == 0
    drawn = {}
    for name, checkpoint, more in (
        ("run", masked_run, []),
        ("model", model, []),
        ("negative", model, ["--negative=blue ball"]),
    ):
        options = [
            "--guidance_scale=1000",
            f"--checkpoint={checkpoint}",
            f"--out={tmp_path / name}",
        ]
        assert main(["sample", "a red disc", "blue ball", *options, *more]) == 0
        files = sorted(f for f in (tmp_path / name).glob("*.png") if f.name != "grid.png")
        drawn[name] = [np.asarray(Image.open(file)) for file in files]
    assert len(drawn["run"]) == 2 and drawn["run"][0].shape == (16, 16, 3)
    np.testing.assert_array_equal(drawn["model"], drawn["run"])
    assert not np.array_equal(drawn["negative"], drawn["run"])


# Super-resolution --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def super_command(vq_run, cached):
    """4 x 4 tokens of 32 x 32 pixels from the 2 x 2 of half as many, both in the one codebook."""
    return (
        *(f"--config.{codec}.path={vq_run}" for codec in ("codec", "low_codec")),
        "--config.data.image_size=32",
        "--config.low_resolution.factor=2",
        "--config.train.steps=4",
        "--config.train.validate_every=0",
        RATE,
        *cached,
    )


@pytest.fixture(scope="module")
def super_run(super_command, pictures, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("super") / "run"
    train("masked", "size=test,part=super", workdir, pictures, *super_command)
    return workdir


def test_a_super_resolution_run_is_resumed_bit_for_bit(
    super_run, super_command, pictures, tmp_path
):
    copy = again(super_run, tmp_path / "again", 2)
    train("masked", "size=test,part=super", copy, pictures, *super_command)
    same(super_run, copy)


def test_cached_coarse_tokens_are_the_shrunk_pictures_own(super_run, cached, vq_run, pictures):
    found = of_cache(cached, "32x32", pictures)
    codec, frozen = make_codec(ConfigDict(dict(kind="autoencoder", path=str(vq_run))))
    source = open_source("folder/tiny", str(pictures))
    images = np.stack([prepare(source.read(r), (32, 32))[0] for r in Selection(source).records()])
    params = {path: jnp.asarray(value) for path, value in frozen["codec"].tensors()}
    small = np.asarray(to_unit_range(jnp.asarray(images))).reshape(24, 16, 2, 16, 2, 3)
    own = jax.jit(codec.moments)(params, jnp.asarray(small.mean((2, 4))))
    # One of 96 may lie between two codes.
    assert np.mean(found["low"] == own) > 0.98 and len(np.unique(own)) > 3
    assert found["moments"].shape == (24, 4, 4)


def test_a_cascade_hands_on_the_very_tokens(masked_run, super_run):
    prompts, seeds = ["a red disc", "blue ball"], [0, 1]
    cascade = open_generator(f"{masked_run}+{super_run}", batch_size=2)
    assert isinstance(cascade, Cascade) and cascade.side == 32
    base, stage = cascade.stages
    # Four steps of training make little of what it is shown: say it louder.
    stage._params["denoiser/low_stem/tokens/embedding"] *= 100
    drawn = cascade.draw(prompts, seeds)
    assert [x.shape for x in drawn] == [(32, 32, 3)] * 2
    seen = []
    previews = Previews(lambda *given: seen.append(given), every=1)
    watched = list(cascade.draw_each(prompts, seeds, previews=previews))
    np.testing.assert_array_equal(watched, drawn)
    ((done, steps, images),) = seen
    assert (done, steps) == (1, 2) and [x.shape for x in images] == [(32, 32, 3)] * 2
    tokens = list(base.draw_each(prompts, seeds, decode=False))
    assert [x.shape for x in tokens] == [(2, 2)] * 2 and np.max(tokens) < 16
    np.testing.assert_array_equal(list(stage.draw_each(prompts, seeds, low=tokens)), drawn)
    other = [(x + 1) % 16 for x in tokens]
    assert not np.array_equal(list(stage.draw_each(prompts, seeds, low=other)), drawn)
    cost = cascade.costs()
    assert cost["evaluations"] == 2 * 2 + 2 * 2 and cost["flops"] > base.costs()["flops"] > 0
    # A picture in their place is read as the tokens that it has.
    pictures = base.draw(prompts, seeds)
    codec, frozen = base._task.codec, base._frozen["codec"]
    seen = jax.jit(codec.moments)(frozen, to_unit_range(jnp.asarray(np.stack(pictures))))
    by_tokens, by_pictures = (
        np.stack(list(stage.draw_each(prompts, seeds, low=list(low)))).astype(int)
        for low in (np.asarray(seen), pictures)
    )
    assert np.abs(by_tokens - by_pictures).max() <= 1


def test_stages_that_do_not_fit_are_refused(masked_run, super_run, vq_run, tmp_path, capsys):
    """Alone; and behind a base whose numbers are those of other codes."""
    assert main(["sample", "a", f"--checkpoint={super_run}", f"--out={tmp_path}"]) == 2
    assert f"put it behind a model that draws, BASE+{super_run}" in capsys.readouterr().err
    vq, masked = load_model(str(vq_run)), load_model(str(masked_run))
    codes = {CODEBOOK: vq.params[CODEBOOK] + 1}
    save_model(str(tmp_path / "vq"), vq.params | codes, vq.config, vq.meta, "float32")
    masked.config["codec"]["path"] = str(tmp_path / "vq")
    save_model(str(tmp_path / "base"), masked.params, masked.config, masked.meta, "float32")
    with pytest.raises(UserError, match=r"reads tokens of .*, and .*base draws none of them"):
        Cascade([str(tmp_path / "base"), str(super_run)])


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        (
            "low_codec.path",
            "builtin:autoencoder_64",
            "low_codec.path builtin:autoencoder_64 has no codebook",
        ),
        (
            "low_codec.kind",
            "wavelet",
            "low_codec.kind is 'wavelet'; use one of autoencoder, identity",
        ),
        ("low_resolution.factor", -1, "low_resolution.factor is -1; use 1 or more"),
        ("denoiser.kind", "token_transformer", "super_resolution_transformer .*coarse tokens"),
        ("conditioner.width", 12, "set conditioner.width"),
    ],
)
def test_parts_of_super_resolution_that_do_not_fit(key, value, words):
    config = read(f"{runs.ROOT}/configs/masked.py:size=test,part=super")
    untrained = f"{runs.ROOT}/configs/autoencoder.py:size=test,kind=vq"
    config.codec.path = config.low_codec.path = untrained
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=words):
        make_task(config)


def test_what_does_not_fit_is_one_sentence(masked_run, vq_run, pictures, tmp_path, capsys):
    out = f"--out={tmp_path}"
    assert main(["sample", "a", f"--checkpoint={masked_run}", "--sampler=ddim", out]) == 2
    assert "sampling.sampler is 'ddim'; use one of parallel" in capsys.readouterr().err
    arguments = runs.command("masked", tmp_path / "run", pictures)
    for more, words in (
        (f"--config.codec.path={vq_run} --config.process.kind=gaussian", "codec gives tokens"),
        ("--config.denoiser.kind=unet", "no key config.denoiser.depth of kind unet"),
        ("--config.codec.path=builtin:autoencoder_64", "gives no tokens|use one of unet"),
        (
            f"--config.codec.path={vq_run} --config.sampling.sag_scale=0.75",
            "do not apply to tokens",
        ),
    ):
        assert main([*arguments, *more.split()]) == 2
        err = capsys.readouterr().err
        assert any(word in err for word in words.split("|")), err
