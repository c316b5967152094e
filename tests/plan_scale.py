"""How a plan scales: opening, memory and batches over so many synthetic rows. A command, no test.

    python tests/plan_scale.py --rows=1e9 [--folder=DIR]

It writes a manifest in shards (the columns that a plan reads: sizes, part, source, a score; several
shards are links to one file) and opens a mixture of buckets with a condition in new processes: one
that computes the index of the records, one that finds it. Each prints a row of the table in
docs/records/plan.md: seconds (and seconds of CPU time) until the first batch can be asked for, the
process's peak memory with all memory-mapped pages that it touched, and milliseconds of CPU time of
batch(n): of one far n at first, then of random n up to it.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from emu_jax.data.buckets import make_buckets
from emu_jax.data.index import open_members
from emu_jax.data.manifest import Manifest
from emu_jax.data.manifest_shards import ROWS, shard_name, write_shard, write_shards
from emu_jax.data.mixture import Selection
from emu_jax.data.plan import COUNTED, BatchPlan
from emu_jax.data.roster import Roster

DISTINCT = 32  # shards with content of their own
SELECT = "part != held_out and score > 4.5"
BATCH_SIZE, BATCHES = 256, 200


class Source:
    """A data set without records."""

    name = "synthetic"

    def __init__(self, directory: Path):
        self.directory, self.manifest = str(directory), Manifest.read(directory)


def make(folder: Path, rows: int) -> None:
    """Writes the manifest."""
    rng = np.random.default_rng(0)
    sizes = [min(ROWS, rows - start) for start in range(0, rows, ROWS)]
    shards = []
    for i, size in enumerate(sizes):
        if i >= DISTINCT and size == ROWS:
            os.link(
                folder / shard_name(i % DISTINCT, len(sizes)), folder / shard_name(i, len(sizes))
            )
            shards.append(shards[i % DISTINCT])
            continue
        columns = {
            "width": rng.integers(256, 3000, size).astype(np.int32),
            "height": rng.integers(256, 3000, size).astype(np.int32),
            "part": np.where(rng.random(size) < 0.001, "held_out", "train").astype(object),
            "source": np.array(["web", "stock", "own"], object)[rng.integers(0, 3, size)],
            "score": rng.normal(5, 1, size).astype(np.float32),
        }
        shards.append(write_shard(folder, i, len(sizes), pa.table(columns)))
    write_shards(folder, shards)


def measure(folder: Path) -> None:
    """Opens the plan and prints its row of the table."""
    start, worked = time.perf_counter(), time.process_time()
    shapes = make_buckets(1024)
    source = Source(folder)
    roster = Roster([open_members(Selection(source, select=SELECT), shapes)], shapes)
    plan = BatchPlan(roster, [1.0], BATCH_SIZE, seed=0)
    opened, worked = time.perf_counter() - start, time.process_time() - worked
    records = int(roster.counts.sum())
    # What is counted, not computed, is slow to reach once: see shares.py.
    farthest = 10**6 if records <= COUNTED else 10**12
    start = time.process_time()
    plan.batch(farthest)
    far = time.process_time() - start
    times = []
    for n in np.random.default_rng(1).integers(0, farthest, BATCHES).tolist():
        start = time.process_time()
        plan.batch(n)
        times.append(time.process_time() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    cells = [
        f"{len(source.manifest):,}",
        f"{records:,}",
        f"{opened:.2f} s ({worked:.2f})",
        f"{peak:.2f} GiB",
        f"{farthest:.0e}",
        *(f"{1e3 * seconds:.1f} ms" for seconds in (far, np.median(times), max(times))),
    ]
    print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=float, default=1e6)
    parser.add_argument("--folder", help="where the manifest is written; default: a new folder")
    parser.add_argument("--open", help=argparse.SUPPRESS)
    values = parser.parse_args()
    if values.open:
        measure(Path(values.open))
        return
    print(
        "| rows | selected | opening (CPU) | peak memory | up to n | first far | median | longest |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(dir=values.folder) as folder:
        make(Path(folder), int(values.rows))
        for _ in ("computes the index", "finds it"):
            subprocess.run([sys.executable, __file__, f"--open={folder}"], check=True)
        size = sum(path.stat().st_size for path in Path(folder).glob("index/*/*"))
        print(json.dumps({"index_bytes": size, "load": os.getloadavg()}))


if __name__ == "__main__":
    main()
