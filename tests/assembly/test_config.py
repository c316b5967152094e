"""Configs: options of the argument, overrides, sources of one's own, and how fast they are read."""

import itertools
import os
import subprocess
import sys

import pytest
import runs

from emu_jax.assembly import checking
from emu_jax.assembly.config import leaves, load, options, read
from emu_jax.assembly.sections.runs import TASKS
from emu_jax.errors import UserError

FILE = f"{runs.ROOT}/configs/latent_diffusion.py"
TEST = f"{FILE}:size=test"


def loaded(*overrides, file=TEST):
    return load([f"--config={file}", "--workdir=runs/x", *overrides], "emu-jax train")[0]


# Options ----------------------------------------------------------------------------------------


def test_options_are_read_and_default_to_their_first_choice():
    choices = {"size": ("tiny", "test"), "stage": ("pretrain", "quality_tune")}
    assert vars(options(None, **choices)) == {"size": "tiny", "stage": "pretrain"}
    chosen = options("stage=quality_tune,size=test", **choices)
    assert (chosen.size, chosen.stage) == ("test", "quality_tune")


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (f"{FILE}:sise=tiny", "The config has no option 'sise'; did you mean size?"),
        (f"{FILE}:colour=red", "it has size, stage, resolution, denoiser and data."),
        (f"{FILE}:stage=pretrian", "'pretrian'; use pretrain, quality_tune, compose, faulty or fi"),
        (f"{FILE}:resolution=256", "resolution=256 is only available for size=sdxl and size=emu."),
        (
            f"{FILE}:size=emu,denoiser=transformer",
            "denoiser=transformer is only available for size=tiny and size=test.",
        ),
        (
            f"{FILE}:size=sdxl,stage=compose",
            "stage=compose is only available for size=tiny and size=test, not sdxl.",
        ),
        (f"{runs.ROOT}/configs/autoencoder.py:size=f16", "only available for kind=vq; add kind=vq"),
        (
            f"{runs.ROOT}/configs/masked.py:size=amused256,part=super",
            "part=super is not available for size=amused256; leave part out.",
        ),
        (f"{runs.ROOT}/configs/imported.py", "configs/imported.py needs a model's folder"),
        ("configs/nothing.py:size=tiny", "There is no config file configs/nothing.py."),
    ],
)
def test_a_file_or_an_option_that_does_not_exist_is_one_sentence(file, words):
    with pytest.raises(UserError) as refused:
        read(file)
    assert words in str(refused.value)


# Overrides --------------------------------------------------------------------------------------


def test_overrides_reach_the_config_as_the_type_they_have():
    config, workdir = load(
        [
            f"--config={FILE}:size=test,stage=quality_tune",
            "--workdir=runs/x",
            "--config.train.steps=7",
            "--config.data.flip=false",
            "--noconfig.deterministic",
            "--config.groups.generator.ema_decay=0.5",
            "--config.denoiser.widths=(4,8,16)",
            "--config.denoiser.blocks=(1,2,3)",  # where the file has one number for all stages
            "--config.denoiser.time_width=32",  # where the file has None
            "--config.train.preview_prompts=('a red fox','a snail')",
        ],
        "emu-jax train",
    )
    assert workdir == "runs/x"
    assert (config.train.steps, config.data.flip, config.deterministic) == (7, False, False)
    assert config.groups.generator.ema_decay == 0.5
    assert (config.denoiser.widths, config.denoiser.blocks) == ((4, 8, 16), (1, 2, 3))
    assert config.denoiser.time_width == 32
    assert config.train.preview_prompts == ("a red fox", "a snail")
    assert config.process.noise_offset == 0.1  # of the stage


