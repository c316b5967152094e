"""Config files and the command line: ``--config=FILE[:OPTIONS] [--config.KEY=VALUE ...]``.

A config file's ``get_config("size=tiny,stage=pretrain")`` makes the sections of a run
(:mod:`emu_jax.assembly.sections`) by the helpers here. :func:`load` and :func:`parse` check the
config with its overrides before anything else is imported: what is wrong is one sentence.
"""

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from traceback import extract_tb
from types import ModuleType, SimpleNamespace
from typing import Any, get_args

from absl import flags
from ml_collections import ConfigDict, config_flags

from emu_jax.assembly.arguments import Parser, folder
from emu_jax.assembly.checking import at, shown, typed, words
from emu_jax.assembly.schema import (
    Ordered,
    Section,
    alternative,
    completed,
    dicts,
    entry_of,
    keys,
    near,
    one_of,
    section,
    sections,
)
from emu_jax.assembly.sections.data import Source
from emu_jax.assembly.sections.runs import Run, check, complete, run_of
from emu_jax.assembly.sections.training import Group, Optimizer
from emu_jax.errors import UserError


def options(argument: str | None, **choices: Sequence[str] | str) -> SimpleNamespace:
    """``"size=tiny,stage=pretrain"`` as attributes; an option's first choice is its default. An
    option whose choices are one string, its default, takes any text.
    """
    free = {name: text for name, text in choices.items() if isinstance(text, str)}
    chosen = {name: free.get(name, values[:1] and values[0]) for name, values in choices.items()}
    for part in filter(None, (argument or "").split(",")):
        name, _, value = part.partition("=")
        if name not in choices:
            raise UserError(f"The config has no option {name!r}; {near(name, choices)}")
        if name not in free and value not in choices[name]:
            raise UserError(f"The option {name} is {value!r}; use {one_of(choices[name], value)}.")
        chosen[name] = value
    return SimpleNamespace(**chosen)


def group(
    pattern: str,
    *,
    first_step: int = 0,
    every: int = 1,
    phase: int = 0,
    ema_decay: float | None = None,
    **optimizer: object,
) -> ConfigDict:
    """An entry of ``groups``: which parameters are updated, and when; the other arguments are keys
    of its ``optimizer`` section.
    """
    return section(
        Group,
        pattern=pattern,
        first_step=first_step,
        every=every,
        phase=phase,
        ema_decay=ema_decay,
        optimizer=section(Optimizer, **optimizer),
    )


def groups(**entries: ConfigDict) -> ConfigDict:
    """``config.groups``: sets of parameters in the order of their updates."""
    return Ordered(entries)


def source(
    dataset: str, *, select: str = "", weight: float = 1.0, captions: str = "captions"
) -> ConfigDict:
    """A data set of a mixture; ``select`` as :meth:`emu_jax.data.manifest.Manifest.select`."""
    return section(Source, dataset=dataset, select=select, weight=weight, captions=captions)


def config_parser(program: str, about: str | None) -> Parser:
    """A parser with ``--config``, for :func:`parse`; the command adds what else it takes."""
    parser = Parser(
        program,
        f"{program} --config FILE[:OPTIONS] [--config.KEY=VALUE ...] [options]",
        about,
        epilog="--config.KEY=VALUE sets a key of the config, e.g. --config.train.steps=2000;\n"
        "docs/config_keys.md lists all keys.",
    )
    parser.add_argument(
        "--config", metavar="FILE[:OPTIONS]", help="a config file, e.g. configs/judge.py:size=tiny"
    )
    return parser


def load(argv: Sequence[str], program: str, about: str | None = None) -> tuple[ConfigDict, str]:
    """(config, workdir) from ``--config=FILE[:OPTIONS] --workdir=DIR [--config.KEY=VALUE ...]``."""
    parser = config_parser(program, about)
    parser.add_argument("--workdir", metavar="DIR", help="folder of the run", type=folder)
    values = parse(argv, parser)
    if not values.workdir:
        raise UserError(f"{program} needs --workdir=DIR, the folder that a run is kept in.")
    return values.config, values.workdir


def parse(
    argv: Sequence[str], parser: Parser, kind: type[Section] | None = None
) -> argparse.Namespace:
    """The arguments of :func:`config_parser`, with the checked and complete config of
    ``--config=FILE[:OPTIONS] [--config.KEY=VALUE ...]`` as ``.config``, and
    FILE[:OPTIONS] as ``.config_file``.

    ``kind`` is the section of a config that is none of a run, which has no ``task``.
    """
    values, rest = parser.parse_known_args(argv)
    if not values.config:
        raise UserError(
            f"{parser.prog} needs --config=FILE[:OPTIONS], e.g. configs/autoencoder.py:size=tiny."
        )
    made, holder = _made_by(values.config), flags.FlagValues()
    config = completed(kind, made) if kind else complete(made)
    kind = kind or run_of(config)
    for argument in rest:
        if argument.startswith("--") and not _OVERRIDE.match(argument):
            parser.refuse(argument)
    arguments = [parser.prog, *rest]
    _add_entries(arguments, config)
    _require_keys(arguments, config, kind)
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=holder, sys_argv=arguments)
        rest = holder(arguments)
    except _OF_VALUES as error:
        raise UserError(_explain(error, arguments, config, kind)) from error
    if len(rest) > 1:
        parser.refuse(rest[1])
    if kind and not issubclass(kind, Run):
        typed(kind, config, "config")
    else:
        check(config)
        config = complete(config)
    values.config_file, values.config = values.config, config.lock()
    return values


