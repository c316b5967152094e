"""Claims about models, written down before they are tried: a file of them.

It names the arms of an experiment and what must hold of them
(:mod:`emu_jax.evaluation.decisions`):

    title = "Short prompts understood"
    kinds = ["count", "two", "action"]  # optional; gates without kinds of their own are decided for
                                        # each: kinds that fail one are left out of claims and gaps

    [arms]                              # models as compare.json names them; seeds make a list
    floor   = "builtin:scenes_96 (simple)"
    ceiling = "builtin:scenes_96 (complex)"
    adapted = ["runs/adapted_0 (simple)", "runs/adapted_1 (simple)", "runs/adapted_2 (simple)"]
    "eta {eta}" = "runs/eta_{eta} (simple)"     # an arm for each eta

    [each]
    eta = [0.1, 0.5]

    [[gates]]                           # premises: where one fails, no claim is decided; of those
                                        # with one `name` one must hold
    says = "There is a gap to close."
    arm = "ceiling"
    against = "floor"
    figure = "right"
    more_than = 0.15
    kinds = ["count", "two", "action"]  # in each; `at_least` = in how many of them

    [[claims]]
    name = "S1"
    says = "The adapter helps."
    arm = "adapted"
    against = "floor"
    figure = "right"
    more_than = 0.0

    [[claims]]
    name = "S4"
    says = "Contrast is kept."
    arm = "adapted"
    against = "floor"
    figure = "contrast"
    within = 0.02

    [[claims]]
    name = "S5"
    says = "Half of the distance between two others is gone."
    arm = "adapted"
    floor = "floor"
    against = "ceiling"
    figure = "frechet_haystack"
    more_than = 0.5

    [[gaps]]                            # reported, never decided
    arm = "adapted"
    floor = "floor"
    ceiling = "ceiling"
    figure = "right"

    [[tables]]                          # all arms, or some; all kinds together, and those named
    figure = "right"
    kinds = ["count", "two", "action"]
"""

import itertools
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, Self

from etils import epath

from emu_jax.data.textfile import read_text
from emu_jax.errors import UserError

_TYPES: Mapping[Any, Any] = {
    str: str,
    int: int,
    float: (int, float),
    float | None: (int, float),
    Sequence[str]: list,
}
_VARIABLE = re.compile(r"{(\w+)}")


@dataclass(frozen=True)
class Requirement:
    """A gate or a claim; see the module's docstring."""

    says: str
    arm: str
    figure: str
    name: str = ""
    against: str = ""
    floor: str = ""
    times: float = 1.0
    more_than: float | None = None
    less_than: float | None = None
    within: float | None = None
    kinds: Sequence[str] = ()
    at_least: int = 0

    def __post_init__(self):
        if (self.more_than, self.less_than, self.within).count(None) != 2:
            raise UserError(
                f"The claim {self.says!r} needs one of more_than, less_than and within."
            )
        if self.within is not None and not self.against:
            raise UserError(f"The claim {self.says!r} has no `against`: within what of which arm?")
        if self.floor and not self.against:
            raise UserError(f"The claim {self.says!r} has no `against`: up to which arm?")
        if self.at_least > len(self.kinds):
            raise UserError(
                f"The claim {self.says!r} asks for {self.at_least} kinds and names "
                f"{len(self.kinds)}: lower at_least."
            )


@dataclass(frozen=True)
class Gap:
    """The share of the difference between two arms that a third one reaches."""

    arm: str
    floor: str
    ceiling: str
    figure: str
    kinds: Sequence[str] = ()


@dataclass(frozen=True)
class Overview:
    """A figure of several arms."""

    figure: str
    arms: Sequence[str] = ()
    kinds: Sequence[str] = ()


