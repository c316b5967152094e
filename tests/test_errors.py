"""What users get wrong ends in one sentence and status 2, and the last good checkpoint still loads.

Real commands: in this process where that is the same, in one of their own where it is not.
"""

import json
import resource
import shutil
import subprocess

import pytest
import runs

from emu_jax.cli.main import main


def sentence(stderr: str) -> str:
    """The one line on stderr beside those of progress."""
    progress = ("step ", "compil", "resumed from ")
    lines = [line for line in stderr.splitlines() if not line.startswith(progress)]
    assert len(lines) == 1, stderr
    assert lines[0].startswith("emu-jax: "), stderr
    return lines[0]


@pytest.fixture
def refused(capsys):
    """Runs a command line that must be refused; the sentence it is refused with."""

    def run(*arguments: object) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        return sentence(capsys.readouterr().err)

    return run


@pytest.fixture
def run_copy(autoencoder_run, tmp_path):
    """A copy of the autoencoder's run, to be ill-treated."""
    return shutil.copytree(autoencoder_run, tmp_path / "run")


@pytest.fixture
def train(pictures, tmp_path):
    """Arguments of a training command on the small data set."""

    def arguments(*more: object, config="autoencoder", workdir=tmp_path / "new", data=pictures):
        return runs.command(config, workdir, data, *map(str, more))

    return arguments


# The command line and the config --------------------------------------------------------------


def test_a_misspelt_config_key_names_the_nearest(refused, train, tmp_path):
    assert "no key config.train.stepz; did you mean --config.train.steps?" in refused(
        *train("--config.train.stepz=3")
    )
    assert not (tmp_path / "new").exists()


def test_a_misspelt_key_of_a_section_in_a_section_names_the_nearest(refused, train):
    said = refused(*train("--config.train.stop.patince=3"))
    assert "no key config.train.stop.patince; did you mean --config.train.stop.patience?" in said


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["stop.mode=least"], "train.stop.mode is"),
        (["best_metric=held_out/psnr"], "train.best_metric is 'held_out/psnr'"),
        (["validate_every=0"], "held_out/l1 would never be measured"),
        (["stop.metric=held_out/l2"], "No validation measures 'held_out/l2'"),
    ],
)
def test_a_criterion_that_cannot_be_is_named(overrides, words, refused, train):
    settings = ["stop.metric=held_out/l1", *overrides]
    assert words in refused(*train(*(f"--config.train.{setting}" for setting in settings)))


def test_a_key_like_no_other_is_refused_too(refused, train):
    assert "no key config.qqqqqq" in refused(*train("--config.qqqqqq=3"))


@pytest.mark.parametrize(
    "override", ["train.steps=many", "train.steps=2.5", "groups.autoencoder.ema_decay=often"]
)
def test_a_value_of_the_wrong_type_names_the_key(override, refused, train):
    assert override.partition("=")[0] in refused(*train(f"--config.{override}"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config=configs/autoencoder.py:sise=tiny"], "no option 'sise'"),
        (
            ["--config=configs/autoencoder.py:size=huge"],
            "The option size is 'huge'; use tiny, tiny_f4, test, f16 or f8",
        ),
        (["--config=configs/autoencodre.py"], "no config file configs/autoencodre.py"),
        ([], "needs --config=FILE"),
        (["--config=configs/autoencoder.py"], "needs --workdir=DIR"),
        (["--config=configs/autoencoder.py", "--workdir=x", "more"], "has no argument 'more'"),
        (["--config=configs/autoencoder.py", "--wrokdir=x"], "wrokdir"),
    ],
)
def test_a_wrong_argument_is_named(arguments, words, refused, monkeypatch):
    monkeypatch.chdir(runs.ROOT)
    assert words in refused("train", *arguments)


def test_the_process_prints_no_more_than_the_sentence(train, tmp_path):
    command = [*runs.PROGRAM, *train("--config.data.imgae_size=8")]
    result = runs.run(command, runs.environment(1))
    assert result.returncode == 2
    assert "did you mean --config.data.image_size?" in sentence(result.stderr)
    assert not result.stdout


# Data -----------------------------------------------------------------------------------------


def test_a_missing_data_set_names_the_command_that_builds_it(refused, train, tmp_path):
    said = refused(*train(data=tmp_path / "nowhere"))
    assert f"emu-jax data build folder/tiny --path=DIR --data_dir={tmp_path}/nowhere" in said


def test_a_selection_of_nothing_is_named(refused, train):
    said = refused(*train("--config.data.train.fluent.select=width > 9999"))
    assert "No record of folder/tiny matches 'width > 9999'" in said


def test_a_selection_by_a_column_that_is_not_there_is_named(refused, train):
    assert "no column 'hue'" in refused(*train("--config.data.train.fluent.select=hue == red"))


def test_a_batch_that_devices_cannot_share_is_named(train, tmp_path):
    command = [*runs.PROGRAM, *train()]
    result = runs.run(command, runs.environment(3))
    assert result.returncode == 2
    assert "A batch of 8 does not divide over 3 devices" in sentence(result.stderr)


