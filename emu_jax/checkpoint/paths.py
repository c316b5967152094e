"""Paths and file names that are stored in files: they are data, whoever wrote the file.

The config of a model names other models: the autoencoder it works in, its text encoders, the base
of an adapter. :func:`checked_config` applies these rules when a model is opened, so that no caller
needs to know where a config came from:

- No value names a Python file. A config file is executed, and only the user names one, on the
  command line or in a config file.
- In an exported folder a relative path names what lies inside the folder, if it is there. It
  contains no ``..``, and no symbolic link leads it out of the folder.
- ``builtin:NAME`` names the weights that come with emu_jax.
- Every other path is opened as it was recorded in training: an absolute path, a path relative to
  the working directory, the name of a model on the hub. A run and its checkpoints record their
  paths this way; exports and imports contain what they name (:func:`opened_paths` lists it).
  Whatever such a path names is read as a model, that is as JSON and tensors, under the same rules.

An index of shards names files: :func:`file_in` finds them, in the folder of the index only.
"""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from etils import epath

from emu_jax.errors import UserError

# Of a config, what is an object where it is there.
_SECTIONS = (
    *("adapter", "autoencoder", "codec", "conditioner", "data", "denoiser", "discriminator"),
    *("distillation", "groups", "judge", "lora", "loss", "low_codec", "low_resolution", "measure"),
    *("mesh", "process", "quantizer", "sampling", "text", "train", "vectors"),
)


def is_config_file(path: str) -> bool:
    """Whether ``path`` names a config file, FILE.py or FILE.py:OPTIONS, which is executed."""
    return PurePosixPath(path.split(":")[0]).suffix == ".py"


def checked_config(config: Any, where: str, folder: epath.Path | None = None) -> dict[str, Any]:
    """A stored config under the rules above. ``where``: the file or checkpoint, for messages.

    ``folder``: the exported folder that the config lies in; None for a checkpoint. Paths of what
    lies in the folder are returned as absolute paths.

    Raises:
      UserError: not a config, or a path that breaks a rule; the message names the key.
    """
    if not isinstance(config, dict):
        raise UserError(f"{where} has no config of a model: its config is {config!r}.")
    for key, value in _leaves(config):
        if isinstance(value, str) and is_config_file(value):
            raise UserError(
                f"{key} in {where} is {value!r}, a Python file. The config of a model may not run "
                "code: write the folder of a trained model there instead."
            )
    for key, section in _sections(config):
        if section is not None and not isinstance(section, dict):
            raise UserError(f"{key} in {where} is {section!r}; it must be a section, an object.")
    for key, section, name in opened_paths(config):
        path = section[name]
        if path is not None and not isinstance(path, str):
            raise UserError(f"{key} in {where} is {path!r}; it must be a path.")
        if path and folder is not None:
            section[name] = _inside(folder, path, f"{key} in {where} is {path!r}")
    return config


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything that is neither a dict nor a list."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for name, item in items:
            yield from _leaves(item, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def opened_paths(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(dotted key, section, key in the section) of each path that is opened to use the model."""
    for key, section in _sections(config):
        if section and (key.startswith("text.") or key.endswith("codec")) and "path" in section:
            yield f"{key}.path", section, "path"
    adapts = (config.get("lora") or {}).get("rank") or "distillation" in config
    if adapts and "init_from" in config:
        yield "init_from", config, "init_from"  # the adapter's base; else only a record


def _sections(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(key, value) of what must be a section, if it is there."""
    yield from ((name, config[name]) for name in _SECTIONS if name in config)
    if isinstance(config.get("text"), dict):
        yield from ((f"text.{name}", options) for name, options in config["text"].items())


def _inside(folder: epath.Path, path: str, what: str) -> str:
    """``path`` under the rules for an exported folder."""
    if path.startswith(("/", "~", "builtin:")) or "://" in path:
        return path
    if ".." in PurePosixPath(path).parts:
        raise UserError(
            f"{what}; a path in a model folder may not contain '..': write an absolute path."
        )
    found = folder / path
    if not found.exists():
        return path
    if not _real(found).is_relative_to(_real(folder)):
        raise UserError(
            f"{what}, a symbolic link out of the model folder: write the path of its target."
        )
    name = os.fspath(found)
    return name if "://" in name else os.path.abspath(name)


def absolute_paths(config: dict[str, Any]) -> None:
    """Makes absolute what an exported folder would not find: a relative path with ``..``, or one
    that exists in the working directory."""
    for _, section, name in opened_paths(config):
        path = section[name]
        if not path or path.startswith(("/", "~", "builtin:")) or "://" in path:
            continue
        if ".." in PurePosixPath(path).parts or os.path.exists(path):
            section[name] = os.path.abspath(path)


# File names --------------------------------------------------------------------------------------


def file_in(folder: epath.Path, name: Any, source: Any) -> epath.Path:
    """The file ``name`` in ``folder``. ``source``: what names it, for messages.

    A symbolic link must stay in the folder. In the hub's cache every file is a link to a file in
    the folder ``blobs`` of the same model, which is allowed.

    Raises:
      UserError: ``name`` is not the relative path of a file in the folder.
    """
    if not isinstance(name, str) or not name:
        raise UserError(f"{source} names {name!r}, which is not a file name; fetch it again.")
    if name.startswith("/") or ".." in PurePosixPath(name).parts or "\0" in name:
        raise UserError(f"{source} names {name!r}, which does not lie in {folder}; refused.")
    file = folder / name
    if not file.exists():
        raise UserError(f"{folder} lacks {name}, which {source} names; fetch it again.")
    if not _is_regular(file):
        raise UserError(f"{source} names {name!r}, which is a folder or a device, not a file.")
    real, target = _real(folder), _real(file)
    if not any(target.is_relative_to(place) for place in (real, *_blobs(real))):
        raise UserError(
            f"{source} names {name!r}, a symbolic link out of {folder}; refused: copy the file "
            "into the folder if you trust it."
        )
    return file


def refuse_links_out(folder: Path) -> None:
    """Raises UserError where a file directly in a local folder is a link that :func:`file_in`
    refuses, whoever would read it.
    """
    for file in sorted(folder.iterdir()):
        if file.is_symlink() and file.is_file():
            file_in(epath.Path(folder), file.name, folder)


def refuse_links_below(folder: epath.Path) -> None:
    """Raises UserError where anything below a local folder is a link out of it."""
    name = os.fspath(folder)
    real = _real(folder)
    for place, folders, files in () if "://" in name else os.walk(name):
        for path in (os.path.join(place, one) for one in (*folders, *files)):
            if os.path.islink(path) and not _real(epath.Path(path)).is_relative_to(real):
                raise UserError(
                    f"{path} is a symbolic link out of {folder}; refused: replace it by a copy of "
                    "what it names if you trust it."
                )


def _real(path: epath.Path) -> PurePosixPath:
    """Without symbolic links, which a bucket does not have and ``epath`` does not follow."""
    name = os.fspath(path)
    return PurePosixPath(name if "://" in name else os.path.realpath(name))


def _is_regular(path: epath.Path) -> bool:
    name = os.fspath(path)
    return path.is_file() if "://" in name else os.path.isfile(name)


def _blobs(folder: PurePosixPath) -> list[PurePosixPath]:
    """The hub's cache keeps ``models--X/snapshots/REVISION/...`` as links to
    ``models--X/blobs/``."""
    return [
        parent.parent / "blobs"
        for parent in folder.parents
        if parent.name == "snapshots" and parent.parent.name.startswith("models--")
    ]
