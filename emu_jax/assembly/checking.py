"""Checking sections of a config against their schema, and the sentences for what is wrong."""

import math
import re
import types
from dataclasses import MISSING
from functools import reduce
from importlib.util import find_spec
from typing import Any, TypeVar, get_args, get_origin, overload

from emu_jax.assembly.schema import (
    MOST,
    NO,
    Key,
    Section,
    alternative,
    cast,
    choices,
    dicts,
    entry_of,
    is_mapping,
    is_sorted,
    keys,
    kind_of,
    listed,
    near,
    one_of,
    options,
    sections,
)
from emu_jax.errors import UserError

T = TypeVar("T", bound=Section)
_ANY = Key("")


@overload
def typed(kind: type[T], given: Any, name: str, default_kind: str = "") -> T: ...
@overload
def typed(kind: types.UnionType, given: Any, name: str, default_kind: str = "") -> Any: ...
def typed(kind: Any, given: Any, name: str, default_kind: str = "") -> Any:
    """A section, a ConfigDict or another mapping, as its dataclass.

    ``kind`` is a section or a union of sections; ``name`` is the section's dotted name in messages.

    Raises:
      UserError: an unknown or a missing key, or a value of another type or outside its range.
    """
    if not is_mapping(given):
        raise UserError(f"{name} is {shown(given)}; use {words(kind)}.")
    chosen = alternative(kind, given, default_kind)
    if chosen is None:
        found = given.get("kind", default_kind)
        known = one_of(map(kind_of, sections(kind)), found)
        raise UserError(f"{name}.kind is {shown(found)}; use {known}.")
    for unknown in given:
        if unknown not in keys(chosen):
            kind_said = f" of kind {kind_of(chosen)}" if len(sections(kind)) > 1 else ""
            hint = near(unknown, keys(chosen), f"{name}.")
            raise UserError(f"The config has no key {name}.{unknown}{kind_said}; {hint}")
    values: dict[str, Any] = {}
    for key, (annotation, about, field) in keys(chosen).items():
        dotted = f"{name}.{key}"
        if key in given:
            values[key] = _value(annotation, about, given[key], dotted)
        elif field.default_factory is not MISSING:
            values[key] = _value(annotation, about, {}, dotted)
        elif field.default is MISSING:
            raise UserError(f"{dotted} is not set; use {words(annotation, about)}.")
    made = chosen(**values)
    for path, use in made.problems():
        value = _inside(made, path)
        said = ":" if isinstance(value, Section | dict) else f" is {shown(value)};"
        raise UserError(f"{name}.{path}{said} use {use}.")
    return made


def at(kind: Any, given: Any, path: str) -> tuple[Any, Key] | None:
    """(type, :class:`Key`) of the key at the dotted ``path`` of ``given``, a section of ``kind``;
    None where no section has it.
    """
    name, _, rest = path.partition(".")
    chosen = alternative(kind, given) if is_mapping(given) else None
    if chosen is None or name not in keys(chosen):
        return None
    annotation, about, _ = keys(chosen)[name]
    while rest and dicts(annotation):
        given = given.get(name, {})
        if not is_mapping(given):
            return None
        annotation = entry_of(annotation, given)
        name, _, rest = rest.partition(".")
    if rest:
        return at(annotation, given[name], rest) if name in given else None
    return annotation, about


def _inside(made: Any, path: str) -> Any:
    parts = path.split(".")
    return reduce(
        lambda at, part: at[part] if isinstance(at, dict) else getattr(at, part), parts, made
    )


def _value(annotation: Any, about: Key, value: Any, name: str) -> Any:
    """A value as the field of a dataclass has it."""
    if is_mapping(value) and sections(annotation):
        return typed(annotation, value, name)
    if is_mapping(value) and dicts(annotation):
        return _entries(annotation, about, value, name)
    found = cast(annotation, value)
    if found is NO:
        raise UserError(f"{name} is {shown(value)}; use {words(annotation, about, value)}.")
    use = _objection(about, found)
    if use:
        raise UserError(f"{name} is {shown(value)}; use {use}.")
    return found


