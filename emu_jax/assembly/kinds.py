"""Sections by ``kind``, one for every entry of a registry.

What a kind of the package takes is written down in :mod:`emu_jax.assembly.sections`, with ranges
and a line for every key. A further entry needs no section: its keys are the arguments of what it
builds, with their types and defaults. Only then is that imported.
"""

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import make_dataclass
from functools import cache
from typing import Any, Literal, get_type_hints

from emu_jax.assembly.schema import Section, key, kind_of, required
from emu_jax.registry import loaded

# Not keys: a class without a constructor has *args and **kwargs, those of object.
_MANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Kinds(Mapping[str, type[Section]]):
    """The sections of a ``registry``'s entries, those of ``written`` among them.

    ``given``: arguments of what an entry builds that do not come from its section.
    """

    def __init__(
        self,
        registry: Mapping[str, Any],
        *written: type[Section],
        given: Collection[str] = (),
    ):
        self._registry, self._given = registry, frozenset(given)
        self._written = {kind_of(section): section for section in written}

    def __getitem__(self, name: str) -> type[Section]:
        if name in self._written:
            return self._written[name]
        entry = self._registry[name]
        return _derived(name, loaded(getattr(entry, "build", entry)), self._given)

    def __iter__(self) -> Iterator[str]:
        return iter(self._registry)

    def __len__(self) -> int:
        return len(self._registry)


@cache
def _derived(name: str, build: Callable[..., Any], given: frozenset[str]) -> type[Section]:
    """A section whose keys are the arguments of ``build``."""
    function = build.__init__ if isinstance(build, type) else build
    types = get_type_hints(function)
    fields: list[Any] = [("kind", Literal[name], key(name, f"Selects {build.__name__}."))]
    for argument, parameter in inspect.signature(function).parameters.items():
        if argument not in ("self", *given) and parameter.kind not in _MANY:
            doc = f"Argument of {build.__name__}."
            default = parameter.default
            field = required(doc) if default is parameter.empty else key(default, doc)
            plain = isinstance(default, bool | int | float | tuple)
            fields.append((argument, types.get(argument, type(default) if plain else str), field))
    made = make_dataclass(build.__name__, fields, bases=(Section,), frozen=True, kw_only=True)
    made.__doc__ = f":class:`{build.__module__}.{build.__qualname__}`."
    return made
