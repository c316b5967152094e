"""Hostile input for the real commands: ``python tests/fuzz.py KIND --count=1000 --seed=0``.

A case is a command line on files of which some are damaged, drawn by (kind, seed, number). It is
accepted (status 0) or refused (status 2 and one sentence). Everything else is a failure: another
exception, a second line, a command that computes for longer than ``LIMIT`` seconds, waits for
longer than ``WAIT`` or takes ``MEMORY`` bytes, the opening of a file that is neither the case's own
nor of the installation, code that is executed from the case, a process or a connection.

Nothing is compiled beyond what making a model compiles: where a command would train or draw, it
reads its first batch of data, or returns black images.
"""

import argparse
import contextlib
import csv
import faulthandler
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from unittest import mock

import conftest  # before anything that imports JAX
import numpy as np
from PIL import Image
from test_foreign_files import changed, damaged

ROOT = Path(__file__).parents[1]
LIMIT = 60  # seconds of a processor
WAIT = 600
MEMORY = 2**30
_FRAMES = 30  # of a failure, from the innermost
# What a case must never read, and what it must never execute: its neighbours.
SECRET, HOSTILE = "secret", "hostile.py"
TEXTS = (
    *("0", "-1", "1" + 30 * "0", "nan", "inf", "", "nonsense", "(((", "(0,)", "(3,-1)", "None"),
    *("1", "2", "3", "8", "16", "0.5", "False", "True", "1e-9", "{'a': 1}", "\ud800", "a" * 5000),
    *("../secret", HOSTILE, "\x00", "builtin:x"),
)

Case = Callable[[Path, random.Random], list[str]]  # fills a new folder; a command line


@dataclass(frozen=True)
class Material:
    """Whole files of which cases are damaged copies: folders of the small runs of the tests."""

    home: Path  # for what a kind makes for itself
    data: Path  # with folder/tiny and its text_encoder
    autoencoder: Path
    generator: Path
    pipelines: tuple[str, ...] = ("sd15", "sdxl", "amused", "pixart", "shards")


# What is damaged -----------------------------------------------------------------------------


def anything(path: Path, chance: random.Random, links: bool = True) -> None:
    """Damages one file: its bytes, its entries if it is JSON, or what it is; with ``links``, also a
    link to another folder.
    """
    data, kind = path.read_bytes(), chance.random()
    if path.suffix == ".json" and kind < 0.6:
        with contextlib.suppress(ValueError, IndexError, TypeError):
            data = json.dumps(pointed(changed(json.loads(data), chance), chance)).encode()
    elif path.suffix == ".safetensors" and kind < 0.6:
        data = with_header(data, chance)
    elif kind < 0.9:
        data = damaged(data, chance) if data else b"\x00"
    path.unlink()
    if 0.9 <= kind < 0.93:
        path.mkdir()
    elif 0.93 <= kind < 0.96 and links:
        home = next(parent for parent in path.parents if (parent / SECRET).is_dir())
        path.symlink_to(home / SECRET / f"any{path.suffix}")
    elif kind < 0.96 or kind >= 0.98:
        path.write_bytes(data)


def pointed(value, chance: random.Random):
    """Now and then a text of a JSON value leads out of the folder, or to code."""
    if isinstance(value, dict):
        return {key: pointed(item, chance) for key, item in value.items()}
    if isinstance(value, list):
        return [pointed(item, chance) for item in value]
    if isinstance(value, str) and chance.random() < 0.01:
        return chance.choice((f"../{SECRET}", f"../{SECRET}/model.safetensors", HOSTILE))
    return value


def with_header(data: bytes, chance: random.Random) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(changed(json.loads(data[8 : 8 + length]), chance)).encode()
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


# Kinds -----------------------------------------------------------------------------------------