def _entries(annotation: Any, about: Key, given: Any, name: str) -> dict[str, Any]:
    """The freely named entries of a dict."""
    if about.filled and not len(given):
        raise UserError(f"{name} is empty; use {words(annotation, about)}.")
    if about.ordered and is_sorted(given) and len(given) > 1:
        raise UserError(
            f"{name} is a plain dict, which a ConfigDict sorts by name; use groups(...) of "
            "emu_jax.assembly.config."
        )
    entry, found = entry_of(annotation, given), {}
    for key in given:
        if sections(entry):
            default_kind = key if len(sections(entry)) > 1 else ""
            found[key] = typed(entry, given[key], f"{name}.{key}", default_kind)
        else:
            found[key] = _value(entry, about, given[key], f"{name}.{key}")
    return found


def _objection(about: Key, value: Any) -> str:
    """What to use in place of a value of the right type; empty: the value is right."""
    if isinstance(value, str | tuple) and about.filled and not value:
        return f"a {'string' if isinstance(value, str) else 'tuple'} that is not empty"
    if isinstance(value, str):
        if about.path:
            return path_objection(value)
        return _regex_objection(value) if about.regex else ""
    if isinstance(value, tuple):
        found = next(filter(None, (_objection(about, item) for item in value)), "")
        return found and f"{found}, for each of them"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    if isinstance(value, float) and not math.isfinite(value):
        return f"a finite number, {_range(about)}".removesuffix(", ")
    if not (about.at_least <= value <= about.at_most and about.above < value < about.below):
        return _range(about)
    whole = isinstance(value, int) and abs(value) > MOST and not math.isfinite(about.at_most)
    return f"a whole number of at most {MOST}" if whole else ""


def path_objection(path: str) -> str:
    """What to use in place of a path; empty: the package that reads it is installed."""
    scheme = path.partition("://")[0]
    package = {"gs": "gcsfs", "s3": "s3fs"}.get(scheme) if "://" in path else None
    if package is None or find_spec(package) or find_spec("tensorflow"):
        return ""
    return f"a local path, or install {package} (pip install {package})"


def _regex_objection(pattern: str) -> str:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        return f"a regular expression: {error}"
    return ""


# Words -------------------------------------------------------------------------------------------


def words(annotation: Any, about: Key = _ANY, value: Any = None) -> str:
    """What a key takes, for a sentence with "use"."""
    if sections(annotation):
        known = dict.fromkeys(name for option in sections(annotation) for name in keys(option))
        return f"a section with the keys {listed(known, 'and')}"
    if dicts(annotation):
        return "one or more named sections" if about.filled else "named sections"
    found = dict.fromkeys(_type_words(option, about, value) for option in options(annotation))
    return ", or ".join(found)


def shown(value: Any) -> str:
    """A value for a sentence."""
    if isinstance(value, Section) or is_mapping(value):
        return "a section"
    if isinstance(value, int) and value.bit_length() > 256:
        return "a number of too many digits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}..."


def _type_words(option: Any, about: Key, value: Any) -> str:
    bounds = _range(about) and f", {_range(about)}"
    if choices(option):
        return one_of(choices(option), value)
    if get_origin(option) is tuple:
        first, *rest = get_args(option)
        each = {int: "whole numbers", float: "numbers", bool: "bools", str: "strings"}
        many = "" if Ellipsis in rest else f"{1 + len(rest)} "
        noun = _type_words(first, about, None) if choices(first) else each.get(first, "values")
        return f"a tuple of {many}{noun}{bounds}"
    if option in (int, float):
        return f"{'a whole number' if option is int else 'a number'}{bounds}"
    plain = {bool: "True or False", types.NoneType: "None"}
    return plain.get(option) or ("a regular expression" if about.regex else "a string")


def _range(about: Key) -> str:
    """ "1 or more", "0 to 1", "more than 0 and less than 1"; empty: there are no bounds."""
    least, most = math.isfinite(about.at_least), math.isfinite(about.at_most)
    if least and most:
        return f"{about.at_least:g} to {about.at_most:.10g}"
    found = [
        f"{about.at_least:g} or more" if least else "",
        f"more than {about.above:g}" if math.isfinite(about.above) else "",
        f"at most {about.at_most:.10g}" if most else "",
        f"less than {about.below:g}" if math.isfinite(about.below) else "",
    ]
    return " and ".join(filter(None, found))
