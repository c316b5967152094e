"""What lies in a directory of a user's images: images, captions, and files that are not used.

Nothing is skipped in silence, but for hidden files: what is neither an image nor its captions is
listed with the reason. Captions come from tables (the one table of the top directory; `metadata.*`
in each directory below, as in the imagefolder layout), and for images that no table captions from
sidecar files.

`cat.mask.png` beside `cat.jpg` is no image of its own but a further image of it: see further.py.
"""

import os
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from etils import epath

from emu_jax.data.captions import (
    SIDECARS,
    TABLES,
    USUAL,
    Captions,
    Columns,
    read_sidecar,
    read_table,
)
from emu_jax.data.further import FURTHER
from emu_jax.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")


@dataclass
class Contents:
    """Paths are inside the directory, sorted; reasons are by path."""

    captions: Captions = field(default_factory=dict)  # of every image, perhaps none
    further_captions: dict[str, Captions] = field(default_factory=dict)  # by column, likewise
    # name of a further image -> image -> file
    further: dict[str, dict[str, str]] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)  # files and directories
    unused: dict[str, str] = field(default_factory=dict)


def read_contents(root: epath.Path, columns: Columns = USUAL) -> Contents:
    """The contents of a directory; UserError for a table or sidecar that cannot be read."""
    found = Contents()
    files = _walk(root, found.unreadable)
    tables = _tables(root, files)
    read: dict[str, Captions] = {"": {}, **{name: {} for name in columns.further}}
    for table in tables:
        for column, of_table in read_table(root, table, columns).items():
            for name, texts in of_table.items():
                before = read[column].get(name, [])
                read[column][name] = list(dict.fromkeys([*before, *texts]))
    captions = read.pop("")

    pixels = {name for name in files if _suffix(name) in SUFFIXES}
    further = {name for name in pixels - captions.keys() if _suffix(_stem(name))[1:] in FURTHER}
    images = sorted({*captions, *pixels} - further)
    found.further = _further(sorted(further), images)
    sidecars: dict[str, list[str]] = {}
    for name in files:
        if _suffix(name) in SIDECARS:
            sidecars.setdefault(_stem(name), []).append(name)
    used = {*images, *tables, *(f for of in found.further.values() for f in of.values())}
    for name in images:
        found.captions[name] = captions.get(name, [])
        if not found.captions[name]:
            own = sidecars.get(_stem(name), [])
            texts = (text for sidecar in own for text in read_sidecar(root / sidecar))
            found.captions[name] = list(dict.fromkeys(texts))
            used.update(own)
    found.further_captions = {
        column: {name: of_tables.get(name, []) for name in images}
        for column, of_tables in read.items()
    }
    captioned = {_stem(name) for name in images}
    found.unused = {name: _reason(name, captioned) for name in files if name not in used}
    return found


def _walk(root: epath.Path, unreadable: dict[str, str]) -> list[str]:
    """All files below `root` that are not hidden; a directory with several links counts once."""
    files: list[str] = []
    directories, visited = [root], set()
    while directories:
        directory = directories.pop()
        identity = _identity(directory)
        if identity in visited:
            continue
        visited.add(identity)
        try:
            paths = sorted(directory.iterdir())
        except OSError as error:
            if directory == root:
                raise UserError(f"{root} cannot be read: {error.strerror or error}.") from error
            unreadable[_name(directory, root)] = f"cannot be read: {error.strerror or error}"
            continue
        for path in paths:
            name = _name(path, root)
            if path.name.startswith("."):
                continue
            if name != path.relative_to(root).as_posix():
                unreadable[name] = "its name is not UTF-8"
            elif not path.is_dir():
                files.append(name)
            else:  # links last, so that files keep the names of their own directories
                directories.insert(0 if os.path.islink(path) else len(directories), path)
    return sorted(files)


def _tables(root: epath.Path, files: list[str]) -> list[str]:
    by_directory: dict[str, list[str]] = {}
    for name in files:
        directory = os.path.dirname(name)
        if _suffix(name) in TABLES and (not directory or PurePosixPath(name).stem == "metadata"):
            by_directory.setdefault(directory, []).append(name)
    for directory, tables in by_directory.items():
        if len(tables) > 1:
            names = ", ".join(map(os.path.basename, tables))
            raise UserError(
                f"{root / directory} holds several tables ({names}); keep only the one with the "
                "captions."
            )
    return [table for tables in by_directory.values() for table in tables]


def _further(files: list[str], images: list[str]) -> dict[str, dict[str, str]]:
    """Name of a further image -> image -> its file: the first of several of one name."""
    by_stem: dict[str, list[str]] = {}
    for image in images:
        by_stem.setdefault(_stem(image), []).append(image)
    found: dict[str, dict[str, str]] = {}
    for file in files:
        of = PurePosixPath(_stem(file))
        for image in by_stem.get(of.with_suffix("").as_posix(), []):
            found.setdefault(of.suffix[1:].lower(), {}).setdefault(image, file)
    return found


def _reason(name: str, captioned: set[str]) -> str:
    if _suffix(name) in TABLES:
        return "below the top directory only tables named metadata are read"
    if _suffix(name) in SUFFIXES:
        kind = _suffix(_stem(name))[1:]
        return f"it is a {kind} by its name, but no image, or another {kind}, belongs to it"
    if _suffix(name) not in SIDECARS:
        return f"neither an image ({' '.join(SUFFIXES)}) nor captions"
    if _stem(name) in captioned:
        return "a table has the captions of its image"
    return "no image has this name"


def _identity(directory: epath.Path) -> str:
    """The same for all paths to a directory."""
    path = os.fspath(directory)
    return path if "://" in path else os.path.realpath(path)


def _name(path: epath.Path, root: epath.Path) -> str:
    """The path inside `root`, with bytes that are not UTF-8 as \\x escapes."""
    return os.fsencode(path.relative_to(root).as_posix()).decode(errors="backslashreplace")


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _stem(name: str) -> str:
    return PurePosixPath(name).with_suffix("").as_posix()