def configs(material: Material) -> Case:
    import runs

    from emu_jax.assembly.config import leaves, read

    names = {
        config: leaves(read(f"{ROOT}/configs/{config}.py:size=test"))
        for config in ("autoencoder", "latent_diffusion", "masked", "pixel_diffusion", "judge")
    }

    def case(folder: Path, chance: random.Random) -> list[str]:
        config = chance.choice([*names])
        more = [
            f"--config.{chance.choice(names[config])}={chance.choice(TEXTS)}"
            for _ in range(chance.choice((1, 1, 2)))
        ]
        codec = [f"--config.codec.path={material.autoencoder}"] * (config == "latent_diffusion")
        cache = f"--config.data.cache_dir={folder}/cache"
        return runs.command(config, folder / "run", material.data, *codec, cache, *more)

    return case


def captions(material: Material) -> Case:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def sidecar(folder: Path, rows: list[dict]) -> Path:
        (folder / "0.txt").write_text("a red disc\na red ball\n")
        return folder / "0.txt"

    def lines(folder: Path, rows: list[dict]) -> Path:
        file = folder / "metadata.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return file

    def table(folder: Path, rows: list[dict]) -> Path:
        with (folder / "metadata.csv").open("w", newline="", errors="replace") as file:
            writer = csv.DictWriter(file, ["file_name", "text", "novel"], extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        return folder / "metadata.csv"

    def parquet(folder: Path, rows: list[dict]) -> Path:
        columns = {}
        for name in {name for row in rows for name in row}:
            try:
                columns[name] = pa.array([row.get(name) for row in rows])
            except (pa.ArrowException, OverflowError, UnicodeError, TypeError):
                columns[name] = pa.array([0] * len(rows))
        pq.write_table(pa.table(columns), folder / "metadata.parquet")
        return folder / "metadata.parquet"

    def case(folder: Path, chance: random.Random) -> list[str]:
        images = folder / "images"
        images.mkdir()
        rows = [{"file_name": f"{i}.png", "text": f"image {i}"} for i in range(2)]
        for row in rows:
            Image.new("RGB", (6, 4)).save(images / row["file_name"])
        if chance.random() < 0.5:
            rows = changed({"rows": rows}, chance).get("rows", [])
            rows = [row for row in rows if isinstance(row, dict)] if type(rows) is list else []
        if rows and chance.random() < 0.1:
            outside = (f"../../{SECRET}/image.png", f"{folder.parent}/{SECRET}/image.png", HOSTILE)
            rows[0]["file_name"] = chance.choice(outside)
        file = chance.choice((sidecar, lines, table, parquet))(images, rows)
        if chance.random() < 0.7:
            anything(file, chance, links=False)
        return ["data", "build", "folder/a", f"--path={images}", f"--data_dir={folder}/data"]

    return case


def images(material: Material) -> Case:
    """The bytes of one of two images."""
    whole = []
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 4), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    saved = (
        *(("RGB", "PNG", {"exif": exif}), ("RGBA", "PNG", {}), ("P", "PNG", {}), ("1", "PNG", {})),
        *(("RGB", "JPEG", {"exif": exif}), ("CMYK", "JPEG", {}), ("L", "JPEG", {})),
        *(("RGBA", "WEBP", {"exif": exif}), ("RGB", "BMP", {}), ("I;16", "TIFF", {})),
        *(("RGB", "TIFF", {"compression": "tiff_lzw"}), ("F", "TIFF", {}), ("RGB", "AVIF", {})),
        ("P", "GIF", {"save_all": True, "append_images": [Image.new("P", (16, 12), 3)]}),
    )
    for mode, form, options in saved:
        stream = io.BytesIO()
        first = picture.convert("L") if mode in ("I;16", "F") else picture
        with contextlib.suppress(OSError, KeyError, ValueError):  # of a Pillow without the format
            first.convert(mode).save(stream, form, **options)
            whole.append((form.lower(), stream.getvalue()))

    def case(folder: Path, chance: random.Random) -> list[str]:
        inside = folder / "images"
        inside.mkdir()
        form, data = chance.choice(whole)
        (inside / f"0.{form}").write_bytes(damaged(data, chance))
        if chance.random() < 0.5:
            Image.new("RGB", (6, 4)).save(inside / "1.png")
        if chance.random() < 0.05:
            anything(inside / f"0.{form}", chance, links=False)
        return ["data", "build", "folder/a", f"--path={inside}", f"--data_dir={folder}/data"]

    return case


