"""Pages of images with their two texts, for a person who checks the pairs of
:mod:`emu_jax.data.pairs`.
"""

import html
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from etils import epath
from jaxtyping import UInt8

from emu_jax.data.pairs import Pair
from emu_jax.evaluation.report import data_uri, write_report

SIDE = 160  # pixels of an image's longer side
_ON_A_PAGE = 200
_HOW = """\
Each row has an image, its simple caption, its complex prompt, and the scores of both. Reject a pair
whose texts do not match its image, or that must not be in the data set: open check.txt beside this
page in a text editor and put an x into the brackets of the pair's line. Then run the same command
again and name that file with --rejected."""


@dataclass(frozen=True)
class Shown:
    pair: Pair
    image: UInt8[np.ndarray, "h w 3"]
    rejected: bool


@dataclass(frozen=True)
class PairTable:
    """A section of a report."""

    title: str
    rows: Sequence[Shown]
    note: str = _HOW

    def body(self) -> str:
        heads = ("image", "simple caption", "complex prompt", "score, simple", "score, complex")
        head = "".join(f"<th>{name}</th>" for name in heads)
        body = "".join(f"<tr>{self._cells(row)}</tr>" for row in self.rows)
        table = f'<table class="plain"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        return f'<p>{html.escape(self.note)}</p><div class="scroll">{table}</div>'

    @staticmethod
    def _cells(row: Shown) -> str:
        pair = row.pair
        name = html.escape(pair.name) + (" (rejected)" if row.rejected else "")
        image = f'<img src="{data_uri(row.image)}" alt="{html.escape(pair.text)}">'
        texts = "".join(f"<td>{html.escape(text)}</td>" for text in (pair.text, pair.prompt))
        scores = "".join(
            f'<td class="number">{score:.3f}</td>' for score in (pair.text_score, pair.prompt_score)
        )
        return f"<td>{image}<small>{name}</small></td>{texts}{scores}"


def write_sheets(folder: epath.Path, rows: Iterator[Shown], total: int) -> list[str]:
    """Writes the pages of ``total`` rows and returns their names; pages of an earlier, longer list
    are removed."""
    count = max(1, math.ceil(total / _ON_A_PAGE))
    names = [f"sheet_{i + 1:03d}.html" if count > 1 else "sheet.html" for i in range(count)]
    for old in folder.glob("sheet*.html"):
        if old.name not in names:
            old.unlink()
    for i, name in enumerate(names):
        page, first = [*islice(rows, _ON_A_PAGE)], i * _ON_A_PAGE
        title = f"Pairs {first + 1 if page else 0:,} to {first + len(page):,} of {total:,}"
        write_report(folder / name, title, [PairTable("Check by hand", page)])
    return names
