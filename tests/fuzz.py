"""Hostile input for the real commands: ``python tests/fuzz.py KIND --count=1000 --seed=0``.

A case is a command line on files of which some are damaged, drawn by (kind, seed, number). It is
accepted (status 0) or refused (status 2 and one sentence). Everything else is a failure: another
exception, a second line, a command that computes for longer than ``LIMIT`` seconds, waits for
longer than ``WAIT`` or takes ``MEMORY`` bytes, the opening of a file that is neither the case's own
nor of the installation, code that is executed from the case, a process or a connection.

Nothing is compiled beyond what making a model compiles: where a command would train or draw, it
reads its first batch of data, or returns black images. The cases are in ``fuzz_cases.py``.
"""

import argparse
import contextlib
import faulthandler
import io
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
from pathlib import Path
from types import FrameType
from unittest import mock

import conftest  # before anything that imports JAX
import numpy as np
from fuzz_cases import HOSTILE, KINDS, ROOT, SECRET, Material
from PIL import Image

LIMIT = 60  # seconds of a processor
WAIT = 600
MEMORY = 2**30
FRAMES = 30  # of a failure, from the innermost: all of a deep recursion take minutes


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
                status = _interruptible(main, argv)
        except BaseException as error:
            failure = error
        finally:
            GUARD.active = False
    if failure:
        return "failed", "".join(traceback.format_exception(failure, limit=-FRAMES))
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
    """Raises Hang in what :func:`_interruptible` calls, after ``LIMIT`` seconds of a processor or
    after ``WAIT`` seconds, and again every second: an exception in a callback may be lost.

    Not by ITIMER_PROF, whose signal profilers of other libraries send as well.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    before = [signal.signal(number, _alarm) for number in (signal.SIGXCPU, signal.SIGALRM)]
    rest, _ = signal.setitimer(signal.ITIMER_REAL, WAIT, 1)
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + 1 + LIMIT, hard))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))
        signal.setitimer(signal.ITIMER_REAL, rest)
        for number, handler in zip((signal.SIGXCPU, signal.SIGALRM), before, strict=True):
            signal.signal(number, handler)


def _interruptible(command: Callable[[list[str]], int], argv: list[str]) -> int:
    return command(argv)


def _alarm(number: int, frame: FrameType | None) -> None:
    """A late alarm, after the command has ended, does nothing."""
    while frame and frame.f_code is not _interruptible.__code__:
        frame = frame.f_back
    if frame:
        raise Hang(f"longer than {LIMIT} s of a processor, or {WAIT} s")


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

    def draw(drawer: Drawer, params: object, prompts: list[str], *_: object, **__: object):
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