def models(material: Material) -> Case:
    """A file of an exported model, or of a pipeline in diffusers' layout."""
    import encoders
    import pipelines

    from emu_jax.cli.main import main

    home = material.home / "models"
    ours, special = (
        home / "ours",
        dict(amused=pipelines.write_amused, pixart=pipelines.write_pixart),
    )

    def shards(home: Path) -> Path:
        folder = shutil.copytree(pipelines.write("sd15", home), home / "shards")
        shutil.rmtree(folder / "text_encoder")
        encoders.clip_text(folder / "text_encoder", shard="5KB")
        return folder

    if not ours.exists():
        home.mkdir()
        assert main(["export", str(material.generator), f"--out={ours}"]) == 0
    theirs = [home / name for name in material.pipelines]
    for folder in theirs:
        if not folder.exists():
            write = special.get(folder.name, partial(pipelines.write, folder.name))
            (shards if folder.name == "shards" else write)(home)

    def case(folder: Path, chance: random.Random) -> list[str]:
        if chance.random() < 0.5:
            shutil.copytree(ours, folder / "model")
            anything(chance.choice(files_of(folder / "model")), chance)
            if chance.random() < 0.2:
                return ["sample", "a fox", f"--checkpoint={folder}/model", f"--out={folder}/out"]
            return ["export", f"{folder}/model", f"--out={folder}/out"]
        shutil.copytree(chance.choice(theirs), folder / "model")
        for _ in range(chance.choice((1, 1, 2))):
            anything(chance.choice(files_of(folder / "model")), chance)
        return ["import", f"{folder}/model", f"--out={folder}/out"]

    return case


def checkpoints(material: Material) -> Case:
    """A file of a run's checkpoints, opened to draw, to export or to go on training."""
    import runs

    def case(folder: Path, chance: random.Random) -> list[str]:
        run, draws = folder / "run", chance.random() < 0.1
        source = material.generator if draws else material.autoencoder
        shutil.copytree(source, run, ignore=shutil.ignore_patterns("tensorboard"))
        files = files_of(run)
        anything(chance.choice(files), chance)
        if chance.random() < 0.1:
            victim = chance.choice([path for path in run.rglob("*") if path.is_dir()])
            shutil.rmtree(victim)
        if draws:
            return ["sample", "a fox", f"--checkpoint={run}", f"--out={folder}/out"]
        if chance.random() < 0.5:
            return ["export", str(run), f"--out={folder}/out"]
        return runs.command("autoencoder", run, material.data, "--config.train.steps=8")

    return case


def tokenizers(material: Material) -> Case:
    """A file of a text encoder's folder that a run is started with."""
    import encoders
    import runs

    home = material.home / "encoders"
    folders = {material.data / "text_encoder": "minilm"}
    for write in (encoders.clip_text, encoders.clip_whole, encoders.t5):
        if not (home / write.__name__).exists():
            write(home / write.__name__)
        folders[home / write.__name__] = "t5" if write is encoders.t5 else "clip"

    def case(folder: Path, chance: random.Random) -> list[str]:
        source, kind = chance.choice([*folders.items()])
        shutil.copytree(source, folder / "text")
        found = [path for path in files_of(folder / "text") if path.suffix != ".safetensors"]
        anything(chance.choice(found), chance)
        text = (f"kind={kind}", f"path={folder}/text", "length=8")
        return runs.command(
            *("pixel_diffusion:part=base", folder / "run", material.data),
            *(f"--config.text.minilm.{setting}" for setting in text),
        )

    return case


KINDS = {
    make.__name__: make for make in (configs, captions, images, models, checkpoints, tokenizers)
}


# Running a case ------------------------------------------------------------------------------


