"""Building SURD: images with a complex prompt and a simple caption, filtered by a CLIP
(:mod:`emu_jax.data.pairs` has the rules). The output folder has

    data/           SURD's form, from which a data set is built: the images that are kept, and
                    metadata.jsonl with file_name, text (the simple caption), prompt (the complex
                    one) and both scores
    dropped.jsonl   every other image, with its texts and the reason
    sheet*.html     the pairs that passed the filter, for checking by hand
    check.txt       the list in which a person marks the pairs to reject
    scores.jsonl    the scores of all pairs; an interrupted command continues from them
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float
from PIL import Image

from emu_jax.assembly.captioning import Pixels, batches, read_each
from emu_jax.assembly.judge import SHIPPED, Judge
from emu_jax.checkpoint.foreign import read_json
from emu_jax.checkpoint.huggingface import find_folder, weights_of
from emu_jax.checkpoint.safetensors_io import fingerprint
from emu_jax.data.captions import FILE_COLUMN
from emu_jax.data.collection import Collection, both
from emu_jax.data.contents import SUFFIXES
from emu_jax.data.decode import open_image
from emu_jax.data.ledger import Ledger
from emu_jax.data.pairs import (
    COMPLEX_WINS,
    DUPLICATE,
    REJECTED,
    Pair,
    exchange,
    passing,
    read_rejected,
    write_checklist,
)
from emu_jax.data.textfile import read_lines
from emu_jax.errors import UserError
from emu_jax.evaluation.clip_metrics import open_clip
from emu_jax.evaluation.pair_sheet import SIDE, Shown, write_sheets

DATA, TABLE = "data", "metadata.jsonl"
DROPPED, CHECK, SCORES = "dropped.jsonl", "check.txt", "scores.jsonl"
_SUFFIXES = {"JPEG": ".jpg", "TIFF": ".tif"}  # of other formats: their name


@dataclass(frozen=True)
class Scorer:
    """Images and texts in one space, as vectors of length one."""

    made_from: Mapping[str, str]
    images: Callable[[Sequence[Pixels]], Float[np.ndarray, "n d"]]
    texts: Callable[[list[str]], Float[np.ndarray, "n d"]]


@dataclass(frozen=True)
class Result:
    """The pairs that passed filter and hand, the reasons of all other images, and the names of the
    pages for checking by hand."""

    kept: list[Pair]
    dropped: Mapping[str, str]
    pairs: Mapping[str, Pair]
    sheets: Sequence[str] = ()

    def lines(self) -> list[str]:
        """What the command prints."""
        rules = (COMPLEX_WINS, DUPLICATE, REJECTED)
        counts = Counter(
            next((rule for rule in rules if reason.startswith(rule)), reason)
            for reason in self.dropped.values()
        )
        lines = [f"{len(self.kept):,} pairs kept, {len(self.dropped):,} images dropped"]
        lines += [f"  {n:,}: {reason.removesuffix(' as ')}" for reason, n in counts.most_common()]
        return lines + self.control()

    def control(self) -> list[str]:
        """How many of the captions that were made wrong the filter has dropped."""
        found = {wrong: [p for p in self.pairs.values() if p.wrong == wrong] for wrong in (0, 1)}
        if not found[1]:
            return []
        dropped = {
            wrong: sum(self.dropped.get(p.name) == COMPLEX_WINS for p in pairs)
            for wrong, pairs in found.items()
        }
        parts = [
            f"{dropped[wrong]:,} of {len(found[wrong]):,} {name} captions "
            f"({dropped[wrong] / max(len(found[wrong]), 1):.1%})"
            for wrong, name in ((1, "wrong"), (0, "right"))
        ]
        passed = {wrong: len(pairs) - dropped[wrong] for wrong, pairs in found.items()}
        share = passed[1] / max(passed[0] + passed[1], 1)
        return [
            f"control: the filter drops {' and '.join(parts)}",
            f"  wrong captions: {len(found[1]) / len(self.pairs):.1%} before it, {share:.1%} after",
        ]


def open_scorer(path: str = SHIPPED) -> Scorer:
    """A CLIP's folder or hub name, or a judge: a run, an exported one or builtin:NAME."""
    place = Path(path).expanduser()
    hub = not path.startswith("builtin:") and not place.exists()
    folder = find_folder(path) if hub else place
    config = folder / "config.json"
    if config.is_file() and read_json(config).get("model_type") == "clip":
        clip = open_clip(folder)
        made_from = {"clip": fingerprint(str(weights_of(folder)))}
        return Scorer(made_from, lambda images: clip.images(tuple(images)), clip.texts)
    judge = Judge(path)
    return Scorer(
        {"judge": judge.fingerprint},
        lambda images: np.asarray(judge.embed_images(images).embedding),
        judge.embed_texts,
    )


def build_pairs(
    images: Collection,
    prompts: Mapping[str, str],
    captions: Mapping[str, str],
    out: epath.PathLike,
    *,
    clip: str = SHIPPED,
    rejected: str = "",
    wrong: float = 0.0,
    seed: int = 0,
    batch_size: int = 32,
) -> Result:
    """Scores the pairs and writes the folder ``out``; see the module's docstring.

    ``rejected`` is the list that a person has marked. ``wrong`` is a control: this share of the
    simple captions is exchanged for captions of other images, and the result says how many of
    these the filter drops.
    """
    folder = epath.Path(out).expanduser()
    images.refuse_inside(out)
    names, reasons = both(prompts, captions, images.names)
    marked = _marked(folder, rejected, images.names)
    exchanged = exchange({name: captions[name] for name in names}, wrong, seed)
    texts = {name: exchanged.get(name, captions[name]) for name in names}
    pairs, damaged = _scored(images, prompts, texts, folder, clip, batch_size)
    pairs = {
        name: replace(pair, wrong=name in exchanged and bool(wrong)) for name, pair in pairs.items()
    }
    passed, failed = passing(pairs.values())
    kept = [pair for pair in passed if pair.name not in marked]
    by_hand = {pair.name: REJECTED for pair in passed if pair.name in marked}
    result = Result(kept, reasons | damaged | failed | by_hand, pairs)
    return replace(result, sheets=_write(folder, images, passed, result, marked))


