"""The checker of array annotations in tests: shapes and dtypes of arguments and results.

``tests/conftest.py`` applies it to every function of ``MODULES`` through jaxtyping's import hook. A
NumPy array may stand for a JAX array. Annotations without arrays are left to the static type
checker: some tests pass wrong values there on purpose, as a user's config may.
"""

from collections.abc import Callable
from functools import reduce
from operator import or_
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import jax
import numpy as np
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, PyTree

# Every room whose annotations name shapes.
ROOMS = (
    *("nn", "process", "parallel", "checkpoint", "text", "data"),
    *("tasks", "training", "evaluation", "assembly", "people", "curation", "app"),
)

# Their modules that annotate arrays. A checked call takes some fifty microseconds.
MODULES = [
    f"emu_jax.{room}.{file.stem}"
    for room in ROOMS
    for file in sorted((Path(__file__).parents[1] / "emu_jax" / room).glob("*.py"))
    if "from jaxtyping import" in file.read_text()
]

_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float


def check(function: Callable) -> Callable:
    function.__annotations__ = {
        name: _numpy_too(hint)
        for name, hint in function.__annotations__.items()
        if _has_arrays(hint)
    }
    return _beartype(function)


def _is_array(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, AbstractArray)


def _has_arrays(hint: Any) -> bool:
    if _is_array(hint) or (isinstance(hint, type) and issubclass(hint, PyTree)):
        return True
    parts = hint if isinstance(hint, list) else get_args(hint)
    return any(map(_has_arrays, parts))


def _numpy_too(hint: Any) -> Any:
    """``Float[Array, "b"]`` as ``Float[Array | np.ndarray, "b"]``, in unions and tuples too."""
    if _is_array(hint) and hint.array_type is jax.Array:
        return hint.dtype[jax.Array | np.ndarray, hint.dim_str]
    parts = tuple(map(_numpy_too, get_args(hint)))
    if get_origin(hint) in (Union, UnionType):
        return reduce(or_, parts)
    return tuple[parts] if get_origin(hint) is tuple and parts else hint
