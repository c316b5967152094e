"""Arguments of commands: a parser whose errors are sentences, and types that check a value.

Nothing here imports JAX: a typing mistake is answered at once.
"""

import argparse
import contextlib
import math
import os
import tempfile
from pathlib import Path
from typing import Any, NoReturn

from emu_jax.assembly.checking import path_objection
from emu_jax.assembly.schema import near
from emu_jax.errors import UserError


class Parser(argparse.ArgumentParser):
    """The arguments of a command; a mistake in them is a UserError."""

    def __init__(self, *arguments: Any, **options: Any):
        shape = argparse.RawDescriptionHelpFormatter
        super().__init__(*arguments, **{"formatter_class": shape, **options}, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            self.refuse(unknown.split()[0])
        raise UserError(f"{self.prog}: {message.rstrip('.')}.")

    def refuse(self, argument: str) -> NoReturn:
        """Raises UserError for an argument that the command does not have."""
        name = argument.partition("=")[0]
        known = [option for action in self._actions for option in action.option_strings]
        hint = f"; {near(name, known)}" if name.startswith("-") else f"; see {self.prog} --help."
        raise UserError(f"{self.prog} has no argument {name!r}{hint}")


def positive(text: str) -> int:
    """A whole number, 1 or more."""
    return _whole(text, 1, 2**31 - 1)


def counted(text: str) -> int:
    """A whole number, 0 or more."""
    return _whole(text, 0, 2**31 - 1)


def seed(text: str) -> int:
    """A seed of 32 bits."""
    return _whole(text, 0, 2**32 - 1)


def scale(text: str) -> float:
    """A number, 0 or more."""
    number = real(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0; use 0 or more")
    return number


def real(text: str) -> float:
    """A number that is finite."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return number


def share_of_one(text: str) -> float:
    """A number, 0 to 1."""
    number = real(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text}: use a number from 0 to 1")
    return number


def path(text: str) -> str:
    """A path to read, local or in a bucket; of a cascade several."""
    for one in text.split("+"):
        use = path_objection(one)
        if use:
            raise argparse.ArgumentTypeError(f"{one!r}: use {use}")
    return text


def folder(text: str) -> str:
    """A folder to write to, which may be new; a trial folder is made in it, or in the nearest
    folder above it, and removed again.
    """
    path(text)
    if "://" in text:
        return text
    place = Path(text).expanduser()
    try:
        with contextlib.suppress(FileNotFoundError):
            os.stat(place)  # a name may be too long, a link may lead to itself
        there = next(one for one in (place, *place.absolute().parents) if os.path.lexists(one))
        os.rmdir(tempfile.mkdtemp(dir=there))
    except (OSError, ValueError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise argparse.ArgumentTypeError(
            f"{text} cannot be written to ({reason}); name another folder"
        ) from error
    return str(place)


def model(text: str) -> str:
    """A model to write: a folder, or a file *.safetensors in a folder."""
    if not text.endswith(".safetensors") or os.path.isdir(text):
        return folder(text)
    return os.path.join(folder(os.path.dirname(text) or "."), os.path.basename(text))


def _whole(text: str, least: int, most: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if not least <= number <= most:
        raise argparse.ArgumentTypeError(f"{text!r}: use a whole number, {least} to {most}")
    return number