class Hang(BaseException):
    """A command took too long."""


@dataclass
class Guard:
    """What a case does to the machine, by Python's audit events."""

    active: bool = False
    case: str = ""
    allowed: tuple[str, ...] = ()
    found: list[str] = field(default_factory=list)

    def __call__(self, event: str, arguments: tuple) -> None:
        if not self.active:
            return
        self.active = False  # this function opens files itself
        try:
            self._judge(event, arguments)
        finally:
            self.active = True

    def _judge(self, event: str, arguments: tuple) -> None:
        if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "pty.spawn"):
            self.found.append(f"{event} {arguments[:2]}")
        elif event == "socket.connect":
            self.found.append(f"{event} {arguments[1]}")
        elif event == "exec":
            file = getattr(arguments[0], "co_filename", "")
            if (os.path.isabs(file) and not file.startswith(CODE)) or file.endswith(HOSTILE):
                self.found.append(f"executed {file}")
        elif event == "open" and isinstance(arguments[0], str | bytes):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            secret = os.path.join(os.path.dirname(self.case), SECRET)
            if path.startswith(secret) or not path.startswith((self.case, *self.allowed, *FILES)):
                self.found.append(f"opened {path}")


CODE = (str(ROOT), sys.prefix, sys.base_prefix)
FILES = (
    *(*CODE, "/proc/", "/sys/", "/dev/", "/usr/", "/etc/"),
    os.path.realpath(os.environ["JAX_COMPILATION_CACHE_DIR"]),
)
GUARD = Guard()
_installed = False


