"""What a run leaves to read: metrics as JSON lines and in TensorBoard, pictures, a progress line.

``metrics.jsonl`` in the run's folder is the record that reports read: one line
``{"step": n, "time": seconds since the epoch, name: value, ...}`` a call, numbers at full
precision, ``nan`` and infinities as strings (JSON has none; ``float()`` reads them back). A run
resumed at step ``n`` first drops every line after ``n`` and a half-written last one, so the file
always reads as if the run had never been broken off. Whoever trains therefore logs all of a step
*before* saving the checkpoint of that step, and calls :meth:`Trackers.flush` in between.

Object stores cannot append. There (``gs://...``) the lines are kept in memory and the file is
written whole, at most once in :data:`REWRITE_SECONDS` and on every flush: a run of a million
steps, logged every hundred, is some megabytes. TensorBoard's files go the same way.
"""

import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, SupportsFloat, TextIO

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image
from tensorboardX import SummaryWriter
from tqdm import tqdm

from emu_jax.errors import UserError

METRICS_FILE = "metrics.jsonl"
REWRITE_SECONDS = 60.0

Pictures = UInt8[np.ndarray, "n h w 3"]
Draw = Callable[[np.ndarray, Sequence[str] | None], Image.Image]


def tile(images: Pictures, captions: Sequence[str] | None = None) -> Image.Image:
    """The pictures in a near-square grid; captions are left to richer ways of drawing."""
    del captions
    n, h, w, _ = images.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    cells = np.full((rows * columns, h, w, 3), 255, np.uint8)
    cells[:n] = images
    sheet = cells.reshape(rows, columns, h, w, 3).swapaxes(1, 2)
    return Image.fromarray(sheet.reshape(rows * h, columns * w, 3))


class Trackers:
    """Writes a run's metrics and pictures; silent on every process but the first.

    ``restored_step`` is the step that the run goes on from, None where it starts anew (what an
    earlier run left in ``metrics.jsonl`` then goes). ``draw(images, captions)`` makes one picture
    of several: the command line hands in ``evaluation.grids.grid``.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        *,
        restored_step: int | None = None,
        wandb: bool = False,
        draw: Draw = tile,
    ):
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        self._workdir = epath.Path(workdir)
        self._workdir.mkdir(parents=True, exist_ok=True)
        self._draw = draw
        self._lines = _Lines(self._workdir / METRICS_FILE, restored_step)
        self._board = SummaryWriter(
            os.fspath(self._workdir / "tensorboard"),
            purge_step=None if restored_step is None else restored_step + 1,
        )
        self._wandb = _start_wandb(self._workdir) if wandb else None

    def scalars(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Log named numbers of a step; arrays of one element are fetched from the device."""
        if not self._writes:
            return
        numbers = {name: float(value) for name, value in values.items()}
        self._lines.write(step, numbers)
        for name, number in numbers.items():
            self._board.add_scalar(name, number, step)
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)

    def images(
        self, step: int, images: Mapping[str, Pictures], captions: Sequence[str] | None = None
    ) -> None:
        """Write each named batch of pictures as one grid, ``images/<name>_<step>.png``."""
        if not self._writes:
            return
        folder = self._workdir / "images"
        folder.mkdir(parents=True, exist_ok=True)
        for name, pictures in images.items():
            sheet = self._draw(np.asarray(pictures), captions)
            with (folder / f"{name.replace('/', '_')}_{step:08d}.png").open("wb") as file:
                sheet.save(file, "PNG")
            self._board.add_image(name, np.asarray(sheet), step, dataformats="HWC")
            if self._wandb is not None:
                self._wandb.log({name: self._wandb.Image(sheet)}, step=step)

    def flush(self) -> None:
        """Make everything logged so far durable: call it before a checkpoint is saved."""
        if self._writes:
            self._lines.flush()
            self._board.flush()

    def close(self) -> None:
        if self._writes:
            self._lines.close()
            self._board.close()
            if self._wandb is not None:
                self._wandb.finish()