def read(path: str) -> ConfigDict:
    """The config of ``FILE[:OPTIONS]``, checked and complete."""
    config = _made_by(path)
    check(config)
    return complete(config).lock()


def _made_by(path: str) -> ConfigDict:
    """What ``get_config`` of ``FILE[:OPTIONS]`` returns."""
    file, *argument = path.split(":", 1)
    if not Path(file).is_file():
        raise UserError(f"There is no config file {file}.")
    loader = SourceFileLoader(f"config_{Path(file).stem}", file)
    module = ModuleType(loader.name)
    module.__file__ = file
    sys.modules[loader.name] = module
    try:
        loader.exec_module(module)
        config = module.get_config(*argument)
    except UserError:
        raise
    except Exception as error:
        frames = [frame for frame in extract_tb(error.__traceback__) if frame.filename == file]
        line = f", line {frames[-1].lineno}" if frames else ""
        raise UserError(f"{file}{line}: {type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"get_config of {file} returns {config!r}; return a ConfigDict.")
    return config


# What the parsers of values and the ConfigDict raise.
_OF_VALUES = (
    *(flags.Error, ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError),
    *(SyntaxError, TypeError, ValueError),
)
_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]*)")


def _add_entries(arguments: Sequence[str], config: ConfigDict) -> None:
    """Adds the sources, validation sets and streams that overrides of ``config.data`` name and the
    config does not have. A name that is nearly that of an existing entry counts as a mistake.
    """
    kind = run_of(config)
    for name in (found[1] for found in map(_OVERRIDE.match, arguments) if found):
        if kind and name.startswith("data."):
            _add_entry(kind, config, name.split("."))


def _add_entry(annotation: Any, given: ConfigDict, path: Sequence[str]) -> None:
    """What of ``path`` is missing in ``given``, a section or a dict of entries, with defaults."""
    name, *rest = path
    if sections(annotation) and rest:
        kind = alternative(annotation, given)
        if kind and name in keys(kind) and isinstance(given.get(name), ConfigDict):
            _add_entry(keys(kind)[name][0], given[name], rest)
    elif dicts(annotation) and rest:
        entries = [get_args(option)[1] for option in dicts(annotation)]
        if len(given) or len(entries) == 1:
            entry = entry_of(annotation, given)
        else:  # a validation set: its entries are sources, or streams that have sources
            entry = next(entry for entry in entries if bool(sections(entry)) == (len(rest) == 1))
        if name not in given:
            if difflib.get_close_matches(name, list(given), n=1, cutoff=0.8):
                return
            given[name] = next(map(section, sections(entry)), ConfigDict())
            if entry is Source:
                given[name].dataset = ""  # required; an override sets it
        _add_entry(entry, given[name], rest)


def _require_keys(arguments: Sequence[str], config: ConfigDict, kind: type[Section] | None) -> None:
    """Refuses overrides of keys that the config does not have, and of whole sections."""
    known = leaves(config)
    for name in (found[1] for found in map(_OVERRIDE.match, arguments) if found):
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = (
                f"did you mean --config.{close[0]}?" if close else "the config file has its keys."
            )
            raise UserError(f"The config has no key config.{name}; {hint}")
        found = at(kind, config, name) if kind else None
        if found and (sections(found[0]) or found[1].ordered):
            first = next(key for key in known if key.startswith(f"{name}."))
            raise UserError(
                f"config.{name} is a section; set its keys, e.g. --config.{first}=VALUE."
            )


def _explain(
    error: Exception, arguments: Sequence[str], config: ConfigDict, kind: type[Section] | None
) -> str:
    """One sentence: of a value of a wrong type what its key takes, else what the parser said."""
    flag = re.match(r"flag --config\.([^=]*)=(.*?)(: |$)", str(error))
    found = at(kind, config, flag[1]) if flag and kind else None
    if flag and found:
        start = f"--config.{flag[1]}="
        value = next((a.removeprefix(start) for a in arguments if a.startswith(start)), flag[2])
        return f"config.{flag[1]} is {shown(value)}; use {words(*found, value)}."
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".") + "."


def leaves(config: ConfigDict, prefix: str = "") -> list[str]:
    """Dotted names of everything that can be set, sections included."""
    names = []
    for key, value in config.items():
        names.append(prefix + key)
        if isinstance(value, ConfigDict):
            names += leaves(value, f"{prefix}{key}.")
    return names