def _marked(folder: epath.Path, rejected: str, names: Sequence[str]) -> set[str]:
    if rejected:
        return read_rejected(epath.Path(rejected).expanduser(), names)
    check = folder / CHECK
    if check.exists() and (count := len(read_rejected(check, names))):
        raise UserError(
            f"{check} rejects {count} pairs; add --rejected={check}, or remove the file."
        )
    return set()


def _scored(
    images: Collection,
    prompts: Mapping[str, str],
    captions: Mapping[str, str],
    folder: epath.Path,
    clip: str,
    batch_size: int,
) -> tuple[dict[str, Pair], dict[str, str]]:
    """(the pairs of all images in ``captions``, the reasons of those that cannot be read)."""
    if (folder / DATA).exists() and not (folder / SCORES).exists():
        raise UserError(
            f"{folder / DATA} exists, and this command did not write it; name another --out."
        )
    scorer = open_scorer(clip)
    ledger = Ledger(folder / SCORES, scorer.made_from)
    damaged: dict[str, str] = {}

    def known(name: str) -> bool:
        row = ledger.rows.get(name, {})
        return row.get("text") == captions[name] and row.get("prompt") == prompts[name]

    missing = [name for name in captions if not known(name)]
    found = read_each(images, missing, lambda pixels: pixels, "scores")
    for batch in batches(zip(missing, found, strict=True), batch_size):
        good = {name: x for name, x in batch if not isinstance(x, str)}
        damaged |= {name: reason for name, reason in batch if isinstance(reason, str)}
        if not good:
            continue
        # Few sizes of the last batch: one compiled program.
        index = np.minimum(np.arange(batch_size), len(good) - 1)
        filled = [[*good][i] for i in index]
        embedded = scorer.images([good[name] for name in filled])
        scores = [
            np.sum(embedded * scorer.texts([texts[name] for name in filled]), axis=1)
            for texts in (captions, prompts)
        ]
        ledger.append(
            {
                FILE_COLUMN: name,
                "text": captions[name],
                "prompt": prompts[name],
                "text_score": round(float(scores[0][i]), 6),
                "prompt_score": round(float(scores[1][i]), 6),
                "pixels": _digest(pixels),
            }
            for i, (name, pixels) in enumerate(good.items())
        )
    keys = ("text", "prompt", "text_score", "prompt_score", "pixels")
    pairs = {
        name: Pair(name, *(ledger.rows[name][key] for key in keys))
        for name in captions
        if name not in damaged
    }
    return pairs, damaged


def _digest(pixels: Pixels) -> str:
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()


def _write(
    folder: epath.Path,
    images: Collection,
    passed: Sequence[Pair],
    result: Result,
    marked: set[str],
) -> list[str]:
    """Writes everything but the scores; returns the names of the sheets."""
    data, before = folder / DATA, set()
    if (data / TABLE).exists():
        before = {json.loads(line)[FILE_COLUMN] for line in read_lines(data / TABLE) if line}
    data.mkdir(parents=True, exist_ok=True)
    rows = []
    for pair in result.kept:
        content = images.read(pair.name)
        file = data / _file_name(pair.name, open_image(content).format or "PNG")
        if not file.exists() or file.read_bytes() != content:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        rows.append({FILE_COLUMN: file.relative_to(data).as_posix()} | pair.row())
    _write_rows(folder / DROPPED, [_dropped(name, result) for name in result.dropped])
    write_checklist(folder / CHECK, passed, marked)
    sheets = write_sheets(folder, _shown(images, passed, marked), len(passed))
    _write_rows(data / TABLE, rows)
    for name in before - {row[FILE_COLUMN] for row in rows}:  # images of an earlier selection
        if _is_inside(name):
            (data / name).unlink(missing_ok=True)
    return sheets


def _shown(images: Collection, passed: Sequence[Pair], marked: set[str]) -> Iterator[Shown]:
    def small(pixels: Pixels) -> Pixels:
        image = Image.fromarray(pixels)
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        return np.asarray(image)

    tiles = read_each(images, [pair.name for pair in passed], small, "sheet")
    for pair, tile in zip(passed, tiles, strict=True):
        if isinstance(tile, str):  # it could be read when it was scored
            raise UserError(f"The image {pair.name} has changed: {tile}.")
        yield Shown(pair, tile, pair.name in marked)


def _file_name(name: str, image_format: str) -> str:
    """Where an image lies in the folder: its own path or key, with a suffix."""
    if not _is_inside(name):
        raise UserError(f"The image {name!r} is not named by a path inside a folder; rename it.")
    suffix = _SUFFIXES.get(image_format, f".{image_format.lower()}")
    return name if PurePosixPath(name).suffix.lower() in SUFFIXES else name + suffix


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def _dropped(name: str, result: Result) -> dict[str, Any]:
    row = {FILE_COLUMN: name, "reason": result.dropped[name]}
    return row | (result.pairs[name].row() if name in result.pairs else {})


def _write_rows(path: epath.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes JSON lines, whole or not at all."""
    temporary = path.parent / f"{path.name}.tmp"
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    temporary.write_bytes(lines.encode())
    temporary.replace(path)
