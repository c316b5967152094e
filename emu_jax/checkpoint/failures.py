"""Messages for failures of a disk. Importing this module silences orbax's own output about them.

Orbax logs each failure with its tracebacks, and leaves coroutines behind that print more of them
when they are collected. In this package a failure is one sentence, which is raised.
"""

import json
import logging
import re
import sys
import traceback
import warnings
from collections.abc import Iterator


def _not_orbax(record: logging.LogRecord) -> bool:
    # asyncio logs a failed task from a file of its own. The message or the traceback shows that the
    # task is orbax's, at least by the temporary folder that orbax was writing to.
    raised = record.exc_info[1] if record.exc_info else None
    text = f"{record.pathname} {record.getMessage()} "
    text += "".join(traceback.format_exception(raised)) if raised else ""
    return "orbax" not in text and "tensorstore" not in text


def _silence_orbax() -> None:
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_not_orbax)
    report = sys.unraisablehook

    def report_others(unraisable) -> None:
        # Not by formatting it: that parses a line of source for every frame, which takes minutes
        # where a deep recursion failed.
        frames = traceback.walk_tb(unraisable.exc_traceback)
        of_orbax = any("/orbax/" in frame.f_code.co_filename for frame, _ in frames)
        if not of_orbax and "Event loop is closed" not in str(unraisable.exc_value):
            report(unraisable)

    sys.unraisablehook = report_others
    # After the first file has failed, the writes of the other files are never started.
    never = r"coroutine 'async_serialize.*' was never awaited"
    warnings.filterwarnings("ignore", never, RuntimeWarning)


_silence_orbax()

_MENDS = {
    r"No space left|Disk quota|RESOURCE_EXHAUSTED": "the disk is full; free some space and resume",
    r"File too large": "a file there may not grow so large; raise the limit (ulimit -f) and resume",
    r"Permission denied|Read-only file|PERMISSION_DENIED|Operation not permitted": (
        "it may not be written to; change its permissions or the workdir"
    ),
    r"No such file|NOT_FOUND|Input/output error|Not a directory|File exists": (
        "the folder vanished or is no folder; check the disk and the path"
    ),
}


def mend(error: BaseException) -> str | None:
    """How a user can fix an error in writing; None if a user cannot."""
    for link in _chain(error):
        for pattern, words in _MENDS.items():
            if re.search(pattern, str(link)):
                return words
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def first_line(error: BaseException) -> str:
    """The first line of an error, shortened, for use in brackets."""
    if isinstance(error, json.JSONDecodeError):
        return "a metadata file is cut short"
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if len(line) <= 100 else line[:97] + "..."
