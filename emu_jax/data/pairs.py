"""Pairs of a simple caption and a complex prompt of one image, as SURD consists of (SUR-adapter:
Zhong et al. 2023, arXiv:2305.05189, section 4.1): which pairs are kept, and why others are not.

A pair is kept where the image's similarity to the simple caption is at least that to the complex
prompt, in the space of a CLIP. Of images with the same pixels the first one that passes is kept. A
person rejects pairs in a list of all that passed: an x in the brackets before a name.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath

from emu_jax.data.textfile import read_lines
from emu_jax.errors import UserError

COMPLEX_WINS = "the complex prompt has the higher score"
DUPLICATE = "it has the same pixels as "
REJECTED = "it is rejected by hand"
_HEAD = """\
# One line for every pair of the sheet. Put an x into the brackets of each pair to reject, then run
# the command again with --rejected={path}
"""
_MARK = re.compile(r"\[([ xX]?)\]\s*(.*)")


@dataclass(frozen=True)
class Pair:
    """``text`` is the simple caption, ``prompt`` the complex prompt; scores are cosines with the
    image. ``pixels``: a digest of the image. ``wrong``: the caption belongs to another image."""

    name: str
    text: str
    prompt: str
    text_score: float
    prompt_score: float
    pixels: str
    wrong: bool = False

    def row(self) -> dict[str, Any]:
        """The columns of metadata.jsonl beside ``file_name``."""
        row = {
            "text": self.text,
            "prompt": self.prompt,
            "text_score": self.text_score,
            "prompt_score": self.prompt_score,
        }
        return row | ({"wrong": True} if self.wrong else {})


def passing(pairs: Iterable[Pair]) -> tuple[list[Pair], dict[str, str]]:
    """(the pairs that pass the filter and are no duplicates, the reasons of the others by name)."""
    kept: dict[str, Pair] = {}
    reasons: dict[str, str] = {}
    for pair in pairs:
        if not pair.text_score >= pair.prompt_score:
            reasons[pair.name] = COMPLEX_WINS
        elif pair.pixels in kept:
            reasons[pair.name] = DUPLICATE + kept[pair.pixels].name
        else:
            kept[pair.pixels] = pair
    return [*kept.values()], reasons


def exchange(captions: Mapping[str, str], share: float, seed: int) -> dict[str, str]:
    """The wrong captions of a random ``share`` of the images, by name: each is that of another
    image and differs from the image's own."""
    names = list(captions)
    random = np.random.default_rng(seed)
    chosen = random.permutation(len(names))[: round(share * len(names))]
    if len(chosen) and len(set(captions.values())) < 2:
        raise UserError("All simple captions are equal, so that none can be wrong; use others.")
    wrong = {}
    for i in chosen:
        other = captions[names[i]]
        while other == captions[names[i]]:
            other = captions[names[random.integers(len(names))]]
        wrong[names[i]] = other
    return wrong


def write_checklist(path: epath.Path, pairs: Sequence[Pair], rejected: Iterable[str]) -> None:
    """The list that a person edits; ``rejected`` are marked."""
    rejected = set(rejected)
    lines = [f"[{'x' if pair.name in rejected else ' '}] {_spelled(pair.name)}" for pair in pairs]
    path.write_bytes((_HEAD.format(path=path) + "".join(f"{line}\n" for line in lines)).encode())


def read_rejected(path: epath.Path, names: Iterable[str]) -> set[str]:
    """The names with an x in a list, or that stand there without brackets.

    Raises:
      UserError: a line names no image of ``names``.
    """
    spelled = {_spelled(name): name for name in names}
    rejected = set()
    for number, line in enumerate(read_lines(path), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = _MARK.fullmatch(line)
        name = match[2] if match else line
        if name not in spelled:
            raise UserError(
                f"{path}, line {number} names no image of the collection: {name[:60]!r}; use the "
                "names of the sheet, one a line."
            )
        if not match or match[1].strip():
            rejected.add(spelled[name])
    return rejected


def _spelled(name: str) -> str:
    """A name as one line; most names are spelled as they are."""
    plain = name.isprintable() and name == name.strip() and name[:1] not in ("", "[", "#", '"')
    return name if plain else json.dumps(name)
