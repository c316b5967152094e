"""Real training commands on a small data set, for tests of whole programs. A helper, not a test.

A small run's time is tracing and compilation, so its networks are as small as they can be.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from emu_jax.checkpoint.adapters import write_adapter
from emu_jax.checkpoint.export import load_model
from emu_jax.checkpoint.manager import Checkpoints
from emu_jax.nn.lora import DOWN, UP, factor, factor_shapes
from emu_jax.text.encoder import make_encoder

ROOT = Path(__file__).parents[1]
PROGRAM = [sys.executable, "-m", "emu_jax"]
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
    "imported": ("train.needles", "validation.held_out.needles"),
    "judge": (
        "train.openmoji",
        "train.fluent",
        "train.noto",
        "validation.kept_unseen.noto",
        "validation.held_out.openmoji",
        "validation.held_out.fluent",
    ),
}
# One stage compiles in half the time of two.
SMALL = {
    "latent_diffusion": ("widths=(8,)",),
    "pixel_diffusion": ("widths=(8,)", "transformer_depth=(1,)"),
    "pixel_diffusion:part=base": ("widths=(8,)", "transformer_depth=(1,)"),
    "pixel_diffusion:part=super": ("widths=(8,)", "blocks=(1,)", "attention=('full',)"),
}


def command(config: str, workdir: Path, data_dir: Path, *more: str) -> list[str]:
    """Arguments of ``emu-jax``: train the config's test size on ``folder/tiny``, 16 x 16 images.

    ``config`` may have options, "pixel_diffusion:part=super"; of "imported:FOLDER" it is the model.
    With an option data=NAME that is the data set.
    """
    small = SMALL.get(config if "data=" not in config else config.partition(":")[0], ())
    config, _, options = config.partition(":")
    if config != "imported":
        options = ",".join(filter(None, ("size=test", options)))
    overrides = [
        f"--config.data.{source}.{key}"
        for source in SOURCES[config]
        for key in ("dataset=folder/tiny", "select=")
        if "data=" not in options
    ]
    if config not in ("autoencoder", "imported"):
        overrides.append(f"--config.text.minilm.path={data_dir}/text_encoder")
    return [
        "train",
        f"--config={ROOT}/configs/{config}.py:{options}",
        f"--workdir={workdir}",
        f"--config.data.data_dir={data_dir}",
        "--config.data.image_size=16",
        *overrides,
        *(f"--config.denoiser.{key}" for key in small),
        *more,
    ]


def text_encoder(folder: Path) -> None:
    """MiniLM with the first of its six layers, for the runs above."""
    source = make_encoder("minilm", 16).folder
    folder.mkdir()
    shutil.copy(source / "tokenizer.json", folder)
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    tensors = load_file(source / "model.safetensors")
    kept = ("embeddings.", "encoder.layer.0.")
    tensors = {name: x for name, x in tensors.items() if name.startswith(kept)}
    save_file(tensors, folder / "model.safetensors")


def train(config: str, workdir: Path, data_dir: Path, *more: str) -> None:
    """Runs :func:`command` in this process."""
    from emu_jax.cli.main import main

    assert main(command(config, workdir, data_dir, *more)) == 0


def train_control(workdir: Path, data_dir: Path, base: Path, codec: Path) -> None:
    """A ControlNet of ``base``'s, on latents and texts from caches; edges are computed from the
    images beside them.
    """
    from emu_jax.cli.main import main

    arguments = command("latent_diffusion", workdir, data_dir)
    config = f"--config={ROOT}/configs/control.py:size=test"
    settings = (
        *(f"init_from={base}", f"codec.path={codec}", f"data.cache_dir={workdir}/cache"),
        *("data.cache_latents=True", "data.cache_text=True", "sampling.previews=2"),
        *(f"train.{key}=4" for key in ("steps", "validate_every", "preview_every")),
        "groups.control.optimizer.learning_rate=0.1",
    )
    arguments = [config if a.startswith("--config=") else a for a in arguments]
    assert main([*arguments, *(f"--config.{setting}" for setting in settings)]) == 0


def write_lora(base: Path, file: Path) -> None:
    """A LoRA file for one kernel of the generator ``base``, which changes its images."""
    kernel = "denoiser/mid_block/resnets/0/conv1/kernel"
    shapes = factor_shapes(kernel, load_model(str(base)).params[kernel].shape, rank=2)
    named = zip((DOWN, UP), shapes, strict=True)
    factors = {factor(kernel, name): np.full(shape, 0.1) for name, shape in named}
    write_adapter(str(file), factors, 2.0, prefix="unet", dtype=np.float32)


def train_parser(workdir: Path, data_dir: Path, network: str = "solo") -> None:
    """Trains the parser's test size on ``scenes/openmoji_tiny``."""
    from emu_jax.cli.main import main

    sources = (
        f"--config.data.{part}.{style}.dataset=scenes/openmoji_tiny"
        for part in ("train", "validation.unseen")
        for style in ("openmoji", "fluent")
    )
    config = f"--config={ROOT}/configs/parser.py:size=test,network={network}"
    more = (f"--config.data.data_dir={data_dir}", "--config.train.preview_every=4")
    assert main(["train", config, f"--workdir={workdir}", *more, *sources]) == 0


def train_reward(workdir: Path, data_dir: Path, text_dir: Path) -> None:
    """Trains the reward's test size on ``preferences/openmoji_tiny``, 16 x 16 images."""
    from emu_jax.cli.main import main

    sources = (
        f"--config.data.{part}.{style}.dataset=preferences/openmoji_tiny"
        for part in ("train", "validation.unseen")
        for style in ("openmoji", "fluent")
    )
    more = (
        f"--config.data.data_dir={data_dir}",
        f"--config.text.minilm.path={text_dir}/text_encoder",
        "--config.data.image_size=16",
        "--config.reward.widths=(8,)",
        "--config.train.preview_every=4",
    )
    config = f"--config={ROOT}/configs/reward.py:size=test,dimension=separate"
    assert main(["train", config, f"--workdir={workdir}", *more, *sources]) == 0


def devices_flag(devices: int) -> dict[str, str]:
    """The environment variable that gives a child process so many CPU devices."""
    others = os.environ.get("XLA_FLAGS", "")
    return {"XLA_FLAGS": f"{others} --xla_force_host_platform_device_count={devices}"}


def environment(devices: int) -> dict[str, str]:
    """That of a child process with so many CPU devices."""
    return os.environ | devices_flag(devices)


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


def saved(workdir: Path):
    """Whether a checkpoint is complete."""
    folder = workdir / "checkpoints"
    return lambda: folder.exists() and any(path.name.isdecimal() for path in folder.iterdir())


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
