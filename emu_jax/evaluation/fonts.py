"""Fonts for captions in any script.

Pillow's own font has Latin letters only. Other characters are drawn with fonts of this machine,
which fontconfig's ``fc-list`` finds by the characters that they have. A script that no font has is
named in one sentence; its characters are drawn as boxes.
"""

import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from functools import cache
from itertools import groupby
from typing import Any

from PIL import ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_NONE = "\U0010ffff"  # no font has this character: it is drawn as a missing one is
_UNLIKE = ("Bold", "Oblique", "Italic", "Light", "Thin", "Black", "Condensed", "Mono", "Serif")
_LIKE = ("DejaVuSans.", "NotoSans")
_said: set[str] = set()


class Typeface:
    """Measures and draws lines of text in any script."""

    def __init__(self, size: int):
        self._size = size
        self._default = ImageFont.load_default(size=size)

    def getlength(self, text: str) -> float:
        """Pixels that ``text`` takes."""
        return sum(font.getlength(part) for font, part in self._runs(text))

    def draw(
        self,
        pen: ImageDraw.ImageDraw,
        x: float,
        y: float,
        text: str,
        fill: str | tuple[int, int, int],
    ) -> None:
        """Draws ``text`` with its left end at x."""
        for font, part in self._runs(text):
            pen.text((x, y), part, font=font, fill=fill)
            x += font.getlength(part)

    def _runs(self, text: str) -> Iterator[tuple[Font, str]]:
        """Parts of ``text`` with their fonts: one font for all of it, if any has all of it."""
        whole = self._font("".join(sorted(set(filter(_visible, text)))))
        if whole:
            yield whole, text
            return
        characters: dict[str, str] = {}
        for character in sorted(set(filter(_visible, text))):
            name = script(character)
            characters[name] = characters.get(name, "") + character
        fonts = {name: self._font(own) for name, own in characters.items()}
        _say([name for name, font in fonts.items() if font is None])
        last = self._default

        def font_of(character: str) -> Font:
            nonlocal last
            if _visible(character):  # spaces belong to the word before
                last = fonts[script(character)] or self._default
            return last

        for font, part in groupby(text, font_of):
            yield font, "".join(part)

    def _font(self, characters: str) -> Font | None:
        """A font that has all of the characters, Pillow's if possible."""
        return _font(characters, self._size)


@cache
def _font(characters: str, size: int) -> Font | None:
    default = ImageFont.load_default(size=size)
    foreign = [c for c in characters if not _has(default, c)]
    if not foreign:
        return default
    first, *others = map(_files, foreign)
    for file, index in (font for font in first if all(font in other for other in others)):
        try:
            found = ImageFont.truetype(file, size, index)
        except OSError:  # e.g. a bitmap font of another size
            continue
        if _has(found, characters):
            return found
    return None


def _has(font: Font, characters: str) -> bool:
    missing = _glyph(font, _NONE)
    return all(_glyph(font, c) != missing for c in characters)


def _glyph(font: Font, character: str) -> bytes:
    mask: Any = font.getmask(character)
    return bytes(mask)


@cache
def _files(character: str) -> list[tuple[str, int]]:
    """(file, index) of the fonts of this machine that have the character, plain ones first."""
    if not shutil.which("fc-list"):
        return []
    pattern = f":scalable=true:charset={ord(character):x}"
    command = ["fc-list", "--format=%{file}\t%{index}\n", pattern]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    fonts = [line.split("\t") for line in found.splitlines() if line.count("\t") == 1]

    def order(font: list[str]) -> tuple[int, bool, str]:
        return (
            sum(word in font[0] for word in _UNLIKE),
            not any(word in font[0] for word in _LIKE),
            font[0],
        )

    # An index above 65535 is a named instance of a variable font.
    return [(file, int(index) & 0xFFFF) for file, index in sorted(fonts, key=order)]


def _visible(character: str) -> bool:
    """Whether a font must have the character: spaces and formatting characters are nothing."""
    return unicodedata.category(character)[0] not in "ZC"


def script(character: str) -> str:
    """The script of a character, from its Unicode name: Latin, CJK, Arabic, ..., emoji."""
    if unicodedata.category(character) == "So" and ord(character) >= 0x2600:
        return "emoji"
    name = unicodedata.name(character, "unknown").split()[0].split("-")[0]
    return name if name == "CJK" else name.capitalize()


def _say(scripts: list[str]) -> None:
    """Names scripts without a font, each once."""
    new = sorted(set(scripts) - _said)
    _said.update(new)
    if new:
        print(
            f"No installed font has all {' and '.join(new)} characters of the captions: they are "
            "drawn as boxes. Install a font of that script, e.g. the package fonts-noto.",
            file=sys.stderr,
        )