@dataclass(frozen=True)
class Claims:
    """All that an experiment must show."""

    title: str
    arms: Mapping[str, Sequence[str]]
    kinds: Sequence[str] = ()
    gates: Sequence[Requirement] = ()
    claims: Sequence[Requirement] = ()
    gaps: Sequence[Gap] = ()
    tables: Sequence[Overview] = ()

    @classmethod
    def read(cls, path: epath.PathLike) -> Self:
        """Claims from a TOML file.

        Raises:
          UserError: the file is missing, no TOML, or has an entry that is unknown or missing.
        """
        file = epath.Path(path)
        if not file.is_file():
            raise UserError(f"There is no file of claims {path}.")
        try:
            found = tomllib.loads(read_text(file))
        except tomllib.TOMLDecodeError as error:
            raise UserError(f"{path} is not a file of claims: {error}.") from error
        arms = _arms(found.pop("arms", {}), found.pop("each", {}), path)
        parts = {
            name: [_made(kind, entry, f"[[{name}]]", path) for entry in found.pop(name, [])]
            for name, kind in _PARTS.items()
        }
        made = _made(cls, {**found, "arms": arms, **parts}, "the file", path)
        for one in (*made.gates, *made.claims, *made.gaps, *made.tables):
            named = [getattr(one, key, "") for key in ("arm", "against", "floor", "ceiling")]
            named += getattr(one, "arms", ())
            unknown = [name for name in named if name and name not in arms]
            if unknown:
                raise UserError(f"{path} names an arm {unknown[0]!r} that is not in [arms].")
        return made


_PARTS = {"gates": Requirement, "claims": Requirement, "gaps": Gap, "tables": Overview}


def _arms(entry: Any, each: Any, path: epath.PathLike) -> dict[str, list[str]]:
    """The models of each arm, one or several seeds, for all values of the variables it names."""
    if not isinstance(entry, Mapping):
        raise UserError(f"[arms] of {path} is {entry!r}; it must be a table.")
    if not isinstance(each, Mapping) or not all(isinstance(one, list) for one in each.values()):
        raise UserError(f"[each] of {path} is {each!r}; it must be a table of lists.")
    arms: dict[str, list[str]] = {}
    for name, models in entry.items():
        models = [models] if isinstance(models, str) else models
        texts = isinstance(models, list) and all(isinstance(model, str) for model in models)
        if not (texts and models):
            raise UserError(
                f"The arm {name} of {path} is {models!r}; use the name of a model, or a list."
            )
        variables = sorted(set(_VARIABLE.findall("".join([name, *models]))))
        unknown = [one for one in variables if one not in each or f"{{{one}}}" not in name]
        if unknown:
            raise UserError(
                f"The arm {name!r} of {path} has a variable {unknown[0]}: name it in the arm, and "
                "its values in [each]."
            )
        for values in itertools.product(*(each[one] for one in variables)):
            chosen = dict(zip(variables, map(str, values), strict=True))
            arms[_filled(name, chosen)] = [_filled(model, chosen) for model in models]
    return arms


def _filled(text: str, values: Mapping[str, str]) -> str:
    return _VARIABLE.sub(lambda match: values[match[1]], text)


def _made(kind: Any, entry: Any, where: str, path: epath.PathLike) -> Any:
    """A dataclass of the entries of a table in a file."""
    if not isinstance(entry, Mapping):
        raise UserError(f"{where} of {path} is {entry!r}; it must be a table.")
    known = {one.name: one for one in fields(kind)}
    unknown = [name for name in entry if name not in known]
    if unknown:
        raise UserError(
            f"{where} of {path} has an unknown entry {unknown[0]!r}; use {', '.join(known)}."
        )
    for name, value in entry.items():
        expected = _TYPES.get(known[name].type)
        if expected and (isinstance(value, bool) or not isinstance(value, expected)):
            raise UserError(f"{name} in {where} of {path} is {value!r}, which is of another type.")
    missing = [n for n, one in known.items() if one.default is MISSING and n not in entry]
    if missing:
        raise UserError(f"{where} of {path} has no entry {missing[0]!r}: add it.")
    return kind(**entry)
