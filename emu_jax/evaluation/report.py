"""A report as one self-contained HTML file: no network, no script, its images inside.

A report is a title and a list of sections; a section is one of the small dataclasses here. All text
is escaped. A further kind of section is one more dataclass with a ``title`` and a ``body()``.
"""

import base64
import html
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from emu_jax.evaluation import curves

_LARGE = 256  # pixels: larger images are stored lossily, so that a report can still be mailed
_FIT = 5  # columns of images that fit a phone; more scroll sideways
_INTERVAL = r"(?<=\S )\(\S+ to \S+\)$"  # behind its value


class Section(Protocol):
    @property
    def title(self) -> str: ...

    def body(self) -> str:
        """The section's HTML without its title."""
        ...


@dataclass(frozen=True)
class Text:
    """Paragraphs, separated by empty lines."""

    title: str
    text: str

    def body(self) -> str:
        return _paragraphs(self.text)


@dataclass(frozen=True)
class Table:
    """Rows of text (None: empty) and numbers; floats have four significant digits."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str = ""

    def body(self) -> str:
        head = "".join(f"<th>{_breakable(name)}</th>" for name in self.columns)
        rows = ["".join(_cell(value) for value in row) for row in self.rows]
        table = _table('class="plain"', head, rows)
        return f'{_paragraphs(self.note)}<div class="scroll">{table}</div>'


@dataclass(frozen=True)
class Tables:
    """Several tables, of which those after the first ``shown`` are folded."""

    title: str
    tables: Sequence[Table]
    shown: int
    note: str = ""

    def body(self) -> str:
        parts = [_paragraphs(self.note)]
        for i, table in enumerate(self.tables):
            kind = "<details open>" if i < self.shown else "<details>"
            parts.append(f"{kind}<summary>{_escape(table.title)}</summary>{table.body()}</details>")
        return "".join(parts)


@dataclass(frozen=True)
class Tile:
    """One image of an image table and the text below it (its seed, a score)."""

    image: UInt8[np.ndarray, "h w 3"]
    note: str = ""


@dataclass(frozen=True)
class ImageTable:
    """One row per prompt and one column per model; None is an empty cell. ``width`` is in CSS
    pixels, and less if the columns would not fit the page (96 at least; less on a small screen)."""

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Tile | None]]]
    note: str = ""
    width: int = 160

    def body(self) -> str:
        rows = [
            f"<th>{_escape(prompt)}</th>" + "".join(map(self._cell, tiles, self.columns))
            for prompt, tiles in self.rows
        ]
        head = "".join(f"<th>{_breakable(name)}</th>" for name in ("", *self.columns))
        width = min(self.width, max(96, 900 // len(self.columns) - 16))
        style = f"--columns:{len(self.columns)};--width:{width}px"
        table = _table(f'class="images" style="{style}"', head, rows)
        if len(self.columns) > _FIT:
            table = f'<div class="scroll">{table}</div>'
        return _paragraphs(self.note) + table

    def _cell(self, tile: Tile | None, column: str) -> str:
        if tile is None:
            return "<td></td>"
        note = f"<small>{_escape(tile.note)}</small>" if tile.note else ""
        return f'<td><img src="{data_uri(tile.image)}" alt="{_escape(column)}">{note}</td>'


@dataclass(frozen=True)
class Charts:
    """Plots from :mod:`emu_jax.evaluation.curves` by name, and a legend of their lines."""

    title: str
    labels: Sequence[str]
    plots: Mapping[str, str]
    note: str = ""

    def body(self) -> str:
        keys = "".join(
            f"<span>{curves.key(i)}{_escape(label)}</span>" for i, label in enumerate(self.labels)
        )
        figures = "".join(
            f"<figure><figcaption>{_escape(name)}</figcaption>{svg}</figure>"
            for name, svg in self.plots.items()
        )
        legend = f'<p class="legend">{keys}</p>' if keys else ""
        return f'{_paragraphs(self.note)}{legend}<div class="charts">{figures}</div>'


def write_report(
    path: epath.PathLike, title: str, sections: Sequence[Section], subtitle: str = ""
) -> epath.Path:
    """Write the report and return its path."""
    parts = [f"<h1>{_escape(title)}</h1>"]
    if subtitle:
        parts.append(f'<p class="subtitle">{_escape(subtitle)}</p>')
    for section in sections:
        parts.append(f"<section><h2>{_escape(section.title)}</h2>{section.body()}</section>")
    page = _PAGE.format(title=_escape(title), style=_STYLE, body="\n".join(parts))
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(page.encode(errors="xmlcharrefreplace"))
    return path


def data_uri(image: UInt8[np.ndarray, "h w 3"]) -> str:
    """The image as a data URI: PNG if it is small, WebP if it is large."""
    pixels = Image.fromarray(np.asarray(image))
    kind = "PNG" if max(pixels.size) <= _LARGE else "WEBP"
    stream = io.BytesIO()
    pixels.save(stream, kind, **({"optimize": True} if kind == "PNG" else {"quality": 90}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _table(attributes: str, head: str, rows: Sequence[str]) -> str:
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f"<table {attributes}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: object) -> str:
    if isinstance(value, (float, np.floating)):
        return f'<td class="number">{value:.4g}</td>'
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return f'<td class="number">{value:,}</td>'
    text = _breakable("" if value is None else str(value))
    text = re.sub(_INTERVAL, r"<small>\g<0></small>", text)
    return f"<td>{text}</td>"


def _breakable(text: str) -> str:
    """Escaped; a path may break behind its separators, not within a word or a number."""
    return re.sub(r"([/_:]|[+](?!\d))", r"\1<wbr>", _escape(text))


def _paragraphs(text: str) -> str:
    return "".join(f"<p>{_escape(part.strip())}</p>" for part in text.split("\n\n") if part.strip())


def _escape(text: str) -> str:
    return html.escape(text, quote=True)


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

_STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fbfbfa; --card: #fff; --ink: #1d2125; --faint: #5f6770; --rule: #e3e5e8;
  --line-0: #2f6fdb; --line-1: #d9542b; --line-2: #2a9d63; --line-3: #9a55c9;
  --line-4: #b8860b; --line-5: #1798a8; --line-6: #d1478f; --line-7: #5b6472;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15171a; --card: #1d2024; --ink: #e6e8ea; --faint: #98a1ab; --rule: #33383e;
    --line-0: #6ea3ff; --line-1: #ff8a5f; --line-2: #58cf93; --line-3: #c891f0;
    --line-4: #e6b648; --line-5: #55cbd9; --line-6: #ff86bd; --line-7: #aab6c4;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
main { max-width: 1160px; margin: 0 auto; padding: 40px 20px 80px; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.01em;
  overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 44px 0 10px; overflow-wrap: anywhere; }
p { max-width: 72ch; margin: 0 0 12px; }
.subtitle { color: var(--faint); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; }
th { font-weight: 600; text-align: left; overflow-wrap: break-word; }
.plain { background: var(--card); border: 1px solid var(--rule); font-size: 0.9rem; }
.plain th, .plain td { padding: 6px 8px; border-bottom: 1px solid var(--rule);
  vertical-align: top; }
.plain tr > :first-child { position: sticky; left: 0; background: var(--card); }
.plain tbody tr:last-child td { border-bottom: 0; }
.plain thead { color: var(--faint); }
.plain td { font-variant-numeric: tabular-nums; }
.plain td:first-child { min-width: 7em; }
.plain small { display: block; white-space: nowrap; color: var(--faint); font-size: 0.85em; }
.number { text-align: right; }
details { margin: 0 0 12px; }
summary { font-weight: 600; margin-bottom: 4px; cursor: pointer; }
.images thead th { text-align: center; padding: 6px 8px; color: var(--faint); font-size: 0.92rem;
  position: sticky; top: 0; background: var(--paper); overflow-wrap: anywhere; }
.images tbody th { font-weight: 400; min-width: 7em; max-width: 240px; padding: 8px 20px 8px 0;
  overflow-wrap: anywhere; }
.images tbody th:empty { min-width: 0; padding: 0; }
.images tbody tr + tr > * { border-top: 1px solid var(--rule); }
.images td { padding: 10px 8px; text-align: center; vertical-align: top; }
.images img { display: block; margin: 0 auto; width: var(--width); height: auto;
  border-radius: 6px; outline: 1px solid var(--rule); }
.images small { display: block; margin-top: 4px; color: var(--faint); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(400px, 100%), 1fr));
  gap: 18px; }
figure { margin: 0; padding: 12px 14px 8px; background: var(--card); border: 1px solid var(--rule);
  border-radius: 8px; }
figcaption { font-weight: 600; font-size: 0.92rem; margin-bottom: 4px; overflow-wrap: anywhere; }
.plot { display: block; width: 100%; height: auto; }
.plot text { fill: var(--faint); font-size: 11px; font-variant-numeric: tabular-nums; }
.plot .rule { stroke: var(--rule); fill: none; }
.plot .mark { fill: none; stroke-width: 1.4; }
.plot polyline { stroke-linejoin: round; }
.legend { font-size: 0.92rem; color: var(--faint); max-width: none; }
.legend span { display: inline-block; margin-right: 18px; overflow-wrap: anywhere; }
.key { width: 28px; height: 6px; margin: 0 7px 2px 0; vertical-align: middle; }
@media (max-width: 700px) {
  main { padding: 24px 12px 60px; }
  h1 { font-size: 1.5rem; }
  .images, .images thead, .images tbody { display: block; }
  .images tr { display: grid; column-gap: 8px;
    grid-template-columns: repeat(var(--columns), minmax(72px, 1fr)); }
  .plain { font-size: 0.85rem; }
  .plain th, .plain td { padding: 5px 6px; }
  .plain td:first-child { min-width: 5em; }
  .plain small { white-space: normal; }
  .images thead { position: sticky; top: 0; background: var(--paper); }
  .images thead th { padding: 6px 0; font-size: 0.8rem; }
  .images thead th:first-child { display: none; }
  .images tbody th { grid-column: 1 / -1; max-width: none; padding: 10px 0 0; }
  .images tbody tr + tr > td { border-top: 0; }
  .images td { padding: 6px 0 10px; }
  .images img { width: 100%; max-width: var(--width); }
  .images small { font-size: 0.75rem; overflow-wrap: anywhere; }
}
"""
