"""The checker of array annotations in tests: shapes and dtypes of arguments and results.

``tests/conftest.py`` applies it to every function of the package through jaxtyping's import hook.
Annotations without arrays are left to the static type checker: some tests pass wrong values there
on purpose, as a user's config may.
"""

from collections.abc import Callable
from typing import Any, get_args

from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, PyTree

_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float


def check(function: Callable) -> Callable:
    function.__annotations__ = {
        name: hint for name, hint in function.__annotations__.items() if _has_arrays(hint)
    }
    return _beartype(function)


def _has_arrays(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, AbstractArray | PyTree):
        return True
    parts = hint if isinstance(hint, list) else get_args(hint)
    return any(map(_has_arrays, parts))
