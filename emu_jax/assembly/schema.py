"""Typed config sections: one dataclass is the schema of one section.

A field of a :class:`Section` gives a key's name, type and default, and by :func:`key` its
documentation and its range; a ``Literal`` is an enumeration. Three functions read them:

- :func:`section` makes the ConfigDict of a section with its defaults, for config files;
- :func:`emu_jax.assembly.checking.typed` checks a section and returns it as its dataclass;
- :func:`completed` fills the missing keys of a stored section and checks nothing.

A field's type is a number, a bool, a string, a tuple, a ``Literal``, another section, a ``dict`` of
freely named entries, or a union of these. The alternatives of a union of sections each have a field
``kind``, which selects one of them.

Names of a registry (:mod:`emu_jax.registry`) are not repeated: ``Annotated[str, SAMPLERS]`` is one
of its names (``Annotated[str, SAMPLERS, ""]``: or empty), and ``Annotated[Section, kinds]`` is a
section of :class:`emu_jax.assembly.kinds.Kinds` by ``kind``.

Neither this module nor the sections import JAX: a typing mistake in a command is answered at once.
"""

import difflib
import math
import types
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference

from emu_jax.errors import UserError

MOST = 2**31 - 1  # the largest whole number of a counter on a device
NO = object()  # "of none of these types", where None is a value


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of a config. Subclasses are frozen dataclasses whose fields are its keys."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """(dotted key, what to use) for values that do not fit each other."""
        yield from ()


class Ordered(ConfigDict):
    """A ConfigDict that keeps its keys in the order in which they are given."""

    def __init__(self, *given: Any, **options: Any):
        super().__init__(*given, **{**options, "sort_keys": False})


@dataclass(frozen=True)
class Key:
    """What a field of a section has beside its name, type and default.

    Bounds hold for a number and for every number of a tuple. ``filled``: a string, tuple or dict
    must not be empty. ``regex``: a string is a regular expression. ``path``: it is a path, local or
    in a bucket. ``ordered``: a dict keeps the order of its entries and is an :class:`Ordered`.
    """

    doc: str
    at_least: float = -math.inf
    above: float = -math.inf
    at_most: float = math.inf
    below: float = math.inf
    filled: bool = False
    regex: bool = False
    path: bool = False
    ordered: bool = False


def key(default: Any, doc: str, **checks: Any) -> Any:
    """A field with a default. A class as the default (a section, ``dict``): all of its defaults."""
    metadata = {"key": Key(doc, **checks)}
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def required(doc: str, **checks: Any) -> Any:
    """A field without a default."""
    return field(metadata={"key": Key(doc, **checks)})


@cache
def keys(kind: type[Section]) -> Mapping[str, tuple[Any, Key, Field]]:
    """(type, :class:`Key`, field) of a section's keys by name."""
    hints = get_type_hints(kind, include_extras=True)
    return {f.name: (hints[f.name], f.metadata["key"], f) for f in fields(kind)}


def section(kind: type[Section], **values: Any) -> ConfigDict:
    """The ConfigDict of a section: ``values``, and the defaults of its other keys.

    Required keys may be set later.

    Raises:
      UserError: the section has no key of a given name.
    """
    for name in values:
        if name not in keys(kind):
            raise UserError(f"{kind.__name__} has no key {name}; {near(name, keys(kind))}")
    return completed(kind, values)


def completed(kind: type[Section], given: Mapping[str, Any] | ConfigDict) -> ConfigDict:
    """``given`` as a ConfigDict with the defaults of the keys that it lacks.

    Nothing is checked: unknown keys and values of any type are kept.
    """
    made = ConfigDict()
    for name, (annotation, about, f) in keys(kind).items():
        if name in given:
            value = given[name]
        elif f.default is not MISSING:
            value = f.default
        elif f.default_factory is not MISSING or (dicts(annotation) and not about.ordered):
            value = {}
        else:
            continue
        if is_mapping(value) and (sections(annotation) or dicts(annotation)):
            made[name] = _mapping(annotation, about, value)
        elif value is not None or not sections(annotation):  # None: there is no such section
            made[name] = _overridable(annotation, value)
    for name in given:
        if name not in keys(kind):
            made[name] = given[name]
    return made


def _overridable(annotation: Any, value: Any) -> Any:
    """A plain value such that an override on the command line can set all values of its type."""
    found = cast(annotation, value)
    if found is NO:
        return value
    some = [option for option in options(annotation) if option is not types.NoneType]
    if len(some) > 1:
        return FieldReference(found, field_type=object)
    if len(options(annotation)) > 1:
        return FieldReference(found, field_type=get_origin(some[0]) or some[0])
    return found


