"""A report in one HTML file that needs nothing else: no network, no script, its pictures inside.

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

from emu_jax.evaluation.curves import SERIES_COLOURS

_LARGE = 256  # pixels: larger pictures are stored lossily, so that a report can still be mailed


class Section(Protocol):
    @property
    def title(self) -> str: ...

    def body(self) -> str:
        """The section's HTML, without its title."""
        ...


@dataclass(frozen=True)
class Text:
    """Paragraphs, parted by empty lines."""

    title: str
    text: str

    def body(self) -> str:
        return _paragraphs(self.text)


@dataclass(frozen=True)
class Table:
    """Rows of words (None: nothing) and numbers; floats are shown with four digits."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str = ""

    def body(self) -> str:
        rows = ["".join(_cell(value) for value in row) for row in self.rows]
        return _paragraphs(self.note) + _table("plain", self.columns, rows)


@dataclass(frozen=True)
class Picture:
    """One picture of a pictures table and the words under it (its seed, a score)."""

    image: UInt8[np.ndarray, "h w 3"]
    note: str = ""


@dataclass(frozen=True)
class Pictures:
    """A row a prompt, a column a model; None leaves a cell empty. ``width`` is in CSS pixels, and
    less where that many columns would not fit the page (96 at least)."""

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Picture | None]]]
    note: str = ""
    width: int = 160

    def body(self) -> str:
        rows = [
            f"<th>{_escape(prompt)}</th>" + "".join(self._cell(picture) for picture in pictures)
            for prompt, pictures in self.rows
        ]
        return _paragraphs(self.note) + _table("pictures", ["", *self.columns], rows)

    def _cell(self, picture: Picture | None) -> str:
        if picture is None:
            return "<td></td>"
        note = f"<small>{_escape(picture.note)}</small>" if picture.note else ""
        source = data_uri(picture.image)
        width = min(self.width, max(96, 900 // len(self.columns) - 16))
        return f'<td><img src="{source}" width="{width}" alt="">{note}</td>'


@dataclass(frozen=True)
class Charts:
    """Plots from :mod:`emu_jax.evaluation.curves` by name, and what their lines stand for."""

    title: str
    labels: Sequence[str]
    plots: Mapping[str, str]
    note: str = ""

    def body(self) -> str:
        keys = "".join(
            f'<span><i style="background:var(--line-{i % SERIES_COLOURS})"></i>{_escape(label)}'
            "</span>"
            for i, label in enumerate(self.labels)
        )
        figures = "".join(
            f"<figure><figcaption>{_escape(name)}</figcaption>{svg}</figure>"
            for name, svg in self.plots.items()
        )
        legend = f'<p class="legend">{keys}</p>'
        return f'{_paragraphs(self.note)}{legend}<div class="charts">{figures}</div>'


def write_report(
    path: epath.PathLike, title: str, sections: Sequence[Section], subtitle: str = ""
) -> epath.Path:
    """Write the report and return where it is."""
    parts = [f"<h1>{_escape(title)}</h1>"]
    if subtitle:
        parts.append(f'<p class="subtitle">{_escape(subtitle)}</p>')
    for section in sections:
        parts.append(f"<section><h2>{_escape(section.title)}</h2>{section.body()}</section>")
    page = _PAGE.format(title=_escape(title), style=_STYLE, body="\n".join(parts))
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page)
    return path


def data_uri(image: UInt8[np.ndarray, "h w 3"]) -> str:
    """The picture itself as an address: PNG where it is small, WebP where it is large."""
    picture = Image.fromarray(np.asarray(image))
    kind = "PNG" if max(picture.size) <= _LARGE else "WEBP"
    stream = io.BytesIO()
    picture.save(stream, kind, **({"optimize": True} if kind == "PNG" else {"quality": 90}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _table(kind: str, columns: Sequence[str], rows: Sequence[str]) -> str:
    # A path breaks behind its separators, not within a word.
    names = (re.sub(r"([/_:+])", r"\1<wbr>", _escape(name)) for name in columns)
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(value: object) -> str:
    if isinstance(value, (float, np.floating)):
        return f'<td class="number">{value:.4g}</td>'
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return f'<td class="number">{value:,}</td>'
    return f"<td>{_escape('' if value is None else str(value))}</td>"


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
  --paper: #fbfbfa; --card: #fff; --ink: #1d2125; --faint: #68707a; --rule: #e3e5e8;
  --line-0: #2f6fdb; --line-1: #d9542b; --line-2: #2a9d63;
  --line-3: #9a55c9; --line-4: #c08a10; --line-5: #1798a8;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15171a; --card: #1d2024; --ink: #e6e8ea; --faint: #98a1ab; --rule: #33383e;
    --line-0: #6ea3ff; --line-1: #ff8a5f; --line-2: #58cf93;
    --line-3: #c891f0; --line-4: #e6b648; --line-5: #55cbd9;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
main { max-width: 1080px; margin: 0 auto; padding: 40px 20px 80px; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.01em;
  overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 44px 0 10px; }
p { max-width: 72ch; margin: 0 0 12px; }
.subtitle { color: var(--faint); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; }
th { font-weight: 600; text-align: left; }
.plain { background: var(--card); border: 1px solid var(--rule); font-size: 0.92rem; }
.plain th, .plain td { padding: 6px 14px; border-bottom: 1px solid var(--rule); }
.plain tbody tr:last-child td { border-bottom: 0; }
.plain thead { color: var(--faint); }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.plain thead th { min-width: 6em; overflow-wrap: break-word; }
.pictures thead th { text-align: center; padding: 4px 8px; color: var(--faint); font-size: 0.92rem;
  overflow-wrap: break-word; }
.pictures tbody th { font-weight: 400; min-width: 7em; max-width: 260px; padding: 8px 20px 8px 0;
  overflow-wrap: anywhere; }
.pictures tbody tr + tr > * { border-top: 1px solid var(--rule); }
.pictures td { padding: 10px 8px; text-align: center; vertical-align: top; }
.pictures img { display: block; margin: 0 auto; height: auto; border-radius: 6px;
  outline: 1px solid var(--rule); }
.pictures small { display: block; margin-top: 4px; color: var(--faint); }
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
.legend { font-size: 0.92rem; color: var(--faint); }
.legend span { margin-right: 18px; white-space: nowrap; }
.legend i { display: inline-block; width: 18px; height: 3px; border-radius: 2px;
  margin: 0 7px 4px 0; vertical-align: middle; }
"""
