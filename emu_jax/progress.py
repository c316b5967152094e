"""Progress of long work, on stderr: a bar on a terminal, elsewhere a plain line now and then.

A log file gets no carriage returns and, from work that takes a few seconds, no line at all.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any, Self, TextIO, TypeVar

from tqdm import tqdm

T = TypeVar("T")

SECONDS = 10.0  # between two lines
_BAR = 0.5  # between two changes of a bar's text


class Progress:
    """``label`` done of ``total``, speed, time left.

    One step is ``each`` of ``unit`` in the speed. The speed is measured since the previous line and
    never includes the first step, which may have compiled something. ``eager``: the first and the
    last step are always printed.
    """

    def __init__(
        self,
        label: str,
        total: float,
        *,
        unit: str,
        each: float = 1,
        start: float = 0,
        eager: bool = False,
        visible: bool = True,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._label, self._total, self._unit, self._each = label, total, unit, each
        self._visible, self._stream = visible, stream or sys.stderr
        self._clock, self._time, self._done = clock, clock(), start
        self._first, self._eager, self._bar = True, eager, None
        if visible and self._stream.isatty():
            self._eager = True
            bar = "{percentage:3.0f}%|{bar:20}| {desc}"  # once: tqdm's own bar repeats the text
            text = f"{label} {_number(start)}/{_number(total)}"
            self._bar = tqdm(
                total=total, initial=start, desc=text, file=self._stream, bar_format=bar
            )

    def update(self, done: float, text: str = "") -> None:
        """Reports that ``done`` is reached; ``text`` is printed along."""
        if not self._visible or done <= self._done:
            return
        now = self._clock()
        since = now - self._time
        due = since >= (SECONDS if self._bar is None else _BAR)
        if (due and not self._first) or (self._eager and (self._first or done >= self._total)):
            self._print(done, text, (done - self._done) / max(since, 1e-9))
        elif not self._first:
            return
        self._done, self._time, self._first = done, now, False

    def message(self, text: str) -> None:
        """A line of its own, above a bar."""
        if self._visible:
            note(text, self._stream)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _print(self, done: float, text: str, speed: float) -> None:
        parts = [text] if text else []
        if not self._first:
            parts.insert(0, f"{speed * self._each:.4g} {self._unit}/s")
            parts.append(f"{duration((self._total - done) / speed)} left")
        where = f"{self._label} {_number(done)}/{_number(self._total)}"
        line = f"{where}: {', '.join(parts)}" if parts else where
        if self._bar is None:
            print(line, file=self._stream, flush=True)
        else:
            self._bar.set_description_str(line, refresh=False)
            self._bar.n = done
            self._bar.refresh()


def watch(
    items: Iterable[T],
    label: str,
    total: int,
    *,
    unit: str = "images",
    start: int = 0,
    compiles: str = "",
) -> Iterator[T]:
    """``items``, with the progress of whoever reads them; ``compiles``: what the first of them
    compiles.
    """
    items = iter(items)
    if compiles and total > start:
        with compiling(compiles):
            first = [*islice(items, 1)]
        items = chain(first, items)
    with Progress(label, total, unit=unit, start=start) as progress:
        for done, item in enumerate(items, start + 1):
            yield item
            progress.update(done)


def note(text: str, stream: TextIO | None = None) -> None:
    """A line on stderr, above a bar if there is one."""
    tqdm.write(text, file=stream or sys.stderr)
    (stream or sys.stderr).flush()


@contextmanager
def compiling(what: str, say: Callable[[str], Any] = note) -> Iterator[None]:
    """Says that ``what`` is compiled, and afterwards how long that took."""
    say(f"compiling {what}")
    start = time.monotonic()
    yield
    say(f"compiled {what} in {duration(time.monotonic() - start)}")


def duration(seconds: float) -> str:
    """Such as 0:07, 14:39 or 2:00:00."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _number(count: float) -> str:
    return f"{count:.0f}"