def test_read_gives_the_config_without_overrides():
    assert read(f"{FILE}:stage=quality_tune").train.batch_size == 64
    assert read(FILE).train.batch_size == 32


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("compute_dtype=nonsense", "config.compute_dtype is 'nonsense'; use float32 or bfloat16."),
        ("groups.generator.every=0", "config.groups.generator.every is 0; use 1 or more."),
        ("groups.generator.every=1" + 20 * "0", "use a whole number of at most 2147483647."),
        ("groups.generator.pattern=(((", "use a regular expression: missing ), unterminated"),
        ("groups.generator.phase=1", "config.groups.generator.phase is 1; use a step of the "),
        ("train.accumulate=0", "config.train.accumulate is 0; use 1 or more."),
        ("train.accumulate=-1", "config.train.accumulate is -1; use 1 or more."),
        ("train.accumulate=7", "config.train.accumulate is 7; use a divisor of train.batch_size"),
        ("train.batch_size=1000000000", "config.train.batch_size is 1000000000; use 1 to 1048576."),
        ("train.seed=-1", "config.train.seed is -1; use 0 to 4294967295."),
        ("train.steps=many", "config.train.steps is 'many'; use a whole number, 1 or more."),
        ("groups={}", "config.groups is a section; set its keys, e.g. --config.groups.generator="),
        ("train={}", "config.train is a section; set its keys, e.g. --config.train.accumulate="),
        ("data.workers=-1", "config.data.workers is -1; use 0 to 1024."),
        ("data.train={}", "config.data.train is empty; use one or more named sections."),
        ("data.train.fluent.weight=inf", "weight is inf; use a finite number, more than 0."),
        ("data.background=(1,2)", "is (1, 2); use a tuple of 3 whole numbers, 0 to 255."),
        ("data.flip=perhaps", "config.data.flip is 'perhaps'; use True or False."),
        ("denoiser.widths=(0,)", "config.denoiser.widths is (0,); use 1 or more, for each"),
        ("denoiser.widths=many", "is ('many',); use a tuple of whole numbers, 1 or more."),
        ("denoiser.kind=unte", "super_resolution_transformer (did you mean unet?)."),
        ("denoiser.kind=uvit", "The config has no key config.denoiser.act of kind uvit; it has"),
        ("process.schedule=cosin", "squared_cosine or flow (did you mean cosine?)."),
        ("process.bounds=(1.0,0.5)", "config.process.bounds is (1.0, 0.5); use a lower time and"),
        ("sampling.previews=0", "config.sampling.previews is 0; use 1 or more."),
        ("sampling.steps=", "config.sampling.steps is ''; use a whole number, 1 or more."),
        ("mesh.fsdp=0", "config.mesh.fsdp is 0; use 1 or more, or -1 for"),
        ("task=autoencoding", "The config has no key config.adapter;"),
        ("trian.steps=3", "The config has no key config.trian.steps; did you mean --config.train."),
        ("data.imgae_size=8", "no key config.data.imgae_size; did you mean --config.data.image_"),
        ("task[0]=x", "The config has no key config.task[0]"),
    ],
)
def test_an_override_that_is_wrong_is_one_sentence(override, sentence):
    with pytest.raises(UserError) as refused:
        loaded(f"--config.{override}")
    message = str(refused.value)
    assert sentence in message and "\n" not in message
    assert message.endswith((".", "?"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "emu-jax train needs --config=FILE"),
        ((f"--config={TEST}",), "emu-jax train needs --workdir=DIR"),
        ((f"--config={TEST}", "--workdir=x", "more"), "emu-jax train has no argument 'more'; see"),
        ((f"--config={TEST}", "--workdri=x"), "no argument '--workdri'; did you mean --workdir?"),
    ],
)
def test_arguments_that_are_missing_or_unknown_are_one_sentence(arguments, sentence):
    with pytest.raises(UserError) as refused:
        load(arguments, "emu-jax train")
    assert sentence in str(refused.value)


def test_a_bucket_without_its_package_is_one_sentence(monkeypatch):
    monkeypatch.setattr(checking, "find_spec", lambda name: None)
    for override in ("data.data_dir=gs://b/data", "init_from=gs://b/run", "codec.path=gs://b/x"):
        with pytest.raises(UserError, match=r"'gs://b/.*'; use a local path, or install gcsfs"):
            loaded(f"--config.{override}")
    with pytest.raises(UserError, match=r"--workdir: 's3://b/x': use a local path, or install"):
        load([f"--config={TEST}", "--workdir=s3://b/x"], "emu-jax train")
    monkeypatch.setattr(checking, "find_spec", lambda name: name == "gcsfs" or None)
    assert loaded("--config.data.data_dir=gs://b/data").data.data_dir == "gs://b/data"


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("config.train.update(dict(stepz=3))", "no key config.train.stepz; did you mean config."),
        ("config.smapling = dict(steps=3)", "no key config.smapling; did you mean config.sampling"),
        ("del config.sampling", "config.sampling is not set; use a section with the keys sampler,"),
        ("del config.codec", "config.codec is not set; use a section with the keys kind and path."),
        ("config.train.stop.mode = 3", "line 6: TypeError: Could not override field 'mode'"),
        ("config.lr = config.learning", "line 6: AttributeError: "),
        (
            "del config.groups; config.groups = dict(b=group('b/'), a=group('a/'))",
            "config.groups is a plain dict, which a ConfigDict sorts by name; use groups(...)",
        ),
    ],
)
def test_a_mistake_in_a_config_file_is_one_sentence(line, sentence, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from emu_jax.assembly.config import group, read\n"
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        f"    config = read({TEST!r})\n"
        "    config.unlock()\n"
        f"    {line}\n"
        "    return config\n"
    )
    with pytest.raises(UserError) as refused:
        read(str(file))
    assert sentence in str(refused.value)


TEXTS = ("0", "-1", "1" + 30 * "0", "nan", "", "nonsense", "(((", "(0,)", "None", "{'a': 1}")


def test_a_text_of_any_kind_on_the_command_line_is_accepted_or_refused_in_one_sentence():
    names = leaves(read(TEST))
    for name, text in zip(names, itertools.cycle(TEXTS), strict=False):
        try:
            loaded(f"--config.{name}={text}")
        except UserError as error:
            assert "config." in str(error) and "\n" not in str(error)


