"""Logs of a run: metrics as JSON lines and in TensorBoard, and images.

``metrics.jsonl`` in the run's folder is the file that reports read. Every call appends one line
``{"step": n, "time": seconds since the epoch, name: value, ...}``. Numbers have full precision;
``nan`` and infinities are strings, because JSON has no such numbers (``float()`` parses them). A
run resumed at step ``n`` first drops every line after ``n`` and an incomplete last line, so the
file is always that of an uninterrupted run. The trainer therefore logs all metrics of a step
*before* it saves the checkpoint of that step, and calls :meth:`Trackers.flush` in between.

Object stores (``gs://...``) cannot append. There the lines are kept in memory and the whole file is
rewritten on every flush, and otherwise at most once in :data:`REWRITE_SECONDS`. A run of a million
steps, logged every hundred, has a few megabytes. TensorBoard's files are written in the same way.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, SupportsFloat

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image
from tensorboardX import SummaryWriter

from emu_jax.errors import UserError

METRICS_FILE = "metrics.jsonl"
REWRITE_SECONDS = 60.0

Images = UInt8[np.ndarray, "n h w 3"]
Draw = Callable[[np.ndarray, Sequence[str] | None], Image.Image]


def tile(images: Images, captions: Sequence[str] | None = None) -> Image.Image:
    """The images in a near-square grid, without captions."""
    del captions
    n, h, w, _ = images.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    cells = np.full((rows * columns, h, w, 3), 255, np.uint8)
    cells[:n] = images
    sheet = cells.reshape(rows, columns, h, w, 3).swapaxes(1, 2)
    return Image.fromarray(sheet.reshape(rows * h, columns * w, 3))


class Trackers:
    """Writes a run's metrics and images; only the first process writes.

    ``restored_step`` is the step from which the run is resumed. None starts a new run and deletes
    what an earlier run left in ``metrics.jsonl``. ``draw(images, captions)`` combines several
    images into one; the command line passes ``evaluation.grids.grid``.
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
        """Logs named numbers of a step; arrays of one element are fetched from the device."""
        if not self._writes:
            return
        numbers = {name: float(value) for name, value in values.items()}
        self._lines.write(step, numbers)
        for name, number in numbers.items():
            self._board.add_scalar(name, number, step)
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)

    def images(
        self, step: int, images: Mapping[str, Images], captions: Sequence[str] | None = None
    ) -> None:
        """Writes each named batch of images as one grid, ``images/<name>_<step>.png``; in
        TensorBoard the captions are a text beside it.
        """
        if not self._writes:
            return
        folder = self._workdir / "images"
        folder.mkdir(parents=True, exist_ok=True)
        for name, batch in images.items():
            grid = self._draw(np.asarray(batch), captions)
            with (folder / f"{name.replace('/', '_')}_{step:08d}.png").open("wb") as file:
                grid.save(file, "PNG")
            self._board.add_image(name, np.asarray(grid), step, dataformats="HWC")
            if captions:
                # Indented text is not interpreted as Markdown.
                lines = [f"    {i}. {text}" for i, text in enumerate(captions, 1)]
                self._board.add_text(f"{name}/prompts", "\n".join(lines), step)
            if self._wandb is not None:
                self._wandb.log({name: self._wandb.Image(grid)}, step=step)

    def flush(self) -> None:
        """Makes everything logged so far durable; call it before a checkpoint is saved."""
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
    """``metrics.jsonl``: appended to if the file system can append, else rewritten as a whole."""

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
            self._file.flush()  # to the operating system: a killed process does not lose it
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
    """The file's lines up to a step. Reading ends at a line that is damaged, or that a killed run
    left incomplete.
    """
    if not path.exists():
        return
    for data in path.read_bytes().splitlines(keepends=True):
        try:
            line = data.decode()
            step = json.loads(line)["step"] if line.endswith("\n") else None
        except (ValueError, KeyError, TypeError):  # not UTF-8, not JSON, or without a step
            return
        if not isinstance(step, int):
            return
        if step <= last_step:
            yield line


def _write_whole(path: epath.Path, lines: Sequence[str]) -> None:
    """Writes the file atomically: an object store always does, a file system by renaming."""
    if "://" in os.fspath(path):
        path.write_text("".join(lines))
        return
    temporary = path.with_name(path.name + ".new")
    with open(temporary, "w", encoding="utf-8") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _start_wandb(workdir: epath.Path) -> Any:
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            "train.wandb is True, but wandb is not installed; run pip install wandb, or set "
            "train.wandb=False."
        ) from error
    run_id = hashlib.sha256(os.fspath(workdir).encode()).hexdigest()[:16]  # one run per folder
    wandb.init(project="emu_jax", name=workdir.name, id=run_id, resume="allow")
    return wandb
