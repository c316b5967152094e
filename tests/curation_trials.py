"""Trials of the curation funnel that the suite has no time for.

python tests/curation_trials.py kills --count=20    kill -9 at random moments: the same bits
python tests/curation_trials.py runners             local, two processes, Dask: the same bits
python tests/curation_trials.py rows --millions=1,10,100
                                                    memory and time of choices by number of images

Dask needs ``pip install "apache-beam[dask]"``; without it that runner is left out.
"""

import argparse
import hashlib
import importlib.util
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
# Without the filters whose networks take long to load: what is tried is the pipeline.
CHEAP = """
from emu_jax.curation.sections import Curation, steps
from emu_jax.assembly.schema import section
def get_config(argument=None):
    return section(
        Curation,
        source=dict(kind="webdataset", path=""),
        side=128,
        filters=dict(shape={}, focus={}, hash={}),
        steps=steps(
            size=dict(kind="threshold", column="short_side", at_least=64),
            blur=dict(kind="threshold", column="acutance", quantile_at_least=0.1),
            duplicates=dict(kind="duplicates", weights=dict(sharpness=1.0)),
            top=dict(kind="top", count=60, weights=dict(acutance=1.0)),
        ),
    )
"""


def command(folder: Path, name: str, *more: str) -> list[str]:
    config = folder / "config.py"
    config.write_text(CHEAP)
    return [
        *(sys.executable, "-m", "emu_jax", "data", "curate", f"--config={config}"),
        *(f"--config.source.path={folder}/pool", f"--out={folder}/{name}"),
        *(f"--data_dir={folder}/{name}_data", *more),
    ]


def pool(folder: Path, count: int = 400) -> None:
    """A pool of random shapes, some of them twice: no data set is needed."""
    import io
    import json
    import tarfile

    from PIL import Image, ImageDraw

    (folder / "pool").mkdir(parents=True)
    for shard in range(8):
        with tarfile.open(folder / f"pool/{shard:05d}.tar", "w") as tar:
            for i in range(shard, count, 8):
                draw = random.Random(i % (count - 40))
                image = Image.new("RGB", (96, 96), "white")
                for _ in range(4):
                    x, y = draw.randint(0, 70), draw.randint(0, 70)
                    color = tuple(draw.randint(0, 200) for _ in range(3))
                    ImageDraw.Draw(image).ellipse((x, y, x + 30, y + 25), fill=color)
                stream = io.BytesIO()
                image.save(stream, "PNG")
                for suffix, data in (
                    ("png", stream.getvalue()),
                    ("json", json.dumps({"caption": f"shapes {i}"}).encode()),
                ):
                    info = tarfile.TarInfo(f"{i:06d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def bits(folder: Path, name: str) -> dict[str, str]:
    """sha256 of every file of a run, but for what differs by its folder or its time."""
    found = {}
    for root in (folder / name, folder / f"{name}_data"):
        for path in sorted(root.rglob("*")):
            if path.is_file() and not re.search(r"\.tmp$|/\.building-", str(path)):
                inner = path.relative_to(root).as_posix()
                found[inner] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def compare(wanted: dict[str, str], found: dict[str, str], what: str) -> None:
    differing = sorted(
        name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)
    )
    print(f"{what}: {len(found)} files, {len(differing)} differ {differing[:5]}", flush=True)
    assert not differing


def kills(folder: Path, count: int) -> None:
    start = time.monotonic()
    subprocess.run(command(folder, "whole"), check=True, stdout=subprocess.DEVNULL)
    whole, wanted = time.monotonic() - start, bits(folder, "whole")
    done = 0
    while done < count:
        shutil.rmtree(folder / "killed", ignore_errors=True)
        shutil.rmtree(folder / "killed_data", ignore_errors=True)
        killed = 0
        while True:  # killed until it gets through
            process = subprocess.Popen(command(folder, "killed"), stdout=subprocess.DEVNULL)
            try:
                process.wait(random.uniform(0.2, 1.0) * whole if done < count else None)
                break
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                killed, done = killed + 1, done + 1
        assert process.returncode == 0
        compare(wanted, bits(folder, "killed"), f"after {killed} kills, {done} in all")


def runners(folder: Path) -> None:
    subprocess.run(command(folder, "local"), check=True, stdout=subprocess.DEVNULL)
    wanted = bits(folder, "local")
    ways = {"two processes": ["--workers=2"]}
    if importlib.util.find_spec("distributed"):
        ways["Dask"] = ["--beam=--runner=apache_beam.runners.dask.dask_runner.DaskRunner"]
    for name, options in ways.items():
        own = name.replace(" ", "_")
        subprocess.run(command(folder, own, *options), check=True, stdout=subprocess.DEVNULL)
        compare(wanted, bits(folder, own), name)


def rows(folder: Path, millions: list[float]) -> None:
    """Choices over synthetic score tables; every size in a process of its own."""
    for size in millions:
        code = f"import curation_trials as t; t.choices_of({str(folder)!r}, {size})"
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT / "tests")


def choices_of(folder: str, millions: float) -> None:
    import pyarrow as pa
    from etils import epath

    from emu_jax.curation.choices import Balance, Threshold, Top, choose
    from emu_jax.curation.scores import Scores, write_table

    place, per_shard = epath.Path(folder) / f"{millions}", 500_000
    count = max(1, round(millions * 1e6 / per_shard))
    scores = Scores(count, {"images": str(place / "images")})
    for shard in range(count):
        draw = np.random.default_rng(shard)
        table = {
            "damaged": pa.array([""] * per_shard),
            "aesthetic": draw.normal(5, 1, per_shard).astype(np.float32),
            "words": draw.poisson(1, per_shard).astype(np.int32),
            "concept": pa.DictionaryArray.from_arrays(
                draw.integers(0, 20, per_shard).astype(np.int32), [f"c{i}" for i in range(20)]
            ).cast(pa.string()),
        }
        if not scores.path("images", shard).exists():
            write_table(pa.table(table), scores.path("images", shard))
    steps = {
        "aesthetic": Threshold("aesthetic", quantile_at_least=0.5),
        "words": Threshold("words", at_most=2),
        "balance": Balance(per_shard, weights={"aesthetic": 1.0}),
        "top": Top(20_000, weights={"aesthetic": 1.0}, floor=100),
    }
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    funnel = choose(scores, steps, {}, by="concept")
    spent = time.process_time() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    left = [row.left for row in funnel.rows]
    print(
        f"{millions:g} million images: {spent:.1f} CPU s, {memory / 1024:.0f} MiB at most "
        f"({before / 1024:.0f} before); left {left}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trial", choices=("kills", "runners", "rows"))
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--millions", default="1,10,100")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="curation-") as name:
        folder = Path(name)
        if arguments.trial == "rows":
            return rows(folder, [float(size) for size in arguments.millions.split(",")])
        pool(folder)
        if arguments.trial == "kills":
            return kills(folder, arguments.count)
        runners(folder)


if __name__ == "__main__":
    main()
