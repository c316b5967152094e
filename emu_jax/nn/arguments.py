"""The values of a config against the types that a constructor declares."""

import inspect
import reprlib
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Union, get_args, get_origin

from emu_jax.errors import UserError

_NAMES = {
    **{int: "a whole number", float: "a number", bool: "true or false", str: "a string"},
    **{type(None): "null"},
}


def check_arguments(function: Callable, arguments: Mapping[str, Any], where: str) -> None:
    """Raises UserError where an argument is not of the type that ``function`` declares.

    Numbers, strings, truth values and sequences of them are checked; other types (a schedule, a
    function) do not come from a config. ``where``: the section, for messages.
    """
    # Of a class its constructor: a metaclass, as nnx has one, hides its signature.
    declared = function.__init__ if isinstance(function, type) else function
    parameters = inspect.signature(declared).parameters
    for name, value in arguments.items():
        wanted = parameters[name].annotation if name in parameters else Any
        if not _fits(value, wanted):
            raise UserError(
                f"{where}.{name} is {reprlib.repr(value)}; it must be {_described(wanted)}."
            )


def _fits(value: Any, wanted: Any) -> bool:
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Sequence:
        return isinstance(value, list | tuple) and all(_fits(item, inner[0]) for item in value)
    if origin is tuple and Ellipsis not in inner:
        pair = isinstance(value, list | tuple) and len(value) == len(inner)
        return pair and all(map(_fits, value, inner))
    if wanted not in _NAMES:
        return True
    if isinstance(value, bool):
        return wanted is bool
    return isinstance(value, (int, float) if wanted is float else wanted)


def _described(wanted: Any) -> str:
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        return " or ".join(map(_described, inner))
    if origin is Sequence:
        return f"a list, each entry {_described(inner[0])}"
    if origin is tuple:
        return f"{len(inner)} entries ({', '.join(map(_described, inner))})"
    return _NAMES.get(wanted, str(wanted))