# Checkpoints and other models -------------------------------------------------------------------


def test_a_checkpoint_of_another_model_is_left_alone(refused, train, run_copy):
    said = refused(*train("--config.latent_channels=4", "--config.train.steps=8", workdir=run_copy))
    assert f"{run_copy}/checkpoints@4 is a checkpoint of another model" in said
    assert "params/autoencoder/" in said
    assert int(runs.arrays(run_copy)["step"]) == 4


@pytest.mark.parametrize(
    ("files", "share"), [("_METADATA", 0.5), ("d/*", 0.5), ("ocdbt.process_0/d/*", 0)]
)
def test_a_half_written_checkpoint_is_named_with_the_one_that_loads(
    files, share, refused, train, run_copy
):
    """Of the arrays' own files nothing may be left: the ends of these are often not in use."""
    newest = run_copy / "checkpoints" / "4"
    for file in (newest / "state").glob(files):
        file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    said = refused(*train("--config.train.steps=8", workdir=run_copy))
    assert f"The checkpoint of step 4 in {run_copy}/checkpoints is damaged" in said
    assert "step 2" in said
    shutil.rmtree(newest)  # what the sentence asks for
    assert int(runs.arrays(run_copy)["step"]) == 2


def test_a_full_disk_loses_no_earlier_checkpoint(train, run_copy, tmp_path):
    """A file that may not grow is refused by the system, as on a full disk, in mid-writing."""
    before = runs.arrays(run_copy)
    command = [*runs.PROGRAM, *train("--config.train.steps=6", workdir=run_copy)]
    limit = max(path.stat().st_size for path in run_copy.glob("metrics.jsonl")) + 8192
    result = subprocess.run(
        command,
        env=runs.environment(1)
        | {"JAX_ENABLE_COMPILATION_CACHE": "false", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert result.returncode == 2, result.stderr
    said = sentence(result.stderr)
    assert "checkpoint of step 6 could not be saved" in said
    assert "step 4 still loads" in said
    after = runs.arrays(run_copy)
    assert all((after[name] == before[name]).all() for name in before)


def test_init_from_another_model_names_what_differs(refused, train, autoencoder_run):
    said = refused(*train(f"--config.init_from={autoencoder_run}", "--config.latent_channels=4"))
    assert "init_from: autoencoder/" in said


def test_init_from_another_kind_of_model_says_that_nothing_fits(
    refused, train, autoencoder_run, generator_run
):
    said = refused(
        *train(
            f"--config.init_from={autoencoder_run}",
            f"--config.codec.path={autoencoder_run}",
            config="latent_diffusion",
        )
    )
    assert "no parameter of the source is one of this model's" in said


@pytest.mark.parametrize(
    ("place", "words"),
    [("nowhere", "no such folder"), (".", "neither an exported model")],
)
def test_init_from_nothing_is_named(place, words, refused, train, tmp_path):
    said = refused(*train(f"--config.init_from={tmp_path / place}"))
    assert words in said
    assert str(tmp_path) in said


def test_a_codec_that_is_no_autoencoder_is_named(refused, train, generator_run):
    said = refused(*train(f"--config.codec.path={generator_run}", config="latent_diffusion"))
    assert f"codec.path {generator_run} is not an autoencoder: its task is 'generation'" in said


def test_weights_that_do_not_come_with_the_package_are_named(refused, train):
    said = refused(*train("--config.codec.path=builtin:nothing", config="latent_diffusion"))
    assert "No weights called builtin:nothing" in said


# Drawing --------------------------------------------------------------------------------------


def test_sampling_from_an_autoencoder_is_refused(refused, autoencoder_run, tmp_path):
    said = refused("sample", "a fox", "--checkpoint", autoencoder_run, "--out", tmp_path / "out")
    assert f"{autoencoder_run} is not a text-to-image generator: its task is 'autoencoding'" in said
    assert not (tmp_path / "out").exists()


def test_sampling_from_a_folder_without_a_model_is_refused(refused, tmp_path):
    assert "neither an exported model" in refused("sample", "a fox", "--checkpoint", tmp_path)


def test_sampling_from_a_json_file_that_is_no_config_is_refused(refused, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"name": "another program's"}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert "is not the config of a model" in refused("sample", "a fox", "--checkpoint", tmp_path)


def test_sampling_without_a_prompt_is_refused(refused, tmp_path):
    assert "There are no prompts" in refused("sample")
    (tmp_path / "prompts").write_text("\n\n")
    assert "has no prompts" in refused("sample", "--prompts", tmp_path / "prompts")
    assert "no file of prompts" in refused("sample", "--prompts", tmp_path / "nowhere")


def test_an_unknown_sampler_is_refused(refused, generator_run, tmp_path):
    out = ("--out", tmp_path / "out")
    said = refused("sample", "a fox", "--checkpoint", generator_run, "--sampler", "eluer", *out)
    assert "sampling.sampler is 'eluer'" in said
