"""How sampling scales with the number of prompts. A command, no test.

    python tests/sample_scale.py --prompts=100000 [--format=webdataset]

A minuscule generator with random weights draws 16 x 16 images. The command is interrupted when half
of the images are written, and started again. Printed are images per second, the resident memory at
every tenth of the images, and how many of the first half were drawn again.
"""

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import runs

from emu_jax.assembly.config import load
from emu_jax.assembly.tasks import make_task
from emu_jax.checkpoint.export import save_model

TENTHS = 10
SHARD = 1000  # images in a tar file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("--format", choices=("png", "webdataset"), default="png")
    values = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generator(folder)
        prompts = folder / "prompts.txt"
        prompts.write_text("".join(f"disc number {i}\n" for i in range(values.prompts)))
        emu_jax = Path(sys.executable).parent / "emu-jax"
        command = [emu_jax, "sample", f"--checkpoint={folder}/generator", f"--prompts={prompts}"]
        command += [f"--out={folder}/out", f"--format={values.format}", f"--shard_size={SHARD}"]
        command += ["--steps=1", "--guidance_scale=1", "--batch_size=256"]
        print("| images | resident memory | images/s since the row before |\n|---|---|---|")
        draw(command, folder / "out", values.prompts, stop=values.prompts // 2)
        before = written(folder / "out")
        draw(command, folder / "out", values.prompts)
        after = written(folder / "out")
        again = sum(after[file] != then for file, then in before.items())
        print(f"files {len(after):,}; of the first {len(before):,} drawn again: {again}")


def generator(folder: Path) -> None:
    """Writes the text encoder and the generator's model folder."""
    runs.text_encoder(folder / "text_encoder")
    arguments = runs.command("pixel_diffusion:part=base", folder / "run", folder)
    config, _ = load(arguments[1:], "emu-jax train")
    params = make_task(config).init(jax.random.key(0))[0]
    save_model(str(folder / "generator"), params, config.to_dict(), {"step": 0}, dtype=None)


def files(out: Path) -> list[Path]:
    """The complete files of images."""
    return [f for f in (*out.glob("*.png"), *out.glob("*.tar")) if f.name != "grid.png"]


def written(out: Path) -> dict[Path, int]:
    """When each was written."""
    return {file: file.stat().st_mtime_ns for file in files(out)}


def draw(command: list, out: Path, number: int, stop: int | None = None) -> None:
    """Runs the command, and interrupts it when ``stop`` images are written."""
    per_file = SHARD if "--format=webdataset" in command else 1
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    last = len(files(out)) * per_file, time.perf_counter()
    row = last[0] * TENTHS // number
    while process.poll() is None:
        time.sleep(2)
        images = len(files(out)) * per_file
        if images * TENTHS // number > row:
            row, now = images * TENTHS // number, time.perf_counter()
            rate = (images - last[0]) / (now - last[1])
            print(f"| {images:,} | {resident(process.pid):.2f} GiB | {rate:.0f} |", flush=True)
            last = images, now
        if stop and images >= stop:
            process.send_signal(signal.SIGINT)
            process.wait()
            return
    assert process.returncode == 0, process.returncode


def resident(process: int) -> float:
    """GiB of a process that has not ended; 0 if it has."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return 0.0
    sizes = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")]
    return int(sizes[0]) / 2**20 if sizes else 0.0


if __name__ == "__main__":
    main()
