"""Text files that users write: strict UTF-8, and lines that end in \\n or \\r\\n alone.

`str.splitlines` also splits at form feeds, U+0085, U+2028 and others, which are part of a text.
"""

import codecs
import csv
import io

from etils import epath

from emu_jax.errors import UserError

DELIMITERS = {".tsv": "\t", ".csv": ","}  # of tables, by suffix


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


def read_table(path: epath.Path, delimiter: str = "") -> tuple[list[str], list[list[str]]]:
    """The header of a .tsv or .csv file, and its rows; a row may end before its last columns.

    A quote in a TSV is a character like any other; in a CSV it encloses commas and lines.

    Raises:
      UserError: not UTF-8, not CSV, or a row with more values than the header has columns.
    """
    delimiter = delimiter or DELIMITERS[path.suffix.lower()]
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    reader = csv.reader(io.StringIO(read_text(path), ""), delimiter=delimiter, quoting=quoting)
    rows: list[list[str]] = []
    try:
        header = next(reader, [])
        for cells in reader:
            if any(cell.strip() for cell in cells[len(header) :]):
                raise UserError(
                    f"{path}, line {reader.line_num} has {len(cells)} values for {len(header)} "
                    "columns; in a .csv file put text that contains commas in quotation marks."
                )
            rows.append(cells + [""] * (len(header) - len(cells)))
    except csv.Error as error:
        raise UserError(f"{path} is not a table: {error}.") from error
    return header, rows
