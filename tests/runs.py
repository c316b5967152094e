"""Real training commands on a small data set, for tests of whole programs. A helper, not a test."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import jax
import numpy as np

from emu_jax.checkpoint.manager import Checkpoints

ROOT = Path(__file__).parents[1]
# Overrides that point every source of a config at the small data set.
SOURCES = {
    "autoencoder": (
        "train.openmoji",
        "train.fluent",
        "validation.held_out.openmoji",
        "validation.held_out.fluent",
    ),
    "latent_diffusion": (
        "train.openmoji",
        "train.fluent",
        "validation.kept.openmoji",
        "validation.held_out.openmoji",
        "validation.held_out.fluent",
    ),
    "pixel_diffusion": (
        "train.openmoji",
        "train.fluent",
        "validation.kept.openmoji",
        "validation.held_out.openmoji",
        "validation.held_out.fluent",
    ),
    "masked": (
        "train.openmoji",
        "train.fluent",
        "validation.kept.openmoji",
        "validation.held_out.openmoji",
        "validation.held_out.fluent",
    ),
    "imported": ("train.needles",),
    "judge": (
        "train.openmoji",
        "train.fluent",
        "train.noto",
        "validation.kept_unseen.noto",
        "validation.held_out.openmoji",
        "validation.held_out.fluent",
    ),
}


def command(config: str, workdir: Path, data_dir: Path, *more: str) -> list[str]:
    """``emu-jax train`` with the config's test size on ``folder/tiny``, 16 x 16 pictures.

    ``config`` may have options, "pixel_diffusion:part=super"; of "imported:FOLDER" it is the model.
    """
    config, _, options = config.partition(":")
    if config != "imported":
        options = ",".join(filter(None, ("size=test", options)))
    overrides = [
        f"--config.data.{source}.{key}"
        for source in SOURCES[config]
        for key in ("dataset=folder/tiny", "select=")
    ]
    return [
        *(sys.executable, "-m", "emu_jax", "train"),
        f"--config={ROOT}/configs/{config}.py:{options}",
        f"--workdir={workdir}",
        f"--config.data.data_dir={data_dir}",
        "--config.data.image_size=16",
        *overrides,
        *more,
    ]


@contextmanager
def quick():
    """Programs compiled meanwhile, here and in child processes, are hardly optimised: most of a
    small run's time is compiling. What they compute is the same but for rounding.
    """
    before = jax.config.read("jax_disable_most_optimizations")
    with mock.patch.dict(os.environ, JAX_DISABLE_MOST_OPTIMIZATIONS="1"):
        jax.config.update("jax_disable_most_optimizations", True)
        try:
            yield
        finally:
            jax.config.update("jax_disable_most_optimizations", before)


def train(config: str, workdir: Path, data_dir: Path, *more: str) -> None:
    """Runs :func:`command` in this process."""
    from emu_jax.cli.main import main

    with quick():
        assert main(command(config, workdir, data_dir, *more)[3:]) == 0


def environment(devices: int) -> dict[str, str]:
    """That of a child process with so many CPU devices."""
    return os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}


def run(arguments: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, env=env, capture_output=True, text=True, timeout=600)


def interrupt(arguments: list[str], env: dict[str, str], number: int, when, log: Path) -> int:
    """Starts the command, sends it signal ``number`` as soon as ``when()``; its return code."""
    with log.open("ab") as output:
        process = subprocess.Popen(arguments, env=env, stdout=output, stderr=output)
        deadline = time.monotonic() + 600
        while process.poll() is None and not when():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.001)
        if process.poll() is None:
            process.send_signal(number)
        return process.wait(600)


def reached(workdir: Path, step: int):
    """Whether the run's log has come to ``step``."""
    path = workdir / "metrics.jsonl"

    def ask() -> bool:
        return path.exists() and any(line["step"] >= step for line in lines(path))

    return ask


def saving(workdir: Path):
    """Whether a checkpoint is being written at this moment."""
    folder = workdir / "checkpoints"
    return lambda: folder.exists() and any("tmp" in path.name for path in folder.iterdir())


def lines(path: Path) -> list[dict]:
    """The complete lines of a metrics file, without their wall-clock time."""
    found = []
    for line in path.read_text().splitlines():
        try:
            found.append({k: v for k, v in json.loads(line).items() if k != "time"})
        except ValueError:
            break
    return found


def arrays(workdir: Path) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint."""
    with Checkpoints(str(workdir / "checkpoints"), read_only=True) as checkpoints:
        return checkpoints.read_arrays()


TERMINATE, KILL = signal.SIGTERM, signal.SIGKILL