def test_keys_that_a_file_leaves_out_can_be_overridden(tmp_path):
    """Also the section of a task that the file brings along."""
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import dataclass\n"
        "from typing import Literal\n"
        "from emu_jax.assembly.config import group, groups, source\n"
        "from emu_jax.assembly.schema import key, section\n"
        "from emu_jax.assembly.sections.runs import TASKS, Run, TaskKind\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Mine(Run):\n"
        "    task: Literal['mine'] = key('mine', 'The task.')\n"
        "    beta: float = key(0.5, 'A weight.', above=0)\n"
        "TASKS['mine'] = TaskKind(Mine, print)\n"
        "def get_config():\n"
        "    config = section(Mine)\n"
        "    config.groups = groups(all=dict(pattern=''))\n"
        "    config.data.train = dict(mine=dict(dataset='folder/mine'))\n"
        "    return config\n"
    )
    try:
        overrides = ("beta=2", "groups.all.every=3", "data.train.mine.weight=2")
        config = loaded(*(f"--config.{override}" for override in overrides), file=str(file))
        assert (config.beta, config.groups.all.every) == (2.0, 3)
        assert config.data.train.mine.to_dict() == dict(
            dataset="folder/mine", select="", captions="captions", weight=2.0
        )
        with pytest.raises(UserError, match=r"config\.beta is 0\.0; use more than 0\."):
            loaded("--config.beta=0", file=str(file))
    finally:
        TASKS.pop("mine", None)


# One's own images ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file",
    [
        "latent_diffusion.py:size=tiny,stage=quality_tune",
        "latent_diffusion.py:size=emu",
        "masked.py:part=super",
        "pixel_diffusion.py:size=imagen,part=super,stage=quality_tune",
        "autoencoder.py:kind=vq",
    ],
)
def test_a_data_set_of_one_s_own_replaces_all_others(file):
    config = read(f"{runs.ROOT}/configs/{file},data=folder/mine")
    assert "emoji/" not in str(config.data)
    assert config.data.train.pictures.select == "part != held_out"
    held_out = config.data.validation.held_out.pictures
    assert (held_out.dataset, held_out.select) == ("folder/mine", "part == held_out")
    assert config.train.validate_every and config.train.preview_every
    assert not config.get("measure", {}).get("judge")


def overridden(*overrides):
    flags = [f"--config={FILE}:size=test", "--workdir=runs/x"]
    return load([*flags, *(f"--config.data.{text}" for text in overrides)], "emu-jax train")[0].data


def test_sources_sets_and_streams_are_added_on_the_command_line():
    data = overridden(
        "train.mine.dataset=folder/mine",
        "train.mine.weight=2",
        "validation.mine.photos.dataset=folder/photos",
        "validation.nested.train.photos.dataset=folder/photos",
        "streams.extra.sources.mine.dataset=folder/mine",
        "streams.extra.batch_size=4",
    )
    assert data.train.mine.to_dict() == dict(
        dataset="folder/mine", select="", captions="captions", weight=2.0
    )
    assert {"openmoji", "fluent", "mine"} == set(data.train)
    assert data.validation.mine.photos.dataset == "folder/photos"
    assert data.validation.nested.train.photos.dataset == "folder/photos"
    assert (data.streams.extra.batch_size, data.streams.extra.sources.mine.weight) == (4, 1.0)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.openmojy.dataset=a/b", "did you mean --config.data.train.openmoji.dataset?"),
        ("train.mine.weight=2", "config.data.train.mine.dataset is ''; use a string that is not"),
        ("train.mine.datset=a/b", "did you mean --config.data.train.mine.dataset?"),
        ("trane.mine.dataset=a/b", "The config has no key config.data.trane.mine.dataset;"),
    ],
)
def test_a_misspelled_source_is_not_a_new_one(override, sentence):
    with pytest.raises(UserError) as refused:
        overridden(override)
    assert sentence in str(refused.value)


# Speed -------------------------------------------------------------------------------------------


def test_reading_a_config_imports_nothing_heavy():
    """Typing mistakes are answered without waiting for JAX."""
    code = (
        "import sys, pathlib\n"
        "from emu_jax.assembly.config import load, read\n"
        f"folder = pathlib.Path({str(runs.ROOT / 'configs')!r})\n"
        "for file in folder.glob('*.py'):\n"
        "    if file.stem not in ('imported', 'curation'):  # the first reads a model\n"
        "        read(str(file))\n"
        f"        load([f'--config={{file}}', '--workdir=x', '--config.train.steps=3'], 'train')\n"
        "heavy = ('jax', 'flax', 'numpy', 'tensorflow_datasets', 'tensorflow', 'grain', 'orbax')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


def test_data_lies_where_the_environment_says(tmp_path):
    code = (
        "from emu_jax.assembly.schema import section\n"
        "from emu_jax.assembly.sections.data import Data\n"
        "data = section(Data)\n"
        "print(data.data_dir, data.cache_dir)"
    )

    def printed(**variables):
        env = {k: v for k, v in os.environ.items() if k != "EMU_JAX_DATA"} | variables
        result = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        )
        return result.stdout.split()

    assert printed() == ["~/emu_jax_data", "~/emu_jax_data/cache"]
    assert printed(EMU_JAX_DATA=str(tmp_path)) == [str(tmp_path), f"{tmp_path}/cache"]