def _mapping(annotation: Any, about: Key, given: Any) -> ConfigDict:
    """A section, or a dict of freely named entries, completed."""
    if sections(annotation):
        kind = alternative(annotation, given)
        return completed(kind, given) if kind else ConfigDict(given)
    ordered = about.ordered and not is_sorted(given)
    made, entry = (Ordered if ordered else ConfigDict)(), entry_of(annotation, given)
    for name in given:
        value = given[name]
        kind = alternative(entry, value, name) if is_mapping(value) else None
        if kind:
            named = {"kind": name} if "kind" in keys(kind) else {}
            made[name] = completed(kind, {**named, **{key: value[key] for key in value}})
        else:
            made[name] = _mapping(entry, about, value) if is_mapping(value) else value
    return made


# Types -------------------------------------------------------------------------------------------


def is_mapping(value: Any) -> bool:
    """Whether a value is a section or a dict of entries."""
    return isinstance(value, Mapping | ConfigDict)


def is_sorted(value: Any) -> bool:
    """Whether a ConfigDict has lost the order in which its keys were given."""
    return isinstance(value, ConfigDict) and not isinstance(value, Ordered)


def options(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union; of another type itself alone."""
    union = get_origin(annotation) in (Union, types.UnionType)
    return get_args(annotation) if union else (annotation,)


def sections(annotation: Any) -> Collection[type[Section]]:
    """The alternatives that are sections; those of a registry are made as they are iterated."""
    if open_kinds := _open_kinds(annotation):
        return open_kinds.values()
    return [o for o in options(annotation) if isinstance(o, type) and issubclass(o, Section)]


def _open_kinds(annotation: Any) -> Mapping[str, type[Section]] | None:
    """The sections by kind of ``Annotated[Section, kinds]``."""
    kind, *more = get_args(annotation) if get_origin(annotation) is Annotated else (None,)
    return more[0] if kind is Section else None


def choices(option: Any) -> tuple[Any, ...]:
    """The values of an enumeration: a ``Literal``, or the names of a registry; else none."""
    if get_origin(option) is Literal:
        return get_args(option)
    if get_origin(option) is Annotated:
        _, registry, *others = get_args(option)
        return (*others, *registry)
    return ()


def dicts(annotation: Any) -> list[Any]:
    """The alternatives that are dicts of freely named entries."""
    return [option for option in options(annotation) if get_origin(option) is dict]


def entry_of(annotation: Any, given: Any) -> Any:
    """The type of a dict's entries: of several alternatives the one whose keys the entries have."""
    entries = [get_args(option)[1] for option in dicts(annotation)]
    for entry in entries[:-1]:
        known = {name for option in sections(entry) for name in keys(option)}
        if all(is_mapping(given[name]) and known & set(given[name]) for name in given):
            return entry
    return entries[-1]


def kind_of(option: type[Section]) -> str:
    """The ``kind`` that selects a section."""
    return str(keys(option)["kind"][2].default)


def alternative(annotation: Any, given: Any, default_kind: str = "") -> type[Any] | None:
    """The section of a union that ``kind`` selects, by default ``default_kind`` or the first."""
    found = _open_kinds(annotation)
    if found is None:
        listed_kinds = sections(annotation)
        if len(listed_kinds) < 2:
            return next(iter(listed_kinds), None)
        found = {kind_of(option): option for option in listed_kinds}
    chosen = given["kind"] if "kind" in given else default_kind or next(iter(found))
    return found.get(chosen) if isinstance(chosen, str) else None


def cast(annotation: Any, value: Any) -> Any:
    """A plain value as one of the annotation's types; ``NO`` where it is of none of them."""
    return next((x for x in (_as(o, value) for o in options(annotation)) if x is not NO), NO)


def _as(option: Any, value: Any) -> Any:
    if known := choices(option):
        fits = any(type(value) is type(choice) and value == choice for choice in known)
        return value if fits else NO
    if get_origin(option) is tuple:
        if not isinstance(value, tuple | list):
            return NO
        kinds = get_args(option)
        kinds = (kinds[0],) * len(value) if kinds[-1] is Ellipsis else kinds
        if len(kinds) != len(value):
            return NO
        found = tuple(_as(kind, item) for kind, item in zip(kinds, value, strict=True))
        return NO if any(item is NO for item in found) else found
    if option is float and type(value) is int and abs(value) <= MOST:
        return float(value)
    return value if type(value) is option else NO


# Words -------------------------------------------------------------------------------------------


def near(name: str, known: Iterable[str], prefix: str = "") -> str:
    """The end of a sentence on an unknown name: the nearest known one, else all of them."""
    found = difflib.get_close_matches(str(name), list(known), n=1)
    return f"did you mean {prefix}{found[0]}?" if found else f"it has {listed(known, 'and')}."


def listed(names: Iterable[Any], last: str) -> str:
    """ "a, b and c"."""
    *rest, end = map(str, names)
    return f"{', '.join(rest)} {last} {end}" if rest else end


def one_of(known: Iterable[Any], value: Any) -> str:
    """ "a, b or c", and which of them is nearest to ``value``."""
    names = [str(name) for name in known]
    text = value if isinstance(value, str) else ""
    found = difflib.get_close_matches(text, [*filter(None, names)], n=1)
    said = listed([name or '""' for name in names], "or")
    return f"{said} (did you mean {found[0]}?)" if found else said
