"""Files that others wrote: JSON with bounds, and values that may be anything.

A damaged or hostile file ends in one sentence that names the file and the entry, never in a
traceback: :func:`read_json` for its form, :func:`entry` for the type of one entry, and
:func:`described_by` for whatever its values break where a model is built from them.
"""

import contextlib
import functools
import inspect
import json
import re
import reprlib
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
from etils import epath

from emu_jax.errors import UserError

# The largest tokenizer of a public text encoder has 35 MB and 7 levels, a config 4 levels.
MOST_BYTES = 100_000_000
MOST_LEVELS = 64
P = ParamSpec("P")
R = TypeVar("R")
# No size or count of a network is as large.
_MOST = 2**31
_PACKAGE = Path(__file__).parents[1]
# What wrong values raise; anything else (a lack of memory, say) is not their fault.
_BROKEN = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError),
    *(RecursionError, TypeError, ValueError),
)


def read_json(file: Path | epath.Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      UserError: the file is missing, unreadable or too large, or :func:`parse_json` refuses it.
    """
    if not file.is_file() or ("://" not in str(file) and not Path(file).is_file()):
        raise UserError(f"{file.parent} has no {file.name}.")
    try:
        with file.open("rb") as stream:
            data = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.") from error
    return parse_json(data, file)


def parse_json(data: bytes, source: Any) -> dict[str, Any]:
    """The object in ``data``, which comes from ``source`` (for messages).

    Raises:
      UserError: no JSON object in UTF-8, more than ``MOST_BYTES`` or ``MOST_LEVELS`` levels, a
        name twice in one object, or a string that is no Unicode text.
    """
    if len(data) > MOST_BYTES:
        raise UserError(f"{source} has more than {MOST_BYTES // 10**6} MB; refused.")
    too_deep = UserError(f"{source} is nested more than {MOST_LEVELS} levels deep; refused.")
    try:
        found = json.loads(data.decode(), object_pairs_hook=_object)
    except RecursionError:
        raise too_deep from None
    except UnicodeDecodeError as error:
        raise UserError(f"{source} is not UTF-8 at byte {error.start}; fetch it again.") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        raise UserError(f"{source} is not JSON at {place}: {error.msg}; fetch it again.") from None
    except ValueError as error:  # a name twice, a number of thousands of digits
        raise UserError(f"{source} is not usable JSON: {str(error).rstrip('.')}.") from None
    if _levels(found) > MOST_LEVELS:
        raise too_deep
    if not isinstance(found, dict):
        raise UserError(f"{source} holds {_short(found)}, not a JSON object; fetch it again.")
    # Since the text is UTF-8, only an escape can make a lone surrogate.
    if re.search(rb"\\u[dD][89a-fA-F]", data) and not _is_text(found):
        raise UserError(f"{source} has a string with a lone surrogate, which is not text; refused.")
    return found


def entry(record: Mapping[str, Any], name: str, kind: type | tuple[type, ...], source: Any) -> Any:
    """``record[name]``, which must be of type ``kind``; ``source``: the file, for messages."""
    if name not in record:
        raise UserError(f"{source} has no entry {name!r}.")
    value = record[name]
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        names = " or ".join(_KINDS.get(one, one.__name__) for one in kinds)
        raise UserError(f"{source}: the entry {name!r} is {_short(value)}; it must be {names}.")
    return value


def like(config: Mapping[str, Any], defaults: Mapping[str, Any], source: Any) -> dict[str, Any]:
    """``config`` over ``defaults``. A value has the type of its default. A whole number is a size
    or a count, 1 or more, or, where its name says so, an id, 0 or more.

    Raises:
      UserError: one is not; ``source`` is the file, for messages.
    """
    for name in config.keys() & defaults.keys():
        kind = type(defaults[name])
        value = entry(config, name, (int, float) if kind is float else kind, source)
        least = 0 if name.endswith("_id") else 1
        if kind is int and not least <= value < _MOST:
            raise UserError(
                f"{source}: the entry {name!r} is {_short(value)}; it must be {least} or more."
            )
    return {**defaults, **config}


def require_fit(found: Mapping[str, Any], wanted: Mapping[str, Any], source: Any) -> None:
    """Raises UserError unless ``found`` has every parameter of ``wanted`` in its shape: an array of
    another shape may broadcast, and a wrong model would then run without an error."""
    for path, shape in wanted.items():
        if path not in found:
            raise UserError(f"{source} lacks the parameter {path} of the model that it describes.")
        here, there = tuple(shape.shape), tuple(np.shape(found[path]))
        if here != there:
            raise UserError(
                f"{source}: the parameter {path} is {list(there)}, and {list(here)} in the model "
                "that it describes."
            )


_KINDS = {
    **{dict: "an object", list: "a list", str: "a string", int: "a whole number"},
    **{float: "a number", bool: "true or false", type(None): "null"},
}


@contextlib.contextmanager
def described_by(source: Any) -> Iterator[None]:
    """While a model is built from what the files at ``source`` say: a failure is their fault, said
    in one sentence with the place in this package that failed."""
    try:
        yield
    except UserError as error:
        if str(source) in str(error):
            raise
        raise UserError(f"{source}: {error}") from error
    except _BROKEN as error:
        line = (str(error).strip().splitlines() or [""])[0][:200]
        # As ConfigDict and dict say it.
        named = re.fullmatch(r"\W*(\w+)\W*", line)
        reason = f"{type(error).__name__}: {line}"
        if named and isinstance(error, KeyError | AttributeError):
            reason = f"it has no {named[1]!r}"
        raise UserError(
            f"{source} does not describe a model that can be built: {reason.rstrip('.')} "
            f"({_place(error)})."
        ) from error


def blaming(parameter: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A function that runs under :func:`described_by` the argument called ``parameter``."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            given = inspect.signature(function).bind(*args, **kwargs)
            given.apply_defaults()
            with described_by(given.arguments[parameter]):
                return function(*args, **kwargs)

        return run

    return decorate


def _place(error: BaseException) -> str:
    """File and line of this package where an error passed last."""
    frames = [
        f"{path.relative_to(_PACKAGE.parent)}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if (path := Path(frame.filename)).is_relative_to(_PACKAGE) and path != Path(__file__)
    ]
    return frames[-1] if frames else type(error).__name__


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"it names {_short(twice)} twice")
    return found


def _levels(value: Any) -> int:
    """How deep objects and lists are nested; counts without recursion."""
    level, count = [value], 0
    while level and count <= MOST_LEVELS:
        containers = [x for x in level if isinstance(x, dict | list)]
        level = [y for x in containers for y in (x.values() if isinstance(x, dict) else x)]
        count += bool(containers)
    return count


def _is_text(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_text(name) and _is_text(item) for name, item in value.items())
    if isinstance(value, list):
        return all(map(_is_text, value))
    return not isinstance(value, str) or value.isascii() or not re.search("[\ud800-\udfff]", value)


def _short(value: Any) -> str:
    return reprlib.repr(value)
