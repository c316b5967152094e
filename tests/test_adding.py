"""The pages on adding a sampler, a denoiser and a metric: their diffs apply to the package, and the
commands accept what they add.
"""

import json
import re
import shutil
import subprocess
import sys

import pytest
import runs

EXAMPLE = r"^```python\n(.*?)^```"
PAGES = [runs.ROOT / "docs" / f"add_a_{part}.md" for part in ("sampler", "denoiser", "metric")]
PIXELS = """
from emu_jax.assembly.config import read

def get_config(argument=None):
    config = read("{}:size=test")
    with config.unlocked():
        config.codec = dict(kind="identity")
    return config
"""
# Trains and compares; then the errors of the sampler where the flow is known: data N(0, c^2) have
# the posterior mean below, and the flow scales x by the ratio of standard deviations.
PROGRAM = """
import json, sys
import jax, jax.numpy as jnp
from emu_jax.cli.main import main
from emu_jax.process.gaussian import GaussianProcess
from emu_jax.process.registry import make_sampler
from emu_jax.process.sampling import sample
from emu_jax.process.schedules import Cosine

commands, examples = map(json.loads, sys.argv[1:])
for example in examples:
    exec(example)
for command in commands:
    assert main(command) == 0, command

process, c = GaussianProcess(Cosine(), "x0"), 0.5
variance = lambda t: (process.schedule.alpha(t) * c) ** 2 + process.schedule.sigma(t) ** 2
denoise = lambda x, t: (process.schedule.alpha(t) * c**2 / variance(t))[:, None] * x

def error(name, steps):
    times, x = jnp.linspace(1.0, 0.3, steps + 1), jnp.ones((1, 1))
    got = sample(denoise, process, make_sampler(name, process), times, jax.random.key(0), x)
    return float(got[0, 0] - jnp.sqrt(variance(times[-1]) / variance(times[0])))

assert make_sampler("half_noise", process).eta == 0.5
errors = [error("midpoint", n) for n in (16, 32)]
print("found", json.dumps([sys.modules["emu_jax"].__file__, errors]))
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The package with the diffs of all pages."""
    folder = tmp_path_factory.mktemp("copy")
    ignored = shutil.ignore_patterns("weights", "__pycache__")
    shutil.copytree(runs.ROOT / "emu_jax", folder / "emu_jax", ignore=ignored)
    (folder / "emu_jax" / "weights").symlink_to(runs.ROOT / "emu_jax" / "weights")
    for page in PAGES:
        (diff,) = re.findall(r"^```diff\n(.*?)^```", page.read_text(), re.S | re.M)
        # One file is new; of another, one line is added.
        assert diff.count("new file mode") == 1 and diff.count("diff --git") == 2
        (line,) = (part for part in diff.split("diff --git")[1:] if "new file" not in part)
        assert len(re.findall(r"^[+-](?![+-])", line, re.M)) == 1
        patch = folder / f"{page.stem}.diff"
        patch.write_text(diff)
        subprocess.run(["git", "apply", patch], cwd=folder, check=True)
    return folder


def test_what_the_pages_add_trains_draws_and_measures(copy, pictures, tmp_path):
    """The config of the page, in pixels: an autoencoder would be most of what is compiled. Nor is
    any validation loss, which every denoiser has.
    """
    page = (runs.ROOT / "docs" / "add_a_denoiser.md").read_text()
    (config,) = re.findall(r'```python title="convnet.py"\n(.*?)```', page, re.S)
    (tmp_path / "convnet.py").write_text(config)
    (tmp_path / "pixels.py").write_text(PIXELS.format(tmp_path / "convnet.py"))
    (tmp_path / "prompts").write_text("a red disc\na blue disc\n")
    run, report = tmp_path / "run", tmp_path / "report"
    shipped = runs.command("latent_diffusion", run, pictures)
    train = [
        *(a for a in shipped if not a.startswith(("--config=", "--config.denoiser"))),
        f"--config={tmp_path}/pixels.py",
        "--config.denoiser.width=8",
        "--config.denoiser.depth=1",
        "--config.data.image_size=8",
        "--config.train.steps=1",
        "--config.train.validate_every=0",
        "--config.train.preview_every=0",
    ]
    models = [str(run), f"{run}@1-raw"]
    compare = ["compare", *models, f"--prompts={tmp_path}/prompts", "--judge=", "--kept="]
    compare += ["--batch_size=2", "--sampler=midpoint", "--steps=2", f"--out={report}"]
    compare += ["--metrics=white_share,brightness"]
    examples = [e for page in PAGES for e in re.findall(EXAMPLE, page.read_text(), re.S | re.M)]
    assert len(examples) == 2
    program = [sys.executable, "-P", "-c", PROGRAM, *map(json.dumps, ([train, compare], examples))]
    done = subprocess.run(
        program,
        cwd=runs.ROOT,
        env=runs.environment(1) | {"PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    package, errors = json.loads(done.stdout.rsplit("found ", 1)[1])
    assert package.startswith(str(copy))
    assert errors[1] / errors[0] == pytest.approx(0.25, abs=0.01)  # of second order

    record = json.loads((report / "compare.json").read_text())
    assert 0 < record["metrics"]["brightness"]["figures"][models[0]]["value"] < 1
    measured = record["metrics"]["white_share"]
    assert set(measured["figures"]) == set(models) and measured["images"] == 2
    assert f"{models[1]} against {models[0]}" in measured["differences"]
    # Two steps of two calls, each with and without the text.
    assert record["models"][models[0]]["evaluations"] == 2 * 2 * 2
    assert "white_share" in (report / "index.html").read_text()
