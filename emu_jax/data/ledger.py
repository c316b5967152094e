"""Rows of a long computation, one a name, in a file of JSON lines that grows while it runs.

A row is appended as soon as it is computed, so an interrupted computation continues. What the rows
were computed from lies beside the file; rows of anything else are refused.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from emu_jax.data.captions import FILE_COLUMN, read_rows
from emu_jax.errors import UserError


class Ledger:
    """``rows`` are by ``file_name``; of several of one name the last counts."""

    def __init__(self, path: epath.PathLike, made_from: Mapping[str, str]):
        """Raises UserError if the file has rows of another computation."""
        self.path = epath.Path(path).expanduser()
        self.rows: dict[str, dict[str, Any]] = {}
        about = self.path.parent / f"{self.path.name}.made_from.json"
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            about.write_text(json.dumps(dict(made_from), indent=1, sort_keys=True) + "\n")
            return
        _compare(self.path, about, made_from)
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):  # the last row was being written
            self.path.write_bytes(whole)
        for place, row in read_rows(self.path):
            if not isinstance(row.get(FILE_COLUMN), str):
                raise UserError(f"{self.path}, {place} has no {FILE_COLUMN}; remove the file.")
            self.rows[row[FILE_COLUMN]] = row

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        rows = [dict(row) for row in rows]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        with self.path.open("ab") as file:
            file.write(lines.encode())
        self.rows |= {row[FILE_COLUMN]: row for row in rows}


def _compare(path: epath.Path, about: epath.Path, made_from: Mapping[str, str]) -> None:
    if not about.exists():
        raise UserError(f"{path} exists, and was not written by this command; name another file.")
    try:
        before = json.loads(about.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{about} cannot be read ({error}); remove it and {path}.") from error
    if not isinstance(before, dict):
        before = {}
    for name in sorted({*before, *made_from}):
        if before.get(name) != made_from.get(name):
            raise UserError(
                f"{path} has rows of another {name} ({_short(before.get(name))}, now "
                f"{_short(made_from.get(name))}); name another file, or remove it."
            )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
