"""What is settled before a run's devices are used, which text encoder it resumes with, and what a
stage leaves as it was.
"""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import runs
from ml_collections import ConfigDict

from emu_jax.assembly import training
from emu_jax.checkpoint.export import load_model
from emu_jax.cli.main import main

COUNTED = """
import collections, sys
import jax, jax.numpy as jnp
from emu_jax.assembly.training import keep_programs

seen = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: seen.update([name.split("/")[-1]]))
keep_programs(sys.argv[1])
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((4, 4)))
print(seen["cache_hits"], seen["cache_misses"])
"""


def test_kept_programs_are_not_compiled_again(tmp_path):
    """However short their compiling: every kernel that is timed counts."""
    env = {key: value for key, value in os.environ.items() if "_CACHE_" not in key}

    def hits_and_misses() -> list[int]:
        command = [sys.executable, "-c", COUNTED, str(tmp_path / "programs")]
        found = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        return [int(count) for count in found.stdout.split()]

    hits, misses = hits_and_misses()
    assert hits == 0 and misses > 0
    assert hits_and_misses() == [misses, 0]


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("platform", ["gpu", "cpu"])
def test_a_deterministic_run_on_a_gpu_keeps_its_programs(deterministic, platform, monkeypatch):
    kept = []
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    monkeypatch.setattr(training, "initialize", lambda: None)
    monkeypatch.setattr(training, "keep_programs", kept.append)
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    training.prepare(ConfigDict(dict(deterministic=deterministic)), "runs/a")
    assert kept == (["runs/a/programs"] if deterministic and platform == "gpu" else [])
    flags = os.environ["XLA_FLAGS"].split()
    assert "--xla_cpu_enable_fast_math=false" in flags
    assert ("--xla_gpu_exclude_nondeterministic_ops=true" in flags) == deterministic


def test_a_run_resumes_with_its_own_tokenizer_only(movable_run, pictures, capsys):
    """Wherever its files are; a checkpoint of an older version does not say which one it was."""
    run, text = movable_run / "run", movable_run / "text"
    command = runs.command(
        *("latent_diffusion", run, pictures),
        f"--config.codec.path={movable_run}/codec",
        f"--config.text.minilm.path={text}",
        "--config.train.steps=4",  # all of them done
        "--config.groups.generator.optimizer.learning_rate=0.1",
    )
    assert main(command) == 0
    tokenizer = json.loads((text / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words["red"], words["blue"] = words["blue"], words["red"]
    (text / "tokenizer.json").write_text(json.dumps(tokenizer))
    capsys.readouterr()
    assert main(command) == 2
    assert f"with another tokenizer of minilm ({text}); use that one" in capsys.readouterr().err
    for record in run.glob("checkpoints/*/meta/metadata"):
        meta = json.loads(record.read_text())
        del meta["frozen"]["minilm"]["tokenizer"]
        record.write_text(json.dumps(meta))
    assert main(command) == 0


def test_a_decoder_is_trained_alone_for_the_same_latents(autoencoder_run, pictures, tmp_path):
    """What a generator reads, the encoder and the statistics of its latents, keeps every bit."""
    more = (f"--config.init_from={autoencoder_run}", "--config.train.steps=2")
    runs.train("autoencoder:stage=decoder", tmp_path / "run", pictures, *more)
    before, after = (load_model(str(run)).params for run in (autoencoder_run, tmp_path / "run"))
    changed = {path for path, x in before.items() if not np.array_equal(after[path], x)}
    assert before.keys() == after.keys() and changed
    assert all(path.startswith("autoencoder/decoder/") for path in changed), changed