def one(argv: list[str]) -> tuple[str, str]:
    """("accepted" or "refused", the sentence), or ("failed", why)."""
    from emu_jax.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    GUARD.found = []
    peak = _reset_peak()
    failure: BaseException | None = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _shallow():
        try:
            with _limited():
                GUARD.active = True
                status = main(argv)
        except BaseException as error:
            failure = error
        finally:
            GUARD.active = False
    if failure:
        return "failed", "".join(traceback.format_exception(failure, limit=-_FRAMES))
    if GUARD.found:
        return "failed", "; ".join(GUARD.found[:5])
    grown = _peak() - peak
    if grown > MEMORY:
        return "failed", f"{grown / 2**20:.0f} MiB of memory"
    if status == 0:
        return "accepted", ""
    lines = [line for line in err.getvalue().splitlines() if line.startswith("emu-jax: ")]
    whole = err.getvalue()
    tidy = len(lines) == 1 and whole.endswith(f"{lines[0]}\n") and len(lines[0]) < 1500
    if status != 2 or not tidy or "Traceback" in whole:
        return "failed", f"status {status}: {whole[-1500:]}"
    return "refused", lines[0]


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Raises Hang in here after ``LIMIT`` seconds of a processor or after ``WAIT`` seconds.

    Not by ITIMER_PROF, whose signal profilers of other libraries send as well.
    """

    def alarm(number: int, frame: object) -> None:
        raise Hang(f"longer than {LIMIT} s of a processor, or {WAIT} s")

    soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    before = [signal.signal(number, alarm) for number in (signal.SIGXCPU, signal.SIGALRM)]
    rest, _ = signal.setitimer(signal.ITIMER_REAL, WAIT)
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + 1 + LIMIT, hard))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))
        signal.setitimer(signal.ITIMER_REAL, rest)
        for number, handler in zip((signal.SIGXCPU, signal.SIGALRM), before, strict=True):
            signal.signal(number, handler)


@contextlib.contextmanager
def _shallow() -> Iterator[None]:
    """Commands train and draw nothing."""
    from emu_jax.assembly.generator import Drawer
    from emu_jax.training.trainer import Trainer

    def loop(trainer: Trainer, *_: object) -> str:
        stream = trainer.stream(0)
        next(stream)
        stream.close()
        return "done"

    def run(trainer: Trainer) -> str:  # of a new run, whose parameters need not be made
        resumes = (Path(trainer.workdir) / "checkpoints").exists()
        return whole(trainer) if resumes else loop(trainer)

    def draw(drawer: Drawer, params: object, prompts: list[str], *_: object):
        drawer._tokens(list(prompts))
        for _prompt in prompts:
            yield np.zeros((8, 8, 3), np.uint8)

    whole = Trainer.run
    with (
        mock.patch.object(Trainer, "_loop", loop),
        mock.patch.object(Trainer, "run", run),
        mock.patch.object(Drawer, "draw_with", draw),
    ):
        yield


def _reset_peak() -> int:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fuzz(
    kind: str, material: Material, home: Path, count: int, seed: int = 0, first: int = 0
) -> tuple[Counter, list[str]]:
    """Runs cases ``first`` ... of a kind in ``home``: how many were accepted, refused and failed,
    and the failures. The folders of failures are kept.
    """
    global _installed
    if not _installed:
        sys.addaudithook(GUARD)
        _installed = True
    _lay_traps(home)
    make, counts, failures = KINDS[kind](material), Counter(), []
    for number in range(first, first + count):
        folder, chance = home / f"{kind}-{seed}-{number}", random.Random(f"{kind} {seed} {number}")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        argv = make(folder, chance)
        GUARD.case = os.path.realpath(folder)
        own = (material.home, material.data, material.autoencoder, material.generator)
        GUARD.allowed = tuple(map(os.path.realpath, own))
        with contextlib.chdir(folder):
            outcome, why = one(argv)
        counts[outcome] += 1
        if outcome == "failed":
            failures.append(f"{folder.name}: emu-jax {' '.join(argv)[-400:]}\n{why}")
            print(failures[-1], file=sys.stderr, flush=True)
        else:
            shutil.rmtree(folder)
    return counts, failures


def _lay_traps(home: Path) -> None:
    (home / SECRET).mkdir(exist_ok=True)
    for name in ("model.safetensors", "any.safetensors"):
        (home / SECRET / name).write_bytes(b"\x02\x00\x00\x00\x00\x00\x00\x00{}")
    for name in ("config.json", "any.json", "any.txt", "any"):
        (home / SECRET / name).write_text("{}")
    Image.new("RGB", (6, 4)).save(home / SECRET / "image.png")
    (home / HOSTILE).write_text("raise SystemExit('executed')\n")


def prepared(home: Path) -> Material:
    """The small runs, trained by the real commands."""
    import runs

    data, autoencoder, generator = (home / x for x in ("data", "autoencoder", "generator"))
    if not (home / "complete").exists():
        data.mkdir(parents=True)
        conftest.build_images(data)
        runs.train("autoencoder", autoencoder, data, "--config.train.steps=4")
        rate = "--config.groups.generator.optimizer.learning_rate=0.1"
        more = (f"--config.codec.path={autoencoder}", "--config.train.steps=4", rate)
        runs.train("latent_diffusion", generator, data, *more)
        (home / "complete").touch()
    return Material(home, data, autoencoder, generator)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=[*KINDS, "all"])
    parser.add_argument("--count", type=int, default=1000, help="cases of a kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--home", help="folder for the runs and for failed cases")
    arguments = parser.parse_args()
    home = Path(arguments.home or tempfile.mkdtemp(prefix="emu_jax-fuzz-")).resolve()
    material, failed = prepared(home / "material"), False
    for kind in KINDS if arguments.kind == "all" else (arguments.kind,):
        place = home / "cases"
        place.mkdir(exist_ok=True)
        faulthandler.dump_traceback_later(arguments.count * WAIT, exit=True)
        start = time.monotonic()
        counts, failures = fuzz(
            kind, material, place, arguments.count, arguments.seed, arguments.first
        )
        seconds = time.monotonic() - start
        figures = ", ".join(f"{counts[x]} {x}" for x in ("refused", "accepted", "failed"))
        print(f"{kind}: {arguments.count} cases in {seconds:.0f} s: {figures}", flush=True)
        failed |= bool(failures)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
