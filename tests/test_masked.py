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

from emu_jax.checkpoint.export import load_model
from emu_jax.checkpoint.manager import Checkpoints
from emu_jax.cli import parts
from emu_jax.cli.cascade import Cascade
from emu_jax.cli.config import read
from emu_jax.cli.generator import Generator
from emu_jax.cli.main import main
from emu_jax.data.images import prepare
from emu_jax.data.mixture import Part
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
    arguments = runs.command(config, workdir, pictures, *more)[3:]
    arguments[0] = arguments[0].replace("size=test", size)
    assert main(["train", *arguments]) == 0


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


def caches(folder):
    return (
        "--config.data.cache_latents=True",
        "--config.data.cache_text=True",
        f"--config.data.cache_dir={folder}",
    )


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    return caches(tmp_path_factory.mktemp("cache"))


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


def test_cached_tokens_are_the_codecs_own(masked_run, cached, vq_run, pictures):
    """The 24 pictures of a validation set, in order."""
    folder = Path(cached[-1].split("=")[1])
    found = [np.load(path) for path in folder.glob("latents_*/*/moments.npy")]
    (tokens,) = [one for one in found if len(one) == 24]
    codec, frozen = parts.make_codec(ConfigDict(dict(kind="autoencoder", path=str(vq_run))))
    source = open_source("folder/tiny", str(pictures))
    images = [prepare(source.read(r), (16, 16))[0] for r in Part(source).records()]
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
def fine_run(pictures, tmp_path_factory):
    """A finer codebook: 4 x 4 tokens of what ``vq_run`` has 2 x 2 of."""
    workdir = tmp_path_factory.mktemp("fine") / "run"
    sizes = [f"--config.autoencoder.{name}=(4,4,4)" for name in ("widths", "decoder_widths")]
    more = (*VQ[1:], *sizes, "--config.train.steps=1", "--config.train.validate_every=0")
    train("autoencoder", "size=test,kind=vq", workdir, pictures, *more)
    return workdir


