"""Runs commands in this process, with models that stay open, and says what happens meanwhile."""

import queue
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emu_jax.app.asking import Command
from emu_jax.assembly.cascade import Cascade, open_generator
from emu_jax.assembly.generator import Generator
from emu_jax.assembly.hosting import Host
from emu_jax.assembly.previews import Image, Previews

Main = Callable[..., int | None]


@dataclass(frozen=True)
class Progress:
    """What the images are going to be after ``done`` of ``steps`` sampling steps."""

    done: int
    steps: int
    images: Sequence[Image]


class Stopped(Exception):
    """Nobody waits for the images any longer."""


class Studio:
    """``mains`` are the commands by name. The ``kept`` models that were used last stay open. One
    command runs at a time.
    """

    def __init__(self, mains: Mapping[str, Main], kept: int = 3):
        self._mains, self._kept = mains, kept
        self._models: OrderedDict[tuple[Any, ...], Generator | Cascade] = OrderedDict()
        self._lock = threading.Lock()

    def run(self, command: Command, folder: Path) -> Iterator[Progress]:
        """Runs a command, which writes into ``folder``. An error of the command is raised; if the
        caller stops early, the command ends at its next preview.
        """
        events: queue.SimpleQueue[Progress | BaseException | None] = queue.SimpleQueue()
        stopped = threading.Event()

        def show(done: int, steps: int, images: Sequence[Image]) -> None:
            if stopped.is_set():
                raise Stopped
            events.put(Progress(done, steps, images))

        def work() -> None:
            try:
                with self._lock:
                    self._run(command, folder, show)
                events.put(None)
            except BaseException as error:
                events.put(error)

        threading.Thread(target=work, daemon=True).start()
        try:
            while (event := events.get()) is not None:
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            stopped.set()

    def warm(self, command: Command) -> None:
        """Runs a command whose images nobody wants, so that the next one finds its programs."""
        with tempfile.TemporaryDirectory() as folder:
            for _ in self.run(command, Path(folder)):
                pass

    def _run(self, command: Command, folder: Path, show: Callable[..., None]) -> None:
        host = Host(self._open, Previews(show))
        self._mains[command.name]([f"--out={folder}", *command.arguments], host=host)

    def _open(self, name: str, batch_size: int = 16, **changes: Any) -> Generator | Cascade:
        given = {key: value for key, value in changes.items() if value not in (None, "")}
        known = (name, batch_size, *sorted(given.items()))
        model = self._models.pop(known, None)
        if model is None:
            while len(self._models) >= self._kept:
                self._models.popitem(last=False)  # before the new one takes its memory
            model = open_generator(name, batch_size, **given)
        self._models[known] = model
        return model
