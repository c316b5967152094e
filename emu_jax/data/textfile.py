"""Text files that users write: strict UTF-8, and lines that end in \\n or \\r\\n alone.

`str.splitlines` also splits at form feeds, U+0085, U+2028 and others, which are part of a text.
"""

import codecs

from etils import epath

from emu_jax.errors import UserError


def read_bytes(path: epath.Path) -> bytes:
    """The content of a file, or a UserError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error


def read_text(path: epath.Path) -> str:
    """The text of a UTF-8 file without its byte-order mark; UserError names the line otherwise."""
    content = read_bytes(path).removeprefix(codecs.BOM_UTF8)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line} is not UTF-8 text (byte 0x{content[error.start]:02x}); save the "
            "file as UTF-8."
        ) from error


def read_lines(path: epath.Path) -> list[str]:
    """The lines of `read_text` without their ends."""
    return [line.removesuffix("\r") for line in read_text(path).split("\n")]