@pytest.fixture(scope="module")
def super_command(fine_run, vq_run, tmp_path_factory):
    return (
        f"--config.codec.path={fine_run}",
        f"--config.low_codec.path={vq_run}",
        "--config.train.steps=4",
        "--config.train.preview_every=4",
        RATE,
        *caches(tmp_path_factory.mktemp("super_cache")),
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
    shown = {file.name.split("_", 1)[-1] for file in super_run.glob("images/*.png")}
    assert any("low_resolution" in name for name in shown)


def test_cached_coarse_tokens_are_the_bases_own(super_run, super_command, masked_run, cached):
    """What the base's cache has of the same pictures, each set of them of another length."""

    def found(cache, name):
        places = Path(cache[-1].split("=")[1]).glob(f"latents_*/*/{name}.npy")
        return {len(array): array for array in map(np.load, places)}

    low, fine = (found(super_command, name) for name in ("low", "moments"))
    base = found(cached, "moments")
    assert low.keys() == fine.keys() == base.keys() == {24, 48}
    for n, tokens in low.items():
        np.testing.assert_array_equal(tokens, base[n])
        assert fine[n].shape == (n, 4, 4) and len(np.unique(tokens)) > 1


def test_a_cascade_hands_on_the_very_tokens(masked_run, super_run, tmp_path):
    names, prompts, seeds = [str(masked_run), str(super_run)], ["a red disc", "blue ball"], [0, 1]
    cascade = Cascade(names, batch_size=2)
    base, stage = cascade.stages
    assert (base.reads, stage.reads, stage.factor, cascade.side) == ("", "tokens", 1, 16)
    drawn = list(cascade.draw(prompts, seeds))
    tokens = list(base.draw(prompts, seeds, decode=False))
    assert [x.shape for x in tokens] == [(2, 2)] * 2 and tokens[0].max() < 16
    np.testing.assert_array_equal(list(stage.draw(prompts, seeds, low=tokens)), drawn)
    other = [(x + 1) % 16 for x in tokens]
    assert not np.array_equal(list(stage.draw(prompts, seeds, low=other)), drawn)
    cost, costs = cascade.costs(), [each.costs() for each in cascade.stages]
    assert cost["evaluations"] == 2 * 2 + 2 * 2 and cost["flops"] > costs[0]["flops"] > 0
    # The command draws the same, and a picture to be enlarged is read as the tokens that it has.
    sample = ["sample", prompts[0], f"--checkpoint={'+'.join(names)}", "--batch_size=2"]
    assert main([*sample, f"--out={tmp_path}"]) == 0
    (file,) = (file for file in tmp_path.glob("*.png") if file.name != "grid.png")
    np.testing.assert_array_equal(np.asarray(Image.open(file)), drawn[0])
    codec, frozen = base._task.codec, base._frozen["codec"]
    seen = jax.jit(codec.moments)(frozen, to_unit_range(jnp.asarray(np.stack(drawn))))
    tokens, out = np.asarray(seen), tmp_path / "large"
    again = ["upsample", str(file), f"--prompt={prompts[0]}", f"--checkpoint={super_run}"]
    assert main([*again, f"--out={out}"]) == 0
    expected = next(stage.draw(prompts[:1], [0], low=list(tokens)))
    found = np.asarray(Image.open(out / f"{file.stem}_x1.png"))
    assert np.abs(found.astype(int) - expected).max() <= 1  # another batch size


def test_stages_that_do_not_fit_are_refused(masked_run, super_run, generator_run, tmp_path, capsys):
    out = f"--out={tmp_path}"
    assert main(["sample", "a", f"--checkpoint={super_run}", out]) == 2
    assert "name it behind what draws them" in capsys.readouterr().err
    # Latents are no tokens; and numbers of one codebook say nothing of another's codes.
    with pytest.raises(UserError, match=r"reads tokens of .* draws none of them"):
        Cascade([str(generator_run), str(super_run)])
    with pytest.raises(UserError, match="enlarges nothing"):
        Cascade([str(masked_run), str(masked_run)])
    base, stage = Generator(str(masked_run)), Generator(str(super_run))
    assert stage.follows(base)
    base._frozen["codec"][CODEBOOK] += 1e-3
    assert not stage.follows(base)
    Image.new("RGB", (20, 16)).save(tmp_path / "odd.png")
    upsample = ["upsample", str(tmp_path / "odd.png"), f"--checkpoint={super_run}", out]
    assert main(upsample) == 2
    assert "16 x 20 are no whole number of tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("low_codec.path", "builtin:autoencoder_64", "low_codec gives no tokens"),
        ("low_codec.path", "builtin:nothing", "No weights called builtin:nothing"),
        ("low_codec.kind", "wavelet", "low_codec.kind is autoencoder or identity"),
        ("low_resolution.factor", -1, "1 or more, not -1"),
        ("denoiser.kind", "token_transformer", "super_resolution_transformer .* coarser ones"),
        ("conditioner.width", 12, "set conditioner.width"),
    ],
)
def test_parts_of_super_resolution_that_do_not_fit(key, value, words):
    config = read(f"{runs.ROOT}/configs/masked.py:size=test,part=super")
    config.codec.path = config.low_codec.path = (
        f"{runs.ROOT}/configs/autoencoder.py:size=test,kind=vq"
    )
    parts.make_task(config)
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=words):
        parts.make_task(config)


def test_what_does_not_fit_is_one_sentence(masked_run, vq_run, pictures, tmp_path, capsys):
    out = f"--out={tmp_path}"
    assert main(["sample", "a", f"--checkpoint={masked_run}", "--sampler=ddim", out]) == 2
    assert "drawn by the sampler parallel, not 'ddim'" in capsys.readouterr().err
    arguments = runs.command("masked", tmp_path / "run", pictures)[3:]
    for more, words in (
        (f"--config.codec.path={vq_run} --config.process.kind=gaussian", "codec gives tokens"),
        (f"--config.codec.path={vq_run} --config.denoiser.kind=unet", "one of token_transformer"),
        ("--config.codec.path=builtin:autoencoder_64", "gives no tokens|one of unet"),
    ):
        assert main(["train", *arguments, *more.split()]) == 2
        err = capsys.readouterr().err
        assert any(word in err for word in words.split("|")), err
