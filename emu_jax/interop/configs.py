"""Helpers for the translation of public config files.

A public config leaves out settings that equal the default of its class, and old files lack settings
that were added later. A translation names the settings that it reads. All others must have their
default value: a setting that would change the mathematics is never ignored.
"""

from collections.abc import Collection, Mapping
from typing import Any

from emu_jax.errors import UserError


def complete(
    config: Mapping[str, Any], defaults: Mapping[str, Any], read: Collection[str], kind: str
) -> dict[str, Any]:
    """``config`` with its class's ``defaults`` filled in. Tuples become lists, as in JSON.

    Raises:
      UserError: a setting outside ``read`` that is unknown or not the default, by name.
    """
    given = {key: value for key, value in config.items() if not key.startswith("_")}
    for key, value in given.items():
        if key not in defaults:
            raise UserError(f"This {kind} has a setting {key!r}, which is not supported.")
        if not _alike(value, defaults[key]):
            raise UserError(
                f"This {kind} has {key} = {value!r}, of another type than the default, "
                f"{defaults[key]!r}."
            )
        if key not in read and plain(value) != plain(defaults[key]):
            raise UserError(
                f"This {kind} has {key} = {value!r}, which is not supported; supported: "
                f"{defaults[key]!r}."
            )
    return {key: plain(value) for key, value in {**defaults, **given}.items()}


def _alike(value: Any, default: Any) -> bool:
    """Whether a setting has the type of its default. A list may give one value for each stage, and
    null stands for a default."""
    if isinstance(value, list | tuple):
        inner = default[0] if isinstance(default, list) and default else default
        return all(_alike(item, None if inner == [] else inner) for item in value)
    if value is None or default is None:
        return value is None or isinstance(value, bool | int | float | str)
    if isinstance(default, list):
        return False
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    return isinstance(value, str if isinstance(default, str) else int | float)


def plain(value: Any) -> Any:
    """Tuples as lists, at any depth."""
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def per_stage(value: Any, stages: int) -> list[Any]:
    """One value for each stage; a single value is repeated."""
    return list(value) if isinstance(value, list | tuple) else [value] * stages


def joined(values: list[Any]) -> Any:
    """The inverse of :func:`per_stage`: equal values become one."""
    return values[0] if all(value == values[0] for value in values) else values


def square(config: Mapping[str, Any], default: int = 64) -> int:
    """``sample_size``: the side of the square images or feature maps of a model.

    Raises:
      UserError: not one number, e.g. a height and a width.
    """
    size = config.get("sample_size") or default
    if type(size) is not int or size < 1:
        raise UserError(
            f"sample_size is {size!r}; only square images are supported: use one number."
        )
    return size