class _Lines:
    """``metrics.jsonl``: appended to where the file system can, else rewritten (see the module)."""

    def __init__(self, path: epath.Path, restored_step: int | None):
        self._path = path
        self._appends = "://" not in os.fspath(path)
        kept = [] if restored_step is None else list(_lines_until(path, restored_step))
        _write_whole(path, kept)
        self._file = path.open("a", encoding="utf-8") if self._appends else None
        self._kept = [] if self._appends else kept
        self._written = time.monotonic()

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        record = {"step": int(step), "time": round(time.time(), 3)}
        line = json.dumps(record | {name: _number(x) for name, x in numbers.items()}) + "\n"
        if self._file is not None:
            self._file.write(line)
            self._file.flush()  # to the system: from here on a kill cannot lose it
            return
        self._kept.append(line)
        if time.monotonic() - self._written >= REWRITE_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())
        else:
            _write_whole(self._path, self._kept)
            self._written = time.monotonic()

    def close(self) -> None:
        self.flush()
        if self._file is not None:
            self._file.close()


def _number(x: float) -> float | str:
    return x if math.isfinite(x) else str(x)


def _lines_until(path: epath.Path, last_step: int) -> Iterator[str]:
    """The file's lines up to a step. A line that a kill cut short ends the file."""
    if not path.exists():
        return
    for line in path.read_text().splitlines(keepends=True):
        try:
            step = json.loads(line)["step"] if line.endswith("\n") else None
        except (json.JSONDecodeError, KeyError, TypeError):
            step = None
        if step is None:
            return
        if step <= last_step:
            yield line


def _write_whole(path: epath.Path, lines: Sequence[str]) -> None:
    """All or nothing: an object store's writes are so by nature, a file's by renaming."""
    if "://" in os.fspath(path):
        path.write_text("".join(lines))
        return
    beside = path.with_name(path.name + ".new")
    with open(beside, "w", encoding="utf-8") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def _start_wandb(workdir: epath.Path) -> Any:
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            "wandb is asked for but not installed: pip install wandb, or set wandb=False"
        ) from error
    run_id = hashlib.sha256(os.fspath(workdir).encode()).hexdigest()[:16]  # one run a folder
    wandb.init(project="emu_jax", name=workdir.name, id=run_id, resume="allow")
    return wandb


class Progress:
    """The progress line: step of total, pictures a second, loss, time left.

    A bar on a terminal; a plain line every ``seconds`` elsewhere. Speed is that of the time since
    the last line, so compiling the first step does not haunt the estimate. ``batch_size`` counts
    the pictures of all hosts.
    """

    def __init__(
        self,
        total: int,
        batch_size: int,
        *,
        start: int = 0,
        seconds: float = 10.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._stream = stream or sys.stderr
        self._writes = jax.process_index() == 0
        self._bar = None
        if self._writes and self._stream.isatty():
            self._bar = tqdm(
                total=total, initial=start, file=self._stream, bar_format="{l_bar}{bar}|{desc}"
            )
        self._total, self._batch_size, self._clock = total, batch_size, clock
        self._every = 0.5 if self._bar is not None else seconds
        self._step, self._time = start, clock()
        self._first = True

    def update(self, step: int, loss: SupportsFloat) -> None:
        """Say that ``step`` is done. ``loss`` may be on the device: it is read only to be shown."""
        now = self._clock()
        due = self._first or step >= self._total or now - self._time >= self._every
        if not self._writes or not due or step <= self._step:
            return
        speed = (step - self._step) / max(now - self._time, 1e-9)
        text = f"loss {float(loss):.4g}"
        if not self._first:
            left = (self._total - step) / speed
            text = f"{speed * self._batch_size:.4g} img/s, {text}, {_clock_face(left)} left"
        self._say(step, text)
        self._step, self._time, self._first = step, now, False

    def message(self, text: str) -> None:
        """Print a line of its own, above the bar where there is one."""
        if self._writes:
            tqdm.write(text, file=self._stream)
            self._stream.flush()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _say(self, step: int, text: str) -> None:
        if self._bar is None:
            print(f"step {step}/{self._total}: {text}", file=self._stream, flush=True)
        else:
            self._bar.set_description_str(f" {step}/{self._total} {text}", refresh=False)
            self._bar.n = step
            self._bar.refresh()


def _clock_face(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
