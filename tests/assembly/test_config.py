"""Configs: options of the argument, overrides, and what is refused."""

import os
import subprocess
import sys

import pytest
import runs

from emu_jax.assembly.config import defaults, leaves, load, optimizer, options, read, source
from emu_jax.errors import UserError

FILE = f"{runs.ROOT}/configs/latent_diffusion.py"


def test_options_are_read_and_default_to_their_first_choice():
    choices = {"size": ("tiny", "test"), "stage": ("pretrain", "quality_tune")}
    assert vars(options(None, **choices)) == {"size": "tiny", "stage": "pretrain"}
    chosen = options("stage=quality_tune,size=test", **choices)
    assert (chosen.size, chosen.stage) == ("test", "quality_tune")


@pytest.mark.parametrize(
    ("argument", "words"),
    [("sise=tiny", "no option 'sise'; it has size"), ("size=huge", "size is one of tiny, test")],
)
def test_an_option_that_is_not_there_is_refused(argument, words):
    with pytest.raises(UserError, match=words):
        options(argument, size=("tiny", "test"))


def test_overrides_reach_the_config_as_the_type_they_have():
    config, workdir = load(
        [
            f"--config={FILE}:size=test,stage=quality_tune",
            "--workdir=runs/x",
            "--config.train.steps=7",
            "--config.data.flip=false",
            "--config.groups.generator.ema_decay=0.5",
            "--config.denoiser.widths=(4,8,16)",
        ],
        "emu-jax train",
    )
    assert workdir == "runs/x"
    assert (config.train.steps, config.data.flip) == (7, False)
    assert config.groups.generator.ema_decay == 0.5
    assert config.denoiser.widths == (4, 8, 16)
    assert config.process.noise_offset == 0.1  # of the stage


def test_read_gives_the_config_without_overrides():
    assert read(f"{FILE}:stage=quality_tune").train.batch_size == 64
    assert read(FILE).train.batch_size == 32


def test_leaves_name_sections_and_values():
    names = leaves(defaults())
    assert {"train", "train.steps", "data.cache_dir", "mesh.fsdp"} <= set(names)


def test_a_misspelt_key_of_a_section_helper_is_refused():
    with pytest.raises(KeyError, match="learning_rat"):
        optimizer(learning_rat=1e-3)
    with pytest.raises(KeyError, match="stepz"):
        defaults().train.update(dict(stepz=3))
    with pytest.raises(KeyError, match="patince"):
        defaults().train.stop.update(dict(patince=3))
    defaults().data.train.mine = source("folder/mine")  # streams are named freely


def test_data_lies_where_the_environment_says(tmp_path):
    code = (
        "from emu_jax.assembly.config import defaults as d;"
        " print(d().data.data_dir, d().data.cache_dir)"
    )

    def printed(**variables):
        env = {k: v for k, v in os.environ.items() if k != "EMU_JAX_DATA"} | variables
        result = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        )
        return result.stdout.split()

    assert printed() == ["~/emu_jax_data", "~/emu_jax_data/cache"]
    assert printed(EMU_JAX_DATA=str(tmp_path)) == [str(tmp_path), f"{tmp_path}/cache"]
