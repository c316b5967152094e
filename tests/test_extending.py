"""The task of docs/add_a_task.md: a file outside the package that every command accepts."""

import json
import re
import shutil

import numpy as np
import pytest
import runs

from emu_jax.assembly.sections.runs import TASKS
from emu_jax.cli.main import main

PAGE = runs.ROOT / "docs" / "add_a_task.md"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The page's file, and what it registers while it is tested."""
    (code,) = re.findall(r'```python title="reward_weighted.py"\n(.*?)```', PAGE.read_text(), re.S)
    assert len(code.splitlines()) < 90
    file = tmp_path_factory.mktemp("outside") / "reward_weighted.py"
    file.write_text(code)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(runs.ROOT)
        yield f"--config={file}:size=test"
        del TASKS["reward_weighted"]


def test_a_task_outside_the_package_trains_and_resumes(
    config, pictures, autoencoder_run, generator_run, tmp_path
):
    def train(name, *more):
        source = "dataset=folder/tiny", "select="
        streams = "train.needles", "streams.reference.sources.needles"
        return main(
            [
                "train",
                config,
                f"--workdir={tmp_path / name}",
                f"--config.data.data_dir={pictures}",
                f"--config.codec.path={autoencoder_run}",
                f"--config.init_from={generator_run}",
                "--config.train.steps=4",
                "--config.train.validate_every=2",
                "--config.train.preview_every=4",
                "--config.data.image_size=16",
                "--config.denoiser.widths=(8,)",  # as generator_run has them
                f"--config.text.minilm.path={pictures}/text_encoder",
                *(f"--config.data.{stream}.{key}" for stream in streams for key in source),
                *(
                    f"--config.data.validation.{name}.{key}"
                    for name in ("kept.openmoji", "held_out.openmoji", "held_out.fluent")
                    for key in source
                ),
                *more,
            ]
        )

    assert train("unbroken") == 0
    shutil.copytree(tmp_path / "unbroken", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "4")
    # What is measured and shown changes no parameter.
    assert train("resumed", *(f"--config.train.{x}_every=0" for x in ("validate", "preview"))) == 0
    unbroken, resumed = (runs.arrays(tmp_path / name) for name in ("unbroken", "resumed"))
    assert unbroken.keys() == resumed.keys()
    assert all(np.array_equal(unbroken[path], resumed[path]) for path in unbroken)
    factors = [path for path in unbroken if path.startswith("params/")]
    assert factors and all("/lora_A/" in path or "/lora_B/" in path for path in factors)
    lines = runs.lines(tmp_path / "unbroken" / "metrics.jsonl")
    logged = {key for line in lines for key in line}
    assert {"generator/reward_train", "generator/reward_reference", "kept/loss"} <= logged
    assert list((tmp_path / "unbroken").rglob("*kept_samples*.png"))


def test_it_is_planned_and_timed(config, tmp_path):
    shapes = [
        "--config.denoiser.widths=(8,)",
        f"--config.init_from={runs.ROOT}/configs/latent_diffusion.py:size=test",
        f"--config.codec.path={runs.ROOT}/configs/autoencoder.py:size=test",
        "--config.data.cache_text=True",  # or a text encoder is most of what is compiled
        "--config.data.image_size=16",
        "--config.data.streams.reference.image_size=32",
    ]
    out = tmp_path / "bench"
    timing = ["--measure=train", "--repeats=1", "--warmup=0", f"--out={out}"]
    assert main(["bench", config, *shapes, *timing]) == 0
    assert json.loads((out / "bench.json").read_text())["train"]["images"] == 8 + 4
    pytest.importorskip("libtpu")
    plan = ["--topology=v5e:2x2", f"--out={tmp_path / 'plan'}"]
    assert main(["plan", config, *shapes, *plan]) == 0
