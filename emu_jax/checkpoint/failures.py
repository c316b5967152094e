"""What goes wrong with a disk, in words, and orbax's own noise about it kept away.

Orbax logs each failure with its tracebacks, and abandons coroutines that print more of them when
they are collected. Here a failure is one sentence, raised; importing this module silences the rest.
"""

import json
import logging
import re
import sys
import traceback
import warnings
from collections.abc import Iterator


def _not_orbax(record: logging.LogRecord) -> bool:
    # asyncio logs a task that failed alone from a file of its own: its message or its traceback
    # says whose it was, if only by the temporary folder that orbax was writing to.
    raised = record.exc_info[1] if record.exc_info else None
    text = f"{record.pathname} {record.getMessage()} "
    text += "".join(traceback.format_exception(raised)) if raised else ""
    return "orbax" not in text and "tensorstore" not in text


def _silence_orbax() -> None:
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_not_orbax)
    report = sys.unraisablehook

    def report_others(unraisable) -> None:
        text = "".join(traceback.format_exception(unraisable.exc_value))
        if "/orbax/" not in text and "Event loop is closed" not in text:
            report(unraisable)

    sys.unraisablehook = report_others
    # What was still to be written when the first file failed is never begun.
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
    """What a user can do about an error in writing; None for what no user can mend."""
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
    """The error in a few words, to be put in brackets."""
    if isinstance(error, json.JSONDecodeError):
        return "a metadata file is cut short"
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if len(line) <= 100 else line[:97] + "..."
